"""Sizes that are computed to numbers: but for the batch, a packed graph has those of the example inputs."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from bnnfx.graph.canonical import canonical_call, spell
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import calls
from bnnfx.graph.known_sizes import KnownSizes
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.stage import Stage
from bnnfx.private_interfaces import assertion


class SettleSizes(Pass[LowerContext, tuple[fx.Node, Any], None]):
    """Before: `y.view(x.shape[0], x.shape[1] * 2)`. After: `y.view(x.shape[0], 16)`, and no assertion about sizes.

    A call that has all its numbers then has its canonical spelling, too: `F.avg_pool2d(y, y.shape[2])` is a module.
    What reads the size of a map would otherwise be a reader of the map, and keep it from being packed.
    """

    requires = Stage.TRAINABLE
    ensures = Stage.TRAINABLE

    def match(self) -> Iterator[tuple[fx.Node, Any]]:
        """Numbers that the example inputs settle, and assertions about them."""
        known = KnownSizes(self.gm, self.context.inputs)
        nodes = list(self.gm.graph.nodes)
        for node in nodes:
            known.run(node)
        for node in nodes:
            if calls(node, assertion):
                if node.args[0] is True:
                    yield node, None
            elif (number := known.number(node)) is not None:
                yield node, tuple(number) if isinstance(number, torch.Size) else number

    def allowed(self, match: tuple[fx.Node, Any]) -> None:
        """Always: an assertion that did not hold was found when the shapes were."""

    def rewrite(self, match: tuple[fx.Node, Any], plan: None) -> None:
        """Give the number to whatever reads it."""
        node, number = match
        readers = list(node.users)
        for user in list(node.users):
            user.args = fx.node.map_arg(user.args, lambda source: number if source is node else source)
            user.kwargs = fx.node.map_arg(user.kwargs, lambda source: number if source is node else source)
        self.gm.graph.erase_node(node)
        for reader in readers:
            call = canonical_call(self.gm, reader)
            if call is not None:
                self.context.shapes[spell(self.gm, reader, call)] = self.context.shapes[reader]

    def subject(self, match: tuple[fx.Node, Any]) -> str:
        """The node's name."""
        return match[0].name
