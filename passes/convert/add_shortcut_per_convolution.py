"""Bi-Real Net's structure: a shortcut around every convolution of a residual block instead of one around all."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import fx, nn

from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import is_add, is_batch_norm, is_kind, module_of
from bnnfx.graph.operators import Kind
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Block:
    """A residual block: the add that closes it and what it adds.

    Attributes:
        join: the add.
        stages: per convolution of the branch, the convolution and the last node of its batch norm (or itself).
        shortcut: the other operand of the add.
    """

    join: fx.Node
    stages: list[tuple[fx.Node, fx.Node]]
    shortcut: fx.Node


class AddShortcutPerConvolution(Pass[ConvertContext, Block, None]):
    """Rewrite residual blocks of two or more binary convolutions.

    Before: `add(bn2(conv2(act(bn1(conv1(x))))), shortcut(x))`. After: `y = act(add(bn1(conv1(x)), shortcut(x)))`,
    `add(bn2(conv2(y)), y)`: the block's own shortcut moves to its first convolution, the others get an identity.

    Allowed when every convolution but the first keeps the shape of its input.

    Source: Bi-Real Net (arXiv 1808.00278), one shortcut per convolution.
    """

    requires = Stage.CANONICAL
    ensures = Stage.CANONICAL

    def match(self) -> Iterator[Block]:
        """Adds of which one operand is a chain of several convolutions with a binary one among them."""
        if not self.context.options.get("shortcut_per_convolution"):
            return
        for node in list(self.gm.graph.nodes):
            if is_add(node):
                block = self._block(node)
                if block is not None:
                    yield block

    def allowed(self, match: Block) -> Refusal | None:
        """Every convolution must be binary, and every one behind the first must keep its input's shape."""
        for convolution, _ in match.stages:
            if not self.context.is_binary(convolution):
                return Refusal(
                    f"'{convolution.target}' in this block stays float, so the whole block stays as it is",
                    f"binarize '{convolution.target}': its own entry says how",
                )
        for convolution, _ in match.stages[1:]:
            layer = module_of(self.gm, convolution)
            assert layer is not None
            if layer.in_channels != layer.out_channels:
                return Refusal(
                    f"'{convolution.target}' changes the width from {layer.in_channels} to {layer.out_channels}, so no "
                    "identity fits around it",
                    f"give '{convolution.target}' as many output as input channels (a BasicBlock does)",
                )
            if not _keeps_size(layer):
                return Refusal(
                    f"'{convolution.target}' changes the size of its map, so no identity fits around it",
                    f"give '{convolution.target}' a stride of 1 and the padding that keeps the size",
                )
        return None

    def rewrite(self, match: Block, plan: None) -> None:
        """Add the block's shortcut behind its first convolution, and the running stream behind every other."""
        shortcut = match.shortcut
        for (_, end), (following, _) in pairwise(match.stages):
            with self.gm.graph.inserting_after(self._move_behind(end, shortcut)):
                joined = self.gm.graph.call_function(operator.add, (end, shortcut))
            for user in list(end.users):
                if user is not joined:
                    user.replace_input_with(end, joined)
            shortcut = following.all_input_nodes[0]
        match.join.args = (match.stages[-1][1], shortcut)

    def subject(self, match: Block) -> str:
        """The block, named by its first and last convolution."""
        return f"{match.stages[0][0].target} .. {match.stages[-1][0].target}"

    def layers(self, match: Block) -> tuple[str, ...]:
        """The block's convolutions."""
        return tuple(str(convolution.target) for convolution, _ in match.stages)

    def _block(self, join: fx.Node) -> Block | None:
        for branch, shortcut in (join.all_input_nodes, reversed(join.all_input_nodes)):
            stages, start = self._chain(branch)
            binary = len(stages) > 1 and any(self.context.is_binary(node) for node, _ in stages)
            if binary and (shortcut is start or self._starts_at(shortcut, start)):
                return Block(join, stages, shortcut)
        return None

    def _chain(self, node: fx.Node) -> tuple[list[tuple[fx.Node, fx.Node]], fx.Node]:
        """Convolutions with their batch norms on the chain that ends at `node`, first to last, and what it reads."""
        stages: list[tuple[fx.Node, fx.Node]] = []
        end: fx.Node | None = None
        while len(node.users) == 1:
            module = module_of(self.gm, node)
            if is_batch_norm(self.gm, node) and end is None:
                end = node
            elif isinstance(module, _CONVOLUTIONS):
                stages.insert(0, (node, end or node))
                end = None
            elif not is_kind(self.gm, node, Kind.ELEMENTWISE) or end is not None:
                break
            node = node.all_input_nodes[0]
        return stages, node

    def _starts_at(self, node: fx.Node, start: fx.Node) -> bool:
        while len(node.all_input_nodes) == 1 and node.op == "call_module":
            node = node.all_input_nodes[0]
            if node is start:
                return True
        return False

    def _move_behind(self, end: fx.Node, shortcut: fx.Node) -> fx.Node:
        """Move the nodes of the shortcut that stand after `end` right behind it; returns the last one there."""
        order = {node: index for index, node in enumerate(self.gm.graph.nodes)}
        late = []
        while order[shortcut] > order[end]:
            late.append(shortcut)
            shortcut = shortcut.all_input_nodes[0]
        for node in reversed(late):
            end.append(node)
            end = node
        return end


def _keeps_size(layer: Any) -> bool:
    if layer.padding == "same":
        return True
    padding = (0,) * len(layer.kernel_size) if layer.padding == "valid" else layer.padding
    return set(layer.stride) == {1} and all(
        2 * p == d * (k - 1) for p, d, k in zip(padding, layer.dilation, layer.kernel_size, strict=True)
    )
