"""Questions about a graph: which module a node calls, what reads a value, what can flow where."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from bnnfx.graph.operators import Kind, Mode, call_of, modules_of, operator_of
from bnnfx.nn import layer_kind
from bnnfx.ops import BY_TARGET, PackedOp

WEIGHT_LAYERS = modules_of(Kind.LAYER)
"""Modules whose weight could be binarized in principle; the ones we binarize are `bnnfx.nn.BINARY_LAYERS`.

Ask for them with `isinstance`: a subclass may compute something else, and has a weight all the same.
"""


def module_of(gm: fx.GraphModule, node: object) -> nn.Module | None:
    """The module that a node calls, or None if it calls none."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return gm.get_submodule(str(node.target))
    return None


def calls(node: object, function: Callable[..., Any]) -> bool:
    """Whether a node calls this very function."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is function


def call_node(node: fx.Node, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
    """What a node that calls something, a module if that is given, makes of these arguments."""
    if module is not None:
        return module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def packed_op(node: object) -> PackedOp | None:
    """The packed operator that a node calls, or None if it calls none."""
    if isinstance(node, fx.Node) and node.op == "call_function":
        return BY_TARGET.get(node.target)
    return None


@dataclass(frozen=True)
class PackedResult:
    """What a value of a packed graph is.

    Attributes:
        op: the packed operator that computes it.
        output: which of its outputs it is, "float" or "bits".
    """

    op: PackedOp
    output: str


def packed_result(node: object) -> PackedResult | None:
    """Which result of a packed operator a node holds, or None if it holds none, or all of several."""
    op, index = packed_op(node), 0
    if calls(node, operator.getitem):
        assert isinstance(node, fx.Node)
        op, index = packed_op(node.args[0]), node.args[1]  # type: ignore[assignment]
        if op is not None and len(op.outputs) == 1:
            return None  # a slice of its only result
    elif op is not None and len(op.outputs) > 1:
        return None
    return None if op is None else PackedResult(op, op.outputs[index])


def packed_channels(node: fx.Node) -> int:
    """How many channels a packed map has, which only its readers know."""
    user = next(iter(node.users))
    op = packed_op(user)
    assert op is not None
    if "channels" not in op.attributes:  # it works on bits as they come, and gives as many
        return packed_channels(user)
    return int(user.args[op.inputs + op.attributes.index("channels")])  # type: ignore[arg-type]


def is_inner(node: fx.Node) -> bool:
    """Whether bits are no binarizer's: what reads them works on bits as they come, as the max-pool behind a pack."""
    readers = [packed_op(user) for user in node.users]
    return bool(readers) and all(op is not None and "channels" not in op.attributes for op in readers)


def weight_bits(node: object) -> str | None:
    """The buffer that holds the weight bits of a packed convolution; None for any other node."""
    op = packed_op(node)
    if op is None or "weight" not in op.tensors:
        return None
    weight = node.args[op.tensors.index("weight")]  # type: ignore[attr-defined]
    return str(weight.target)


def is_view(node: object) -> bool:
    """Whether a node only gives its values another shape, in the spellings that are left in a packed graph."""
    return calls(node, torch.flatten) or calls(node, torch.reshape)


def is_flatten(node: object) -> bool:
    """Whether a node flattens everything but the batch."""
    return calls(node, torch.flatten) and node.args[1:] in ((1,), (1, -1))  # type: ignore[attr-defined]


def is_add(node: object) -> bool:
    """Whether a node adds two tensors of the graph (not a constant)."""
    return isinstance(node, fx.Node) and calls(node, operator.add) and len(node.all_input_nodes) == 2


def module_calls(gm: fx.GraphModule, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> Iterator[fx.Node]:
    """The nodes that call a module of these kinds, in graph order."""
    for node in list(gm.graph.nodes):
        if isinstance(module_of(gm, node), kinds):
            yield node


def is_replication(node: object, axis: int | None = None) -> bool:
    """Whether a node puts two copies of one map side by side on an axis that may be that of channels: this, or any."""
    if not isinstance(node, fx.Node) or not calls(node, torch.cat):
        return False
    parts, axes = node.args[0], ((1,), (-1,)) if axis is None else ((axis,),)
    return isinstance(parts, list | tuple) and len(parts) == 2 and parts[0] is parts[1] and node.args[1:] in axes


def sole_user(node: fx.Node) -> fx.Node | None:
    """The only reader of a value, or None if there are none or several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def above_dropouts(gm: fx.GraphModule, layer: fx.Node) -> tuple[fx.Node, fx.Node]:
    """What a layer reads in front of the dropouts that only it reads, and who reads that: the layer, or a dropout."""
    reader, source = layer, layer.all_input_nodes[0]
    while operator_of(gm, source).mode is Mode.DROPS and drops(gm, source) and sole_user(source) is reader:
        reader, source = source, source.all_input_nodes[0]
    return reader, source


def depends_on_input(node: fx.Node) -> bool:
    """Whether a value is computed from an input of the graph, and so has its batch; else it is a constant."""
    seen, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        if current.op == "placeholder":
            return True
        waiting += [source for source in current.all_input_nodes if source not in seen]
        seen.update(current.all_input_nodes)
    return False


def is_kind(gm: fx.GraphModule, node: object, *kinds: Kind) -> bool:
    """Whether a node calls an operator of one of these kinds."""
    return operator_of(gm, node).kind in kinds


def is_batch_norm(gm: fx.GraphModule, node: object) -> bool:
    """Whether a node calls a batch norm."""
    return operator_of(gm, node).batch_norm


def is_freezable(gm: fx.GraphModule, node: object) -> bool:
    """Whether a node calls a batch norm with running statistics: constant in evaluation."""
    return is_batch_norm(gm, node) and getattr(module_of(gm, node), "running_mean", None) is not None


def drops(gm: fx.GraphModule, node: object) -> bool:
    """Whether a node gives its input in evaluation: a dropout, or an identity in both modes."""
    row = operator_of(gm, node)
    if row.identity or not isinstance(node, fx.Node):
        return row.identity
    follows = node.op == "call_module" or call_of(gm, node).get("training", True) is False
    return row.mode is Mode.DROPS and follows


def bits_source(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Walk back over what keeps +-1 values in evaluation (dropout, identity)."""
    while drops(gm, node):
        node = node.all_input_nodes[0]
    return node


def channel_axis(gm: fx.GraphModule, node: fx.Node) -> int:
    """Which axis of a binarizer's values holds the channels, 1 or -1: the one that the layers behind it sum over.

    In a graph that is not packed yet; it is what tells a map `[N, C, ...]` from tokens `[N, ..., C]`.
    """
    for user in node.users:
        kind = layer_kind(module_of(gm, user))
        if kind is not None:
            return kind.channel_axis
        if drops(gm, user):
            return channel_axis(gm, user)
    return 1


def constant(gm: fx.GraphModule, node: object) -> torch.Tensor:
    """The tensor that a `get_attr` node reads."""
    assert isinstance(node, fx.Node) and node.op == "get_attr"
    value: torch.Tensor = operator.attrgetter(str(node.target))(gm)
    return value.detach()
