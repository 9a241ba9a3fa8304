"""Two copies of a binary layer's normalized map: each with a batch norm of its own, over one convolution."""

from collections.abc import Iterator

from torch import fx

from bnnfx.graph.dataflow import is_replication, module_of, sole_user
from bnnfx.graph.halved_channels import (
    axis_of_halves,
    is_called_once,
    normalizes,
    reads_bits,
    replication_of,
    widen_batch_norm,
)
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage


class ReplicateBeforeBatchNorm(Pass[None, fx.Node, None]):
    """Before: `y = bn(u); [y, y]`. After: a batch norm of twice the channels over `[u, u]`, which has no shift.

    The branch of a residual block adds to both halves of the stream; with a batch norm for each, fine-tuning can let
    them differ. Allowed behind a layer that reads bits, as in the authors' code: the float layers of a shortcut and
    their batch norms are computed once.
    """

    requires = Stage.TRAINABLE
    ensures = Stage.TRAINABLE

    def match(self) -> Iterator[fx.Node]:
        """Replications of what a batch norm gives."""
        for node in list(self.gm.graph.nodes):
            if is_replication(node) and normalizes(self.gm, node.all_input_nodes[0], axis_of_halves(node)):
                yield node

    def allowed(self, match: fx.Node) -> Refusal | None:
        """Only the replication reads it, and it normalizes a layer that reads bits."""
        batch_norm = match.all_input_nodes[0]
        if not is_called_once(self.gm, batch_norm):
            return Refusal(
                "stays one for both halves: it is called several times", "give each call a batch norm of its own"
            )
        if sole_user(batch_norm) is not match:
            return Refusal(
                "stays one for both halves: it is also read as one map", "let only the sum with the shortcut read it"
            )
        if not reads_bits(self.gm, batch_norm):
            return Refusal("stays one for both halves: no layer on bits is in front of it")
        return None

    def rewrite(self, match: fx.Node, plan: None) -> None:
        """Widen the batch norm, and replicate in front of it."""
        batch_norm = match.all_input_nodes[0]
        module = module_of(self.gm, batch_norm)
        assert module is not None
        source = batch_norm.all_input_nodes[0]
        axis = axis_of_halves(match)
        match.replace_all_uses_with(batch_norm)
        self.gm.graph.erase_node(match)
        batch_norm.replace_input_with(source, replication_of(source, axis))
        widen_batch_norm(module, 0.0)

    def subject(self, match: fx.Node) -> str:
        """The batch norm's qualified name."""
        return str(match.all_input_nodes[0].target)
