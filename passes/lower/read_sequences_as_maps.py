"""Tokens and sequences between binary layers as the maps that they are: views only at a region's border."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from bnnfx.graph import edit
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import calls, constant, is_flatten, module_of
from bnnfx.graph.operators import Kind, Mode, call_of, operator_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.readings import READINGS, Reading
from bnnfx.graph.stage import Stage
from bnnfx.nn.frozen_norm import frozen_batch_norm
from bnnfx.nn.halves import halves_by_group, mean_of_halves, shift_halves


@dataclass
class Rule:
    """What is done to a reader.

    Attributes:
        reading: how what it reads is a map.
        apply: what does it.
    """

    reading: Reading
    apply: Callable[[fx.Node, Reading], None]


_ON_AN_AXIS = (torch.cat, shift_halves, mean_of_halves)


class ReadSequencesAsMaps(Pass[LowerContext, fx.Node, Rule]):
    """Before: `as_map(f(as_tokens(y)))`. After: `f(y)`, whose channels are axis 1 as everywhere behind this pass.

    Likewise for sequences `[N, C, L]`, which are maps of one row. What f may be: nothing, a frozen batch norm over the
    channels, an activation, a sum or product with another tensor or with constants per channel, and what `split` does
    to halves of the channels; of sequences also a pooling, which is one of a map then, and `flatten`. It is moved to
    the map whoever reads its result, for what follows a packed convolution is folded or fused as far as it works on its
    map.
    """

    requires = Stage.PACKED
    ensures = Stage.PACKED

    def match(self) -> Iterator[fx.Node]:
        """Readers of what is read from a map, in graph order, so that those of what was moved are met later."""
        node = next(iter(self.gm.graph.nodes))
        while node.op != "root":
            following = node.next
            if self._rule(node) is not None:
                yield node
            node = following

    def allowed(self, match: fx.Node) -> Rule:
        """There is a rule for each."""
        rule = self._rule(match)
        assert rule is not None
        return rule

    def rewrite(self, match: fx.Node, plan: Rule) -> None:
        """Apply it."""
        with self.gm.graph.inserting_before(match):
            plan.apply(match, plan.reading)

    def subject(self, match: fx.Node) -> str:
        """The node's name."""
        return match.name

    def layers(self, match: fx.Node) -> tuple[str, ...]:
        """The layers whose maps it reads."""
        maps = (self._map(source, reading) for reading in READINGS for source in match.all_input_nodes)
        return tuple(layer for source in maps for layer in self.context.layers_of(source))

    def _map(self, node: object, reading: Reading) -> fx.Node | None:
        return reading.map_of(node, self.context.shapes) if isinstance(node, fx.Node) else None

    def _rule(self, reader: fx.Node) -> Rule | None:
        for reading in READINGS:
            apply = self._applied(reader, reading)
            if apply is not None:
                return Rule(reading, apply)
        return None

    def _applied(self, reader: fx.Node, reading: Reading) -> Callable[[fx.Node, Reading], None] | None:
        values = reading.values_of(reader, self.context.shapes)
        if values is not None:
            return self._cancel if self._map(values, reading) is not None else None
        sources = [source for source in reader.all_input_nodes if source.op != "get_attr"]
        maps = [self._map(source, reading) for source in sources]
        if not any(maps):
            return None
        if calls(reader, frozen_batch_norm):
            return self._normalize if self._axis_of(reader) == reading.channel_axis else None
        if any(calls(reader, function) for function in _ON_AN_AXIS):
            axis = self._axis_of(reader)
            on_channels = isinstance(axis, int) and (axis - reading.channel_axis) % self._axes(reader) == 0
            return self._on_channels if on_channels and all(maps) else None
        if calls(reader, halves_by_group):
            return self._move if reading.channel_axis == 1 else None
        row, call = operator_of(self.gm, reader), call_of(self.gm, reader)
        if row.kind is Kind.ELEMENTWISE and row.mode is Mode.SAME and sources == reader.all_input_nodes:
            on_its_axis = reading.channel_axis == 1 or not row.per_channel(call)
            return self._move if on_its_axis else None
        if row.kind is Kind.JOIN and not call.arguments and all(self._joins(arg, reading) for arg in reader.args):
            alike = {self.context.shapes.get(source) for source in sources}
            return self._move if alike == {self.context.shapes.get(reader)} else None
        if reading.channel_axis == 1 and is_flatten(reader):
            return self._flatten
        if reading.channel_axis == 1 and _pool_of_maps(module_of(self.gm, reader)) is not None:
            return self._pool
        return None

    def _axes(self, node: fx.Node) -> int:
        return len(self.context.shapes[node])

    def _axis_of(self, reader: fx.Node) -> Any:
        """The axis of the channels, as what works on them is told."""
        if calls(reader, torch.cat):
            return reader.args[1] if len(reader.args) > 1 else 0
        if calls(reader, frozen_batch_norm):
            return reader.args[6] if len(reader.args) > 6 else 1
        return reader.kwargs.get("axis", 1)

    def _joins(self, operand: object, reading: Reading) -> bool:
        """Whether an operand is a number, a tensor, or a constant that the map can be joined with."""
        if not isinstance(operand, fx.Node):
            return isinstance(operand, int | float)
        return operand.op != "get_attr" or reading.constant(constant(self.gm, operand)) is not None

    def _cancel(self, reader: fx.Node, reading: Reading) -> None:
        source = self._map(reading.values_of(reader, self.context.shapes), reading)
        assert source is not None
        reader.replace_all_uses_with(source)
        self.gm.graph.erase_node(reader)

    def _normalize(self, reader: fx.Node, reading: Reading) -> None:
        source = self._map(reader.args[0], reading)
        assert source is not None
        self._finish(reader, self.gm.graph.call_function(frozen_batch_norm, (source, *reader.args[1:6])), reading)

    def _on_channels(self, reader: fx.Node, reading: Reading) -> None:
        moved = self.gm.graph.node_copy(reader, lambda operand: self._as_map(operand, reader, reading))
        if calls(moved, torch.cat):
            moved.args, moved.kwargs = (moved.args[0], 1), {}
        else:
            moved.kwargs = {}
        self._finish(reader, moved, reading)

    def _move(self, reader: fx.Node, reading: Reading) -> None:
        """Let it work on maps; what is none yet is read as one."""
        moved = self.gm.graph.node_copy(reader, lambda operand: self._as_map(operand, reader, reading))
        self._finish(reader, moved, reading)

    def _pool(self, reader: fx.Node, reading: Reading) -> None:
        """Pool the map's only row."""
        pool, source = _pool_of_maps(module_of(self.gm, reader)), self._map(reader.args[0], reading)
        assert pool is not None and source is not None
        target = edit.add_module(self.gm, str(reader.target), "of_map", pool)
        self._finish(reader, self.gm.graph.call_module(target, (source,)), reading)

    def _flatten(self, reader: fx.Node, reading: Reading) -> None:
        """Flatten the map, which has the values in the same order."""
        source = self._map(reader.args[0], reading)
        assert source is not None
        reader.update_arg(0, source)

    def _as_map(self, operand: fx.Node, reader: fx.Node, reading: Reading) -> fx.Node:
        source = self._map(operand, reading)
        if source is not None:
            return source
        if operand.op != "get_attr":
            shapes = self.context.shapes
            return reading.read_before(operand, reader, shapes) or reading.read(operand, shapes)
        value = reading.constant(constant(self.gm, operand))
        assert value is not None
        return edit.add_buffer(self.gm, f"{operand.target}_per_channel", value)

    def _finish(self, reader: fx.Node, moved: fx.Node, reading: Reading) -> None:
        shape = self.context.shapes[reader]
        self.context.shapes[moved] = reading.of(torch.empty(shape, device="meta")).shape
        name = reader.name
        reader.replace_all_uses_with(reading.back(moved, shape, self.context.shapes))
        self.gm.graph.erase_node(reader)
        moved.name = name


