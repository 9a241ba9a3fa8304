"""What can be said of the values of a float graph without running it: one pass forward, and one back, with memory."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from bnnfx.graph.inplace import may_write
from bnnfx.graph.operators import Call, Kind, Mode, Operator, Sign, call_of, operator_of

PASSAGES = frozenset({Kind.ELEMENTWISE, Kind.MOVE, Kind.POOL, Kind.RESAMPLE})
"""What values go through and stay themselves, more or less: each depends on one or a few neighbours."""

_CARRYING = PASSAGES | {Kind.JOIN, Kind.CONCAT, Kind.REDUCE}


_GRIDS: dict[Sign, Tensor | None] = {
    Sign.BOTH: torch.linspace(-3.0, 3.0, 61),
    Sign.NEVER_NEGATIVE: torch.linspace(0.0, 3.0, 61),
    Sign.UNKNOWN: None,
}
"""What a value is taken to be where a function of it is computed: the range of a normalized one."""


_LARGE = 1e6
"""Where curves are cut off, so that no chain of operators makes them infinite."""


@dataclass(frozen=True)
class Value:
    """One value.

    Attributes:
        sign: which signs it has.
        culprit: the node because of which that is not both.
        axes: the number of its axes, with the batch; None if it is not known.
        relus: the ReLUs whose result reaches it through what carries signs on.
        sign_without_relus: which signs it has once these pass their input on.
        culprit_without_relus: the node because of which that is not both.
        origin: the value that it is a function of; None of a constant.
        curve: that function, `float[61]` on a grid of numbers; None if it is not one value by value.
    """

    sign: Sign
    culprit: fx.Node
    axes: int | None
    relus: frozenset[fx.Node]
    sign_without_relus: Sign
    culprit_without_relus: fx.Node
    origin: fx.Node | None
    curve: Tensor | None


def _source(node: fx.Node, sign: Sign, axes: int | None) -> Value:
    return Value(sign, node, axes, frozenset(), sign, node, node, _GRIDS[sign])


def follow_values(gm: fx.GraphModule, shapes: Mapping[fx.Node, torch.Size] | None = None) -> dict[fx.Node, Value]:
    """Every value of a graph, in time that grows with the graph.

    Of a value that a call may have written into, nothing is known, not even for those who read it before.

    Args:
        gm: the graph; it is only read.
        shapes: of the values where they are known.

    >>> from torch import nn
    >>> gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.MaxPool2d(2)))
    >>> {node.name: (value.sign.value, value.axes) for node, value in follow_values(gm).items() if value.axes}
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
        return replace(_source(node, _sign_of(constant), constant.ndim), origin=None, curve=None)
    if node.op in ("placeholder", "output"):
        return _source(node, Sign.BOTH, axes)
    row, call = operator_of(gm, node), call_of(gm, node)
    sources = _sources(call, values)
    given = [values[source] for source in sources]
    origin, curve = _origin(row, call, dict(zip(sources, given, strict=True)))
    origins = [source.origin for source in given if source.origin is not None]
    of_curve = None
    if row.kind is Kind.JOIN and len(set(origins)) < len(origins):
        of_curve = Sign.UNKNOWN if curve is None else _sign_of(curve)
    sign, culprit = _follow(row, call, [(s.sign, s.culprit) for s in given], of_curve)
    without = [(s.sign_without_relus, s.culprit_without_relus) for s in given]
    bare = without[0] if row.replaced and without else _follow(row, call, without, of_curve)
    if not row.replaced and row.kind not in _CARRYING:
        bare = sign, culprit  # no ReLU in front of it is taken away
    relus: frozenset[fx.Node] = frozenset().union(*(source.relus for source in given))
    if row.replaced:
        relus |= {node}
    elif row.kind not in _CARRYING or bare[0] is not Sign.BOTH:
        relus = frozenset()
    known = axes if axes is not None else row.result_axes(call, [row.axes or source.axes for source in given])
    return Value(sign, culprit, known, relus, *bare, origin or node, _GRIDS[sign] if origin is None else curve)


def _origin(row: Operator, call: Call, sources: Mapping[fx.Node, Value]) -> tuple[fx.Node | None, Tensor | None]:
    """The one value that a result is a function of, and that function; None where it is a value of its own."""
    origins = {source.origin for source in sources.values()} - {None}
    if row.kind not in _CARRYING or len(origins) != 1:
        return None, None
    if row.mode is Mode.DROPS:
        curve = next(iter(sources.values())).curve
    else:
        placewise = row.kind in (Kind.ELEMENTWISE, Kind.JOIN) and row.mode is Mode.SAME and not row.per_channel(call)
        curve = _compute(call, sources) if placewise else None
    return origins.pop(), curve


def _compute(call: Call, sources: Mapping[fx.Node, Value]) -> Tensor | None:
    """An operator on the grid; None where it needs something else than numbers one by one."""
    curves = {source: value.curve for source, value in sources.items() if value.curve is not None}
    if curves.keys() != {*call.node.all_input_nodes}:
        return None
    node = call.node
    args: Any
    kwargs: Any
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda source: curves[source].clone())
    try:
        with torch.no_grad():
            if call.module is not None:
                result = call.module(*args, **kwargs)
            elif node.op == "call_method":
                result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                result = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    if not isinstance(result, Tensor) or result.is_meta or result.ndim != 1:
        return None
    return result.float().clamp(-_LARGE, _LARGE)


def _sign_of(constant: Tensor) -> Sign:
    if not constant.numel() or not constant.dtype.is_floating_point or constant.is_meta:
        return Sign.UNKNOWN
    least, most = torch.aminmax(constant.detach())
    return Sign.NEVER_NEGATIVE if least >= 0 else Sign.BOTH if most > 0 else Sign.UNKNOWN


def _sources(call: Call, values: Mapping[fx.Node, Value]) -> list[fx.Node]:
    """The tensors that a call works on; the parts of a list one by one, sizes left out."""
    found: list[fx.Node] = []
    operands: Any = call.operands
    fx.node.map_arg(operands, found.append)
    return [node for node in found if node in values]


def _follow(
    row: Operator, call: Call, signs: Sequence[tuple[Sign, fx.Node]], of_curve: Sign | None
) -> tuple[Sign, fx.Node]:
    """The sign of a result and who is to blame for it: what decides, or whoever gave that sign to an operand.

    Args:
        row: of the operator.
        call: of it.
        signs: of its operands, and who is to blame for each.
        of_curve: the sign of the function that it is of one value, where several operands are functions of that.
    """
    given = [sign for sign, _ in signs]
    sign = row.sign(call, given)
    if of_curve is not None and sign is not Sign.NEVER_NEGATIVE:
        sign = Sign.UNKNOWN if Sign.UNKNOWN in given else of_curve
    inherits = row.kind in _CARRYING and sign in given and row.sign(call, [Sign.BOTH] * len(given)) is not sign
    return sign, next(culprit for each, culprit in signs if each is sign) if inherits else call.node


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
