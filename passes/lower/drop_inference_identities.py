"""What does nothing in evaluation: dropout, identities, adaptive pooling to the size the map has already."""

from collections.abc import Iterator

from torch import fx, nn

from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import drops, module_calls, module_of
from bnnfx.graph.operators import Mode, operator_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.stage import Stage


class DropInferenceIdentities(Pass[LowerContext, fx.Node, None]):
    """Before: `y = dropout(x)`. After: readers of `y` read `x`."""

    requires = Stage.TRAINABLE
    ensures = Stage.TRAINABLE

    def match(self) -> Iterator[fx.Node]:
        """Dropouts, identities, and adaptive pooling whose output is as large as its input (the size is static)."""
        for node in list(self.gm.graph.nodes):
            if drops(self.gm, node) and (node.op == "call_module" or operator_of(self.gm, node).mode is Mode.DROPS):
                yield node
        for node in module_calls(self.gm, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
            shapes = self.context.shapes
            if not getattr(module_of(self.gm, node), "return_indices", False) and (
                shapes[node] == shapes[node.all_input_nodes[0]]
            ):
                yield node

    def allowed(self, match: fx.Node) -> None:
        """Always: nothing is lost."""

    def rewrite(self, match: fx.Node, plan: None) -> None:
        """Drop the node."""
        match.replace_all_uses_with(match.all_input_nodes[0])
        self.gm.graph.erase_node(match)

    def subject(self, match: fx.Node) -> str:
        """The node's name."""
        return match.name
