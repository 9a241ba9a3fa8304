"""What can be said of the values of a float graph without running it: one pass forward, and one back, with memory."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from bnnfx.graph.dataflow import call_node
from bnnfx.graph.inplace import may_write
from bnnfx.graph.operators import OPAQUE, Call, Kind, Mode, Operator, Sign, call_of, operator_of

PASSAGES = frozenset({Kind.ELEMENTWISE, Kind.MOVE, Kind.POOL, Kind.RESAMPLE})
"""What values go through and stay themselves, more or less: each depends on one or a few neighbours."""

_CARRYING = PASSAGES | {Kind.JOIN, Kind.CONCAT, Kind.REDUCE}


_GRIDS: dict[Sign, Tensor | None] = {
    Sign.BOTH: torch.linspace(-3.0, 3.0, 61)[:, None],
    Sign.NEVER_NEGATIVE: torch.linspace(0.0, 3.0, 61)[:, None],
    Sign.UNKNOWN: None,
}
"""What a value is taken to be where a function of it is computed: the range of a normalized one."""


_LARGE = 1e6
"""Where curves are cut off, so that no chain of operators makes them infinite."""


@dataclass(frozen=True)
class Signs:
    """Which signs a value has.

    Attributes:
        sign: which.
        culprit: the node because of which that is not both.
        curve: the value as a function of its origin on a grid of numbers, `float[61, 1]` or `float[61, C]`; None if it
            is not one number by number.
    """

    sign: Sign
    culprit: fx.Node
    curve: Tensor | None


@dataclass(frozen=True)
class Value:
    """One value.

    Attributes:
        signs: which signs it has.
        without_relus: which it has once `relus` pass their input on.
        axes: the number of its axes, with the batch; None if it is not known.
        relus: the ReLUs whose result reaches it through what carries signs on.
        origin: the value that it is a function of; None of a constant.
    """

    signs: Signs
    without_relus: Signs
    axes: int | None
    relus: frozenset[fx.Node]
    origin: fx.Node | None


def _source(node: fx.Node, sign: Sign, axes: int | None) -> Value:
    signs = Signs(sign, node, _GRIDS[sign])
    return Value(signs, signs, axes, frozenset(), node)


def follow_values(gm: fx.GraphModule, shapes: Mapping[fx.Node, torch.Size] | None = None) -> dict[fx.Node, Value]:
    """Every value of a graph, in time that grows with the graph.

    Of a value that a call may have written into, nothing is known, not even for those who read it before.

    Args:
        gm: the graph; it is only read.
        shapes: of the values where they are known.

    >>> from torch import nn
    >>> gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.MaxPool2d(2)))
    >>> {node.name: (value.signs.sign.value, value.axes) for node, value in follow_values(gm).items() if value.axes}
    {'_0': ('takes both signs', 4), '_1': ('is never negative', 4), '_2': ('is never negative', 4)}
    """
    values: dict[fx.Node, Value] = {}
    for node in gm.graph.nodes:
        values[node] = _value(gm, node, values, shapes or {})
        for written in node.all_input_nodes if may_write(gm, node) else ():
            values[written] = _source(node, Sign.UNKNOWN, values[written].axes)
    return values


def _value(
    gm: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, Value], shapes: Mapping[fx.Node, torch.Size]
) -> Value:
    axes = len(shapes[node]) if node in shapes else None
    if node.op == "get_attr":
        constant = operator.attrgetter(str(node.target))(gm)
        if not isinstance(constant, Tensor):
            return _source(node, Sign.UNKNOWN, None)
        signs = Signs(_sign_of(constant), node, None)
        return Value(signs, signs, constant.ndim, frozenset(), None)
    if node.op in ("placeholder", "output"):
        return _source(node, Sign.BOTH, axes)
    row, call = operator_of(gm, node), call_of(gm, node)
    sources = _sources(call, values)
    given = [values[source] for source in sources]
    if row.axes is not None and given and given[0].axes not in (None, row.axes):
        row = OPAQUE  # pooling of three axes over one of channels, say
    origins = [value.origin for value in given if value.origin is not None]
    origin = origins[0] if row.kind in _CARRYING and len(set(origins)) == 1 else None
    if row.kind in (Kind.MOVE, Kind.CONCAT) and given and given[0].signs.sign is Sign.BOTH:
        origin = None  # at other places there are other values, which take both signs by themselves
    several = {source: value.origin for source, value in zip(sources, given, strict=True) if value.origin is not None}
    related = row.kind is Kind.JOIN and len(set(several.values())) < len(several)
    signs = _signs(row, call, dict(zip(sources, (value.signs for value in given), strict=True)), origin, related)
    without = dict(zip(sources, (value.without_relus for value in given), strict=True))
    if row.replaced and given:
        bare = given[0].without_relus
    elif row.kind in _CARRYING:
        bare = _signs(row, call, without, origin, related)
    else:
        bare = signs  # no ReLU in front of it is taken away
    relus: frozenset[fx.Node] = frozenset().union(*(value.relus for value in given))
    if row.replaced:
        relus |= {node}
    elif row.kind not in _CARRYING or bare.sign is not Sign.BOTH:
        relus = frozenset()
    known = axes if axes is not None else row.result_axes(call, [row.axes or value.axes for value in given])
    return Value(signs, bare, known, relus, origin or node)


def _signs(row: Operator, call: Call, sources: Mapping[fx.Node, Signs], origin: fx.Node | None, related: bool) -> Signs:
    """The signs of a result and who is to blame for them: what decides, or whoever gave that sign to an operand.

    Args:
        row: of the operator.
        call: of it.
        sources: the values that it works on.
        origin: the one value that it is a function of; None if it is a value of its own.
        related: whether several operands are functions of one value, so that their signs do not tell that of a sum.
    """
    given = [sources[source].sign for source in _sources(call, sources)]
    sign = row.sign(call, given)
    curve = None if origin is None else _curve(row, call, sources)
    if related and sign is not Sign.NEVER_NEGATIVE:
        sign = Sign.UNKNOWN if curve is None or Sign.UNKNOWN in given else _sign_of(curve)
    inherits = row.kind in _CARRYING and sign in given and row.sign(call, [Sign.BOTH] * len(given)) is not sign
    culprit = next(s.culprit for s in sources.values() if s.sign is sign) if inherits else call.node
    return Signs(sign, culprit, _GRIDS[sign] if origin is None else curve)


def _curve(row: Operator, call: Call, sources: Mapping[fx.Node, Signs]) -> Tensor | None:
    """An operator on the grid; None where it needs something else than numbers one by one."""
    node, curves = call.node, {source: signs.curve for source, signs in sources.items()}
    if row.mode is Mode.DROPS:
        return next(iter(curves.values()))
    placewise = row.kind in (Kind.ELEMENTWISE, Kind.JOIN) and row.mode is Mode.SAME
    if not placewise or curves.keys() != {*node.all_input_nodes} or any(curve is None for curve in curves.values()):
        return None
    args: Any
    kwargs: Any
    channels = call.get("num_parameters") if row.per_channel(call) else -1
    args, kwargs = fx.node.map_arg(
        (node.args, dict(node.kwargs)),
        lambda source: curves[source].expand(-1, channels).clone(),  # type: ignore[union-attr]
    )
    try:
        with torch.no_grad():
            result = call_node(node, call.module, args, kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError):  # it takes something else than numbers
        return None
    if not isinstance(result, Tensor) or result.is_meta or result.ndim != 2:
        return None
    return result.float().clamp(-_LARGE, _LARGE)


def curve_of(gm: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Numbers, `float[61, 1]`, and what a function of one value makes of each; None if it is no such function."""
    grid = _GRIDS[Sign.BOTH]
    assert grid is not None
    if len(node.all_input_nodes) != 1:
        return None
    source = node.all_input_nodes[0]
    values = _curve(operator_of(gm, node), call_of(gm, node), {source: Signs(Sign.BOTH, source, grid)})
    return None if values is None else (grid, values)


