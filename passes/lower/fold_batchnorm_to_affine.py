"""Batch norm behind a packed convolution whose float result survives: one scale and one bias per channel."""

from collections.abc import Iterator

from torch import fx

from bnnfx.graph import edit
from bnnfx.graph.affine import Affine, affine_of
from bnnfx.graph.chain import CONVOLUTION, is_per_channel
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import calls, constant, is_view, module_of, sole_user
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal, Role
from bnnfx.graph.stage import Stage
from bnnfx.ops.steps import step_of, with_shifts


class FoldBatchNormToAffine(Pass[LowerContext, fx.Node, tuple[fx.Node, Affine]]):
    """Before: `batch_norm(binary_conv2d(x, w, s, b))`. After: `binary_conv2d(x, w, s A, (b - mean) A + beta)`.

    `A = gamma / sqrt(var + eps)`, computed in double and rounded once. Likewise for any other product or sum with
    constants per channel: see `bnnfx.graph.affine`. The result can differ from the batch norm's in the last place, as
    the batch norm rounds its own intermediate values; `verify` counts the bits that this turns.
    """

    requires = Stage.PACKED
    ensures = Stage.PACKED
    role = Role.FUSES

    def match(self) -> Iterator[fx.Node]:
        """Batch norms that read a packed convolution (behind a linear layer: its flattened result)."""
        for node in list(self.gm.graph.nodes):
            if self._affine(node) is not None and self._convolution(node) is not None:
                yield node

    def allowed(self, match: fx.Node) -> tuple[fx.Node, Affine] | Refusal:
        """Nothing else may read the value before the batch norm; the plan is the convolution and the affine map."""
        convolution, affine = self._convolution(match), self._affine(match)
        assert convolution is not None and affine is not None
        node = affine.source
        while True:
            if len(node.users) != 1:
                return Refusal(
                    f"'{node.name}' is read without its batch norm too", "let every reader read the batch norm's result"
                )
            if node is convolution:
                return convolution, affine
            node = node.all_input_nodes[0]

    def rewrite(self, match: fx.Node, plan: tuple[fx.Node, Affine]) -> None:
        """Replace the convolution's scale and bias, and drop the batch norm."""
        convolution, affine = plan
        scale, bias = (constant(self.gm, node) for node in convolution.args[2:4])
        folded = [tensor.float() for tensor in affine.behind(scale, bias)]
        with self.gm.graph.inserting_before(convolution):
            for index, what, tensor in zip((2, 3), ("scale", "bias"), folded, strict=True):
                convolution.update_arg(index, edit.add_buffer(self.gm, f"{match.name}_{what}", tensor))
        match.replace_all_uses_with(affine.source)
        self.gm.graph.erase_node(match)

    def subject(self, match: fx.Node) -> str:
        """The batch norm's node name."""
        return match.name

    def layers(self, match: fx.Node) -> tuple[str, ...]:
        """The layer in front of the batch norm."""
        return self.context.layers_of(self._convolution(match))

    def _affine(self, node: fx.Node) -> Affine | None:
        shape = self.context.shapes.get(node)
        affine = affine_of(self.gm, node, None if shape is None else len(shape))
        if affine is not None and bool((affine.scale == 1).all()) and self._starts_shifted_step(node):
            return None  # a shift is a part of that step
        return affine

    def _starts_shifted_step(self, node: fx.Node) -> bool:
        found = step_of(module_of(self.gm, sole_user(node)))
        return found is not None and with_shifts(found[0]) is not None

    def _convolution(self, node: fx.Node) -> fx.Node | None:
        affine = self._affine(node)
        source = None if affine is None else affine.source
        if is_view(source):
            assert source is not None
            if not is_per_channel(self.gm, source, self.context.shapes):
                return None  # of a map: the batch norm has more channels than the convolution
            source = source.all_input_nodes[0]
        return source if calls(source, CONVOLUTION) else None
