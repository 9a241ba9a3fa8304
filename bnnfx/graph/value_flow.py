"""What can be said of the values of a float graph without running it: one pass forward, and one back, with memory."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from bnnfx.graph.inplace import may_write
from bnnfx.graph.operators import Call, Kind, Operator, Sign, call_of, operator_of

PASSAGES = frozenset({Kind.ELEMENTWISE, Kind.MOVE, Kind.POOL, Kind.RESAMPLE})
"""What values go through and stay themselves, more or less: each depends on one or a few neighbours."""

_CARRYING = PASSAGES | {Kind.JOIN, Kind.CONCAT, Kind.REDUCE}


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
    """

    sign: Sign
    culprit: fx.Node
    axes: int | None
    relus: frozenset[fx.Node]
    sign_without_relus: Sign
    culprit_without_relus: fx.Node


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
        for source in node.all_input_nodes if may_write(gm, node) and node.op != "output" else ():
            values[source] = Value(Sign.UNKNOWN, node, values[source].axes, frozenset(), Sign.UNKNOWN, node)
    return values


def _value(
    gm: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, Value], shapes: Mapping[fx.Node, torch.Size]
) -> Value:
    axes = len(shapes[node]) if node in shapes else None
    if node.op == "get_attr":
        constant = operator.attrgetter(str(node.target))(gm)
        given = isinstance(constant, Tensor)
        sign = _sign_of(constant) if given else Sign.UNKNOWN
        return Value(sign, node, constant.ndim if given else None, frozenset(), sign, node)
    if node.op in ("placeholder", "output"):
        return Value(Sign.BOTH, node, axes, frozenset(), Sign.BOTH, node)
    row, call = operator_of(gm, node), call_of(gm, node)
    sources = _sources(call, values)
    sign, culprit = _follow(row, call, [(values[s].sign, values[s].culprit) for s in sources], node)
    without = [(values[s].sign_without_relus, values[s].culprit_without_relus) for s in sources]
    bare = without[0] if row.replaced and without else _follow(row, call, without, node)
    if not row.replaced and row.kind not in _CARRYING:
        bare = sign, culprit  # no ReLU in front of it is taken away
    relus: frozenset[fx.Node] = frozenset().union(*(values[source].relus for source in sources))
    if row.replaced:
        relus |= {node}
    elif row.kind not in _CARRYING or bare[0] is not Sign.BOTH:
        relus = frozenset()
    known = axes if axes is not None else _axes(row, call, [values[source].axes for source in sources])
    return Value(sign, culprit, known, relus, *bare)


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


def _follow(row: Operator, call: Call, signs: Sequence[tuple[Sign, fx.Node]], node: fx.Node) -> tuple[Sign, fx.Node]:
    """The sign of a result and who is to blame for it: what decides, or whoever gave that sign to an operand."""
    given = [sign for sign, _ in signs]
    sign = row.sign(call, given)
    inherits = row.kind in _CARRYING and sign in given and row.sign(call, [Sign.BOTH] * len(given)) is not sign
    return sign, next(culprit for each, culprit in signs if each is sign) if inherits else node


def _axes(row: Operator, call: Call, sources: Sequence[int | None]) -> int | None:
    if row.axes is not None:
        return row.axes
    known = [axes for axes in sources if axes is not None]
    if row.name in ("reshape", "permute", "expand"):
        rest = call.node.args[1:]
        axes = rest[0] if len(rest) == 1 else rest
        return len(axes) if isinstance(axes, list | tuple) else None
    if not known:
        return None
    if row.kind is Kind.JOIN:
        return max(known)  # of an operand that is not known, broadcasting makes no less
    if row.kind in (Kind.ELEMENTWISE, Kind.NORM, Kind.LAYER, Kind.RESAMPLE) or row.name in _SAME_AXES:
        return known[0]
    if row.name == "flatten":
        start, end = call.get("start_dim", 0 if call.module is None else 1), call.get("end_dim", -1)
        if isinstance(start, int) and isinstance(end, int):
            return known[0] - (end % known[0] - start % known[0])
    return None


_SAME_AXES = frozenset(
    {"softmax", "cat", "transpose", "swapaxes", "flip", "roll", "chunk", "split", "pixel_shuffle", "pixel_unshuffle"}
)


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