def _sign_of(constant: Tensor) -> Sign:
    if not constant.numel() or not constant.dtype.is_floating_point or constant.is_meta:
        return Sign.UNKNOWN
    least, most = torch.aminmax(constant.detach())
    return Sign.NEVER_NEGATIVE if least >= 0 else Sign.BOTH if most > 0 else Sign.UNKNOWN


def _sources(call: Call, values: Mapping[fx.Node, Any]) -> list[fx.Node]:
    """The tensors that a call works on; the parts of a list one by one, sizes left out."""
    found: list[fx.Node] = []
    operands: Any = call.operands
    fx.node.map_arg(operands, found.append)
    return [node for node in found if node in values]


def normalized(gm: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose every reader meets a norm, behind pooling, activation functions, views and concat only."""
    found: set[fx.Node] = set()
    for node in reversed(gm.graph.nodes):
        if node.users and all(_meets_norm(gm, user, found) for user in node.users):
            found.add(node)
    return found


def _meets_norm(gm: fx.GraphModule, user: fx.Node, found: set[fx.Node]) -> bool:
    row = operator_of(gm, user)
    return row.centres or ((row.kind in PASSAGES or row.kind is Kind.CONCAT) and user in found)


def producer(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Walk back over pooling, activation functions, dropout and views to what produced the values."""
    while operator_of(gm, node).kind in PASSAGES and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node
