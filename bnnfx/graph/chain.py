"""Chains between a packed convolution and a `pack`: what may stand in them, and what they do to every accumulator."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from bnnfx.graph.affine import affine_of
from bnnfx.graph.dataflow import calls, constant, drops, is_view, module_of
from bnnfx.graph.operators import Kind, Mode, call_of, operator_of
from bnnfx.nn.halves import shift_halves
from bnnfx.numerics.thresholds import accumulator_values, selected_sums

CONVOLUTION = torch.ops.bnnfx.binary_conv2d.default
PACK = torch.ops.bnnfx.pack.default
_VALUES_PER_STEP = 1 << 23


def is_per_channel(gm: fx.GraphModule, node: fx.Node, shapes: Mapping[fx.Node, torch.Size]) -> bool:
    """Whether each value of a node's result depends on one value of its input, and on its channel, only."""
    if is_view(node):  # of a 1x1 map, behind a linear layer; a larger map's positions would become channels
        sizes = [shapes[n][1:] for n in (node.all_input_nodes[0], node) if n in shapes]
        return len(sizes) == 2 and sizes[0][:1] == sizes[1][:1] and all(s.numel() == s[0] for s in sizes)
    if calls(node, shift_halves) or affine_of(gm, node, _axes(node, shapes)) is not None:
        return True
    row, reads_constants = operator_of(gm, node), len(node.all_input_nodes) > 1
    return row.kind is Kind.ELEMENTWISE and not reads_constants and (row.mode is Mode.SAME or drops(gm, node))


def monotone_directions(gm: fx.GraphModule, node: fx.Node, shapes: Mapping[fx.Node, torch.Size]) -> torch.Tensor | None:
    """How a node's value moves with its input, per channel: +1 up, -1 down, 0 constant; None if that is not known.

    Returns a scalar where all channels agree. Rounding keeps monotone: a product, a sum and a clamp each round
    monotonely.
    """
    if is_view(node) or calls(node, shift_halves):
        return torch.tensor(1.0)
    affine = affine_of(gm, node, _axes(node, shapes))
    if affine is not None:
        return affine.scale.sign().float()
    return operator_of(gm, node).monotone(call_of(gm, node))


def _axes(node: fx.Node, shapes: Mapping[fx.Node, torch.Size]) -> int | None:
    return len(shapes[node]) if node in shapes else None


def value_source(node: fx.Node) -> fx.Node | None:
    """What a node is a function of, besides constants; None if that is nothing, or several values."""
    sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
    return sources[0] if len(sources) == 1 else None


def upstream(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes before a `pack`, nearest first, as long as each is a function of one tensor of the graph."""
    current = node.args[0]
    while isinstance(current, fx.Node):
        yield current
        current = None if calls(current, CONVOLUTION) else value_source(current)


def shared_by(convolution: fx.Node) -> tuple[list[Any], int]:
    """The attributes that a packed convolution shares with what takes its place, and its number of copies."""
    *attributes, copies = convolution.args[4:]
    assert isinstance(copies, int)
    return attributes, copies


def accumulators_of(gm: fx.GraphModule, convolution: fx.Node) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Every value that an accumulator of this convolution can take."""
    weight = constant(gm, convolution.args[1])
    channels, _, pads, _, groups, low = convolution.args[4:10]
    fan_in = weight.shape[1] * weight.shape[2] * (channels // groups)  # type: ignore[operator]
    if low == 0:
        positive = np.bitwise_count(weight.numpy()).sum(axis=(1, 2, 3), dtype=np.int32)
        return selected_sums(int((fan_in - positive).max()), int(positive.max()))
    return accumulator_values(fan_in, zero_padded=any(pads))  # type: ignore[arg-type]


def table_of_bits(
    gm: fx.GraphModule, convolution: fx.Node, chain: list[fx.Node], pack: fx.Node
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The bits that the graph's own float expression gives to every accumulator: `bool[V, O]`.

    The nodes are executed as they stand, on a batch that holds one accumulator value per row and a 1x1 map.
    """
    values = accumulators_of(gm, convolution)
    scale, bias = (constant(gm, node) for node in convolution.args[2:4])
    step = max(1, _VALUES_PER_STEP // len(scale))
    tables = []
    for start in range(0, len(values), step):
        z = torch.from_numpy(values[start : start + step]).float()
        x = (z[:, None] * scale + bias)[:, :, None, None]
        for node in chain:
            x = _execute(gm, node, x)
        tables.append((x >= constant(gm, pack.args[1])).flatten(1).numpy())
    return np.concatenate(tables)


def _execute(gm: fx.GraphModule, node: fx.Node, x: Tensor) -> Tensor:
    def resolve(argument: fx.Node) -> Tensor:
        return constant(gm, argument) if argument.op == "get_attr" else x

    arguments, named = fx.map_arg(node.args, resolve), fx.map_arg(dict(node.kwargs), resolve)
    function: Any = module_of(gm, node) or node.target
    if node.op == "call_method":
        function, arguments = getattr(arguments[0], str(node.target)), arguments[1:]
    with torch.no_grad():
        result: Tensor = function(*arguments, **named)
    return result
