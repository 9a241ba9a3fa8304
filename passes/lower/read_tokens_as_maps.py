"""Tokens between binary layers as the maps that they are: views only at a region's border."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from bnnfx.graph import edit
from bnnfx.graph.channels_last import map_of_tokens, read_as_map, read_as_tokens, tokens_of_map
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import calls, constant
from bnnfx.graph.operators import Kind, Mode, call_of, operator_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.stage import Stage
from bnnfx.nn.frozen_norm import frozen_batch_norm
from bnnfx.nn.halves import mean_of_halves, shift_halves

Rule = Callable[[fx.Node], None]
"""What is done to a reader of tokens."""

_ON_AN_AXIS = (torch.cat, shift_halves, mean_of_halves)


class ReadTokensAsMaps(Pass[LowerContext, fx.Node, Rule]):
    """Before: `as_map(f(as_tokens(y)))`. After: `f(y)`, whose channels are axis 1 as everywhere behind this pass.

    What f may be: nothing, a frozen batch norm over the last axis, an activation, a sum or product with another tensor
    or with constants per channel, and what `split` does to halves of the channels. It is moved to the map whoever reads
    its result, for what follows a packed convolution is folded or fused as far as it works on its map.
    """

    requires = Stage.PACKED
    ensures = Stage.PACKED

    def match(self) -> Iterator[fx.Node]:
        """Readers of a map's tokens, in graph order, so that those of what was moved are met later."""
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
            plan(match)

    def subject(self, match: fx.Node) -> str:
        """The node's name."""
        return match.name

    def layers(self, match: fx.Node) -> tuple[str, ...]:
        """The layers whose maps it reads."""
        maps = (self._map(source) for source in match.all_input_nodes)
        return tuple(layer for source in maps for layer in self.context.layers_of(source))

    def _map(self, node: object) -> fx.Node | None:
        return map_of_tokens(node, self.context.shapes) if isinstance(node, fx.Node) else None

    def _rule(self, reader: fx.Node) -> Rule | None:
        tokens = tokens_of_map(reader)
        if tokens is not None:
            return self._cancel if self._map(tokens) is not None else None
        sources = [source for source in reader.all_input_nodes if source.op != "get_attr"]
        if all(self._map(source) is None for source in sources):
            return None
        if calls(reader, frozen_batch_norm):
            return self._normalize if reader.args[6:] else None
        if any(calls(reader, function) for function in _ON_AN_AXIS):
            on_channels = self._axis_of(reader) in (-1, self._axes(reader) - 1)
            return self._on_channels if on_channels and all(map(self._map, sources)) else None
        row, call = operator_of(self.gm, reader), call_of(self.gm, reader)
        if row.kind is Kind.ELEMENTWISE and row.mode is Mode.SAME and sources == reader.all_input_nodes:
            return None if row.per_channel(call) else self._move
        if row.kind is Kind.JOIN and not call.arguments and all(map(self._joins, reader.args)):
            alike = {self.context.shapes.get(source) for source in sources}
            return self._move if alike == {self.context.shapes.get(reader)} else None
        return None

    def _axes(self, node: fx.Node) -> int:
        return len(self.context.shapes[node])

    def _axis_of(self, reader: fx.Node) -> Any:
        """The axis of the channels, as what works on halves of them is told."""
        if calls(reader, torch.cat):
            return reader.args[1] if len(reader.args) > 1 else 0
        return reader.kwargs.get("axis", 1)

    def _joins(self, operand: object) -> bool:
        """Whether an operand is a number, a tensor, or a constant that varies with the last axis at most."""
        if not isinstance(operand, fx.Node):
            return isinstance(operand, int | float)
        if operand.op != "get_attr":
            return True
        value = constant(self.gm, operand)
        return value.numel() == (value.shape[-1] if value.ndim else 1)

    def _cancel(self, reader: fx.Node) -> None:
        source = self._map(tokens_of_map(reader))
        assert source is not None
        reader.replace_all_uses_with(source)
        self.gm.graph.erase_node(reader)

    def _normalize(self, reader: fx.Node) -> None:
        source = self._map(reader.args[0])
        assert source is not None
        self._finish(reader, self.gm.graph.call_function(frozen_batch_norm, (source, *reader.args[1:6])))

    def _on_channels(self, reader: fx.Node) -> None:
        moved = self.gm.graph.node_copy(reader, self._as_map)
        if calls(reader, torch.cat):
            moved.args, moved.kwargs = (moved.args[0], 1), {}
        else:
            moved.kwargs = {}
        self._finish(reader, moved)

    def _move(self, reader: fx.Node) -> None:
        """Let it work on maps; what is none yet is read as one."""
        self._finish(reader, self.gm.graph.node_copy(reader, self._as_map))

    def _as_map(self, operand: fx.Node) -> fx.Node:
        source = self._map(operand)
        if source is not None:
            return source
        if operand.op != "get_attr":
            return read_as_map(operand, self.context.shapes)
        value = constant(self.gm, operand)
        return edit.add_buffer(self.gm, f"{operand.target}_per_channel", value.reshape(-1, 1, 1))

    def _finish(self, reader: fx.Node, moved: fx.Node) -> None:
        shape = self.context.shapes[reader]
        batch, *between, columns, channels = shape
        self.context.shapes[moved] = torch.Size((batch, channels, torch.Size(between).numel(), columns))
        name = reader.name
        reader.replace_all_uses_with(read_as_tokens(moved, shape, self.context.shapes))
        self.gm.graph.erase_node(reader)
        moved.name = name
