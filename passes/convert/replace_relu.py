"""ReLUs beside binary layers: replaced as the scheme says, because a sign behind a ReLU is constant.

An activation with levels from 0 up has the ReLU inside: it gives 0 to all that is negative.
"""

from collections.abc import Iterator

from torch import fx

from bnnfx.graph import edit
from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import is_add, is_batch_norm, is_kind
from bnnfx.graph.operators import Kind, Mode, operator_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.graph.value_flow import follow_values
from bnnfx.schemes import get_scheme, schemes


class ReplaceRelu(Pass[ConvertContext, fx.Node, None]):
    """Before: `relu` that feeds a binary layer or is fed by one. After: the scheme's non-linearity, or nothing."""

    requires = Stage.CANONICAL
    ensures = Stage.CANONICAL

    def __init__(self, gm: fx.GraphModule, context: ConvertContext) -> None:
        super().__init__(gm, context)
        values = follow_values(gm)
        binary = [node for node in gm.graph.nodes if context.is_binary(node)]
        self._feeding = {relu for node in binary for relu in values[node.all_input_nodes[0]].relus}
        self._fed: set[fx.Node] = set()
        for node in gm.graph.nodes:
            if context.is_binary(node) or (self._passes_on(node) and self._fed & {*node.all_input_nodes}):
                self._fed.add(node)
        self._absorbed = all(context.absorbs_relu(name) for name in context.binary)

    def match(self) -> Iterator[fx.Node]:
        """ReLU and ReLU6 with a binary layer on one of their sides, and no other layer between."""
        for node in list(self.gm.graph.nodes):
            if operator_of(self.gm, node).replaced and (node in self._feeding or node.all_input_nodes[0] in self._fed):
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

    def _passes_on(self, node: fx.Node) -> bool:
        drops = operator_of(self.gm, node).mode is Mode.DROPS
        return is_batch_norm(self.gm, node) or is_kind(self.gm, node, Kind.POOL) or drops or is_add(node)
