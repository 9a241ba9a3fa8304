"""Two copies of a packed convolution's map: its accumulators, used twice."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from bnnfx.graph import edit
from bnnfx.graph.chain import CONVOLUTION, is_per_channel
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import calls, constant, is_replication, is_view
from bnnfx.graph.operators import Kind, call_of, operator_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage


@dataclass
class Replication:
    """A replication, what stands in front of it (nearest to the source first), and where that starts."""

    copies: fx.Node
    between: list[fx.Node]
    source: fx.Node


class FuseReplicationIntoConvolution(Pass[LowerContext, Replication, None]):
    """Before: `z = f(binary_conv2d(...)); cat([z, z], 1)`. After: `f(binary_conv2d(..., copies=2))`.

    f may be max-pooling, an activation function without a parameter per channel, and the view behind a linear layer:
    what does the same to every channel does it to the copies as well.
    """

    requires = Stage.PACKED
    ensures = Stage.PACKED

    def match(self) -> Iterator[Replication]:
        """Every replication on the axis of the channels."""
        for node in [node for node in self.gm.graph.nodes if is_replication(node)]:
            between: list[fx.Node] = []
            current = node.all_input_nodes[0]
            while not calls(current, CONVOLUTION) and self._alike(current):
                between.append(current)
                current = current.all_input_nodes[0]
            yield Replication(node, between[::-1], current)

    def allowed(self, match: Replication) -> Refusal | None:
        """It must be a convolution's map, and nobody may read it before it is replicated."""
        if not calls(match.source, CONVOLUTION):
            return Refusal(
                f"stays a node: it replicates what '{match.source.name}' gives, not a packed convolution",
                "put nothing but max-pooling and activations that treat channels alike between it and a binary layer",
            )
        for node in (match.source, *match.between):
            if len(node.users) != 1:
                return Refusal(
                    f"stays a node: '{node.name}' is also read without its copy", "let all readers read the copies"
                )
        if match.source.args[-1] != 1:
            return Refusal("stays a node: the map is replicated already", "replicate it once")
        return None

    def rewrite(self, match: Replication, plan: None) -> None:
        """Take the replication out; scale and bias of the convolution get a copy, too."""
        convolution = match.source
        with self.gm.graph.inserting_before(convolution):
            for index, what in ((2, "scale"), (3, "bias")):
                value = constant(self.gm, convolution.args[index]).repeat(2)
                convolution.update_arg(index, edit.add_buffer(self.gm, f"{convolution.name}_{what}", value))
        convolution.args = (*convolution.args[:-1], 2)
        for node in (convolution, *match.between):
            batch, channels, *rest = self.context.shapes[node]
            self.context.shapes[node] = torch.Size((batch, 2 * channels, *rest))
        match.copies.replace_all_uses_with(match.copies.all_input_nodes[0])
        self.gm.graph.erase_node(match.copies)

    def subject(self, match: Replication) -> str:
        """Name of the node that replicates."""
        return match.copies.name

    def _alike(self, node: fx.Node) -> bool:
        """Whether a node does the same to every channel, and to each apart."""
        row, call = operator_of(self.gm, node), call_of(self.gm, node)
        if row.kind is Kind.POOL:
            return row.keeps_shift(call) and bool(row.monotone(call))
        per_channel = is_per_channel(self.gm, node, self.context.shapes)
        return per_channel and (is_view(node) or (row.kind is Kind.ELEMENTWISE and not row.per_channel(call)))
