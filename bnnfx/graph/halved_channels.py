"""Graph edits of `bnnfx.split`: nodes that double a map, batch norms of twice the channels, where bits come from."""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from bnnfx.graph.dataflow import (
    bits_source,
    calls,
    drops,
    is_add,
    is_batch_norm,
    is_flatten,
    is_replication,
    module_of,
)
from bnnfx.graph.operators import Kind, call_of, operator_of
from bnnfx.nn import ActivationBinarizer, layer_kind
from bnnfx.nn.halves import SHIFT, halves_by_group, mean_of_halves, shift_halves


def axis_of_halves(node: fx.Node) -> int:
    """The axis on which a replication, or what works on halves, has the channels: 1 or -1."""
    axis = node.args[1] if calls(node, torch.cat) else node.kwargs.get("axis", 1)
    assert isinstance(axis, int)
    return axis


def replication_of(value: fx.Node, axis: int) -> fx.Node:
    """Two copies of a map, `[v, v]`."""
    for user in value.users:
        if is_replication(user, axis):
            value.append(user)  # in front of whoever is going to read it
            return user
    with value.graph.inserting_after(value):
        return value.graph.call_function(torch.cat, ([value, value], axis))


def find_halves(value: fx.Node, axis: int) -> fx.Node | None:
    """The shifted copies of a map if the graph has them, else None."""
    for copies in value.users:
        if is_replication(copies, axis):
            return next((user for user in copies.users if calls(user, shift_halves)), None)
    return None


def halves_of(value: fx.Node, axis: int) -> fx.Node:
    """The shifted copies of a map, `[v - 1/4, v + 1/4]`."""
    copies, found = replication_of(value, axis), find_halves(value, axis)
    if found is not None:
        copies.append(found)
        return found
    with value.graph.inserting_after(copies):
        return value.graph.call_function(shift_halves, (copies, SHIFT), _on(axis))


def mean_of(halves: fx.Node, axis: int) -> fx.Node:
    """The map that halves stand for."""
    with halves.graph.inserting_after(halves):
        return halves.graph.call_function(mean_of_halves, (halves,), _on(axis))


def _on(axis: int) -> dict[str, Any]:
    return {} if axis == 1 else {"axis": axis}


def readers_of_shifted(
    gm: fx.GraphModule, value: fx.Node, flattened: bool = False
) -> Iterator[tuple[fx.Node, fx.Node, bool]]:
    """What reads a map, through dropout, pooling and views that keep a shift.

    Each with the value that it reads, and whether that was flattened.
    """
    for user in value.users:
        if drops(gm, user) or keeps_shift(gm, user):
            yield from readers_of_shifted(gm, user, flattened or is_flatten(user))
        else:
            yield value, user, flattened


def groups_of(gm: fx.GraphModule, layer: fx.Node) -> int:
    """In how many groups of channels a layer reads the halves of a map; 1 of what has no groups."""
    groups = getattr(module_of(gm, layer), "groups", 1)
    assert isinstance(groups, int)
    return groups


def put_in_place(doubled: fx.Node, halves: fx.Node) -> None:
    """Let `doubled`, which now holds the halves of its map, take the place of `halves`; others read their mean."""
    graph, copies, others = doubled.graph, halves.all_input_nodes[0], dict(doubled.users)
    axis = axis_of_halves(halves)
    halves.replace_all_uses_with(doubled)
    graph.erase_node(halves)
    if not copies.users:
        graph.erase_node(copies)
        del others[copies]
    if others:
        mean = mean_of(doubled, axis)
        for user in others:
            user.replace_input_with(doubled, mean)


def is_called_once(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a module has this one call."""
    return [n for n in gm.graph.nodes if n.op == "call_module" and n.target == node.target] == [node]


@torch.no_grad()
def widen_batch_norm(batch_norm: nn.Module, shift: float) -> None:
    """Give every channel a copy, with beta less `shift` in the first half and more by it in the second, in place."""
    batch_norm.num_features *= 2  # type: ignore[operator, assignment]
    for name, parameter in list(batch_norm.named_parameters(recurse=False)):
        doubled = torch.cat([parameter, parameter])
        if name == "bias":
            doubled = shift_halves(doubled, shift, axis=0)
        setattr(batch_norm, name, nn.Parameter(doubled, parameter.requires_grad))
    for name, buffer in list(batch_norm.named_buffers(recurse=False)):
        if buffer.ndim:
            setattr(batch_norm, name, torch.cat([buffer, buffer]))


def keeps_shift(gm: fx.GraphModule, node: fx.Node, axis: int = 1) -> bool:
    """Whether a node gives `f(x + c) = f(x) + c` in training and evaluation, and keeps channels apart and in order.

    Args:
        gm: the graph.
        node: any node.
        axis: which one the channels are; pooling takes axis 1 for them.
    """
    row = operator_of(gm, node)
    return is_flatten(node) or (row.keeps_shift(call_of(gm, node)) and (axis == 1 or row.kind is not Kind.POOL))


def axis_in_front(node: fx.Node, axis: int) -> int:
    """The axis of the channels of what a node reads, where in its result it is this: a flattened map has axis 1."""
    return 1 if is_flatten(node) else axis


def normalizes(gm: fx.GraphModule, node: fx.Node, axis: int) -> bool:
    """Whether a node is a batch norm whose channels are this axis."""
    return is_batch_norm(gm, node) and operator_of(gm, node).channel_axis == axis


def reads_bits(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a value comes from a layer behind a binarizer, through batch norm, pooling and views only."""
    while layer_kind(module_of(gm, node)) is None:
        if not (is_batch_norm(gm, node) or keeps_shift(gm, node) or is_replication(node)):
            return False
        node = node.all_input_nodes[0]
    source = bits_source(gm, node.all_input_nodes[0])
    while keeps_shift(gm, source):
        source = bits_source(gm, source.all_input_nodes[0])
    return isinstance(module_of(gm, source), ActivationBinarizer)


def channels_of(gm: fx.GraphModule, node: object) -> int | None:
    """How many channels a value has, where modules and spellings that are common tell; else None."""
    module = module_of(gm, node)
    if not isinstance(node, fx.Node) or not node.all_input_nodes:
        return None
    if is_batch_norm(gm, node):
        return int(module.num_features)  # type: ignore[union-attr, arg-type]
    if layer_kind(module) is not None:
        return len(module.weight)  # type: ignore[union-attr, arg-type]
    source = channels_of(gm, node.all_input_nodes[0])
    if operator_of(gm, node).kind in (Kind.POOL, Kind.ELEMENTWISE):
        return source
    if is_add(node):
        return source if source == channels_of(gm, node.all_input_nodes[1]) else None
    if source is None:
        return None
    if calls(node, mean_of_halves):
        return source // 2
    if is_replication(node):
        return 2 * source
    if calls(node, shift_halves) or calls(node, halves_by_group):
        return source
    if calls(node, operator.getitem) and isinstance(node.args[1], tuple) and node.args[1][1:2] == (slice(None),):
        return source
    if calls(node, F.pad) and isinstance(node.args[1], list | tuple) and len(node.args[1]) == 6:
        front, behind = node.args[1][4:]
        return source + front + behind if isinstance(front, int) and isinstance(behind, int) else None
    return None