def _pool_of_maps(pool: nn.Module | None) -> nn.Module | None:
    """What pools the only row of a map as this module pools a sequence; None if it is no such module."""
    if getattr(pool, "return_indices", False):
        return None
    if type(pool) is nn.AdaptiveAvgPool1d:
        return nn.AdaptiveAvgPool2d(_row(1, pool.output_size))
    if type(pool) is nn.AdaptiveMaxPool1d:
        return nn.AdaptiveMaxPool2d(_row(1, pool.output_size))
    if type(pool) is nn.MaxPool1d:
        kernel, stride, padding = _row(1, pool.kernel_size), _row(1, pool.stride), _row(0, pool.padding)
        return nn.MaxPool2d(kernel, stride, padding, _row(1, pool.dilation), ceil_mode=pool.ceil_mode)
    if type(pool) is nn.AvgPool1d:
        kernel, stride, padding = _row(1, pool.kernel_size), _row(1, pool.stride), _row(0, pool.padding)
        return nn.AvgPool2d(kernel, stride, padding, pool.ceil_mode, pool.count_include_pad)
    return None


def _row(value: int, of_columns: Any) -> tuple[int, int]:
    """What a pooling does along a row, beside what it does along columns: a number, or a tuple of one."""
    return value, int(of_columns[0] if isinstance(of_columns, tuple | list) else of_columns)
