"""Aliases of an operation to its one canonical spelling."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import fx, nn

from bnnfx.graph.canonical import canonical_call, spell
from bnnfx.graph.context import ConvertContext
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.stage import Stage

Call = tuple[nn.Module | Callable[..., Any], tuple[Any, ...]]
"""A module or function to call, and its arguments."""


class CanonicalizeCalls(Pass[ConvertContext, fx.Node, Call]):
    """Before: `F.relu(x)`, `x.view(x.size(0), -1)`, `x.add_(y)`. After: `nn.ReLU`, `torch.flatten`, `operator.add`."""

    requires = Stage.TRACED
    ensures = Stage.CANONICAL

    def match(self) -> Iterator[fx.Node]:
        """Nodes that the table of aliases knows."""
        for node in list(self.gm.graph.nodes):
            if canonical_call(self.gm, node) is not None:
                yield node

    def allowed(self, match: fx.Node) -> Call:
        """Its canonical spelling."""
        call = canonical_call(self.gm, match)
        assert call is not None
        return call

    def rewrite(self, match: fx.Node, plan: Call) -> None:
        """Put the canonical call in the node's place."""
        shape, values = self.context.shapes.get(match), self.context.ranges.get(match)
        new = spell(self.gm, match, plan)
        if shape is not None:
            self.context.shapes[new] = shape
        if values is not None:
            self.context.ranges[new] = values

    def subject(self, match: fx.Node) -> str:
        """The node's name."""
        return match.name
