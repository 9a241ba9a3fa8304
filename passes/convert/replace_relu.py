"""ReLUs beside binary layers: replaced as the scheme says, because a sign behind a ReLU is constant.

An activation with levels from 0 up has the ReLU inside: it gives 0 to all that is negative.
"""

from collections.abc import Iterator

from torch import fx

from bnnfx.graph import edit
from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import (
    BATCH_NORMS,
    DROPOUTS,
    POOLS,
    RELUS,
    is_add,
    module_calls,
    module_of,
    relus_reaching,
)
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.schemes import get_scheme, schemes


class ReplaceRelu(Pass[ConvertContext, fx.Node, None]):
    """Before: `relu` that feeds a binary layer or is fed by one. After: the scheme's non-linearity, or nothing."""

    requires = Stage.CANONICAL
    ensures = Stage.CANONICAL

    def __init__(self, gm: fx.GraphModule, context: ConvertContext) -> None:
        super().__init__(gm, context)
        self._feeding = {
            relu
            for node in gm.graph.nodes
            if context.is_binary(node)
            for relu in relus_reaching(gm, node.all_input_nodes[0])
        }
        self._absorbed = all(context.absorbs_relu(name) for name in context.binary)

    def match(self) -> Iterator[fx.Node]:
        """ReLU and ReLU6 with a binary layer on one of their sides, and no other layer between."""
        for node in module_calls(self.gm, RELUS):
            if node in self._feeding or self._fed(node.all_input_nodes[0]):
                yield node

    def allowed(self, match: fx.Node) -> Refusal | None:
        """A ReLU that is the only non-linearity between a binary and a float layer is not simply removed.

        Nor is one behind an add, unless the scheme's networks have no ReLU at all: where activations absorb the ReLU in
        front of them, the others are left as the published networks have them.
        """
        removed = self.context.scheme.nonlinearity is None
        closes_block = is_add(match.all_input_nodes[0]) and not self._absorbed
        if removed and match not in self._feeding and not closes_block:
            others = [name for name in schemes() if get_scheme(name).nonlinearity is not None]
            return Refusal(
                "stays: it feeds float layers only, and without it two layers would collapse into one linear map",
                f"convert with scheme {' or '.join(map(repr, others))}, which puts another non-linearity there",
            )
        return None

    def rewrite(self, match: fx.Node, plan: None) -> None:
        """Put the scheme's non-linearity in its place."""
        new = match.all_input_nodes[0]
        nonlinearity = self.context.scheme.nonlinearity
        if nonlinearity is not None:
            module = nonlinearity()
            target = edit.add_module(self.gm, str(match.target), type(module).__name__.lower(), module)
            with self.gm.graph.inserting_after(match):
                new = self.gm.graph.call_module(target, (new,))
        match.replace_all_uses_with(new)
        self.gm.graph.erase_node(match)

    def subject(self, match: fx.Node) -> str:
        """The node's name: one ReLU module is often called several times."""
        return match.name

    def _fed(self, node: fx.Node) -> bool:
        if self.context.is_binary(node):
            return True
        passage = isinstance(module_of(self.gm, node), (*BATCH_NORMS, *POOLS, *DROPOUTS)) or is_add(node)
        return passage and any(self._fed(source) for source in node.all_input_nodes)
