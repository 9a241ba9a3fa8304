"""Batch norm behind a packed convolution whose float result survives: one scale and one bias per channel."""

from collections.abc import Iterator

from torch import fx
from torch.nn import functional as F

from bnnfx.graph import edit
from bnnfx.graph.batch_norm import behind_affine
from bnnfx.graph.chain import CONVOLUTION, is_per_channel
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import calls, constant, is_view
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage


class FoldBatchNormToAffine(Pass[LowerContext, fx.Node, fx.Node]):
    """Before: `batch_norm(binary_conv2d(x, w, s, b))`. After: `binary_conv2d(x, w, s A, (b - mean) A + beta)`.

    `A = gamma / sqrt(var + eps)`, computed in double and rounded once. The result can differ from the batch norm's in
    the last place, as the batch norm rounds its own intermediate values; `verify` counts the bits that this turns.
    """

    requires = Stage.PACKED
    ensures = Stage.PACKED

    def match(self) -> Iterator[fx.Node]:
        """Batch norms that read a packed convolution (behind a linear layer: its flattened result)."""
        for node in list(self.gm.graph.nodes):
            if calls(node, F.batch_norm) and self._convolution(node) is not None:
                yield node

    def allowed(self, match: fx.Node) -> fx.Node | Refusal:
        """Nothing else may read the value before the batch norm; the plan is the convolution."""
        convolution = self._convolution(match)
        assert convolution is not None
        node = match
        while node is not convolution:
            node = node.all_input_nodes[0]
            if len(node.users) != 1:
                return Refusal(
                    f"'{node.name}' is read without its batch norm too", "let every reader read the batch norm's result"
                )
        return convolution

    def rewrite(self, match: fx.Node, plan: fx.Node) -> None:
        """Replace the convolution's scale and bias, and drop the batch norm."""
        scale, bias = (constant(self.gm, node) for node in plan.args[2:4])
        folded = [tensor.float() for tensor in behind_affine(self.gm, match, scale, bias)]
        with self.gm.graph.inserting_before(plan):
            for index, what, tensor in zip((2, 3), ("scale", "bias"), folded, strict=True):
                plan.update_arg(index, edit.add_buffer(self.gm, f"{match.name}_{what}", tensor))
        match.replace_all_uses_with(match.args[0])  # type: ignore[arg-type]
        self.gm.graph.erase_node(match)

    def subject(self, match: fx.Node) -> str:
        """The batch norm's node name."""
        return match.name

    def layers(self, match: fx.Node) -> tuple[str, ...]:
        """The layer in front of the batch norm."""
        return self.context.layers_of(self._convolution(match))

    def _convolution(self, batch_norm: fx.Node) -> fx.Node | None:
        source = batch_norm.args[0]
        if isinstance(source, fx.Node) and is_view(source):
            if not is_per_channel(self.gm, source, self.context.shapes):
                return None  # of a map: the batch norm has more channels than the convolution
            source = source.args[0]
        return source if isinstance(source, fx.Node) and calls(source, CONVOLUTION) else None
