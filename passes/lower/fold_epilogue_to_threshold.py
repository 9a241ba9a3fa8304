"""Everything between an accumulator and a sign to one integer comparison per channel."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from bnnfx.graph import edit
from bnnfx.graph.chain import (
    CONVOLUTION,
    PACK,
    accumulators_of,
    is_per_channel,
    shared_by,
    table_of_bits,
    upstream,
    value_source,
)
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import calls, is_kind
from bnnfx.graph.operators import Kind
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.numerics.bits import pack_bits
from bnnfx.numerics.thresholds import IntegerThreshold, from_table
from bnnfx.ops.binary_conv2d_threshold import BINARY_CONV2D_THRESHOLD


@dataclass
class Epilogue:
    """A `pack`, the nodes before it in order, and what they start from: a packed convolution, or not."""

    start: fx.Node
    chain: list[fx.Node]
    pack: fx.Node


class FoldEpilogueToThreshold(Pass[LowerContext, Epilogue, IntegerThreshold]):
    """Before: `pack(f(binary_conv2d(...)))`, f: batch norm, clamps ... After: `binary_conv2d_threshold(...)`.

    An accumulator takes finitely many values: f and the comparison are evaluated at each, as the graph itself would,
    and the table is replaced by `(z >= threshold) xor flip`. The bits are equal for every input, by construction.
    """

    requires = Stage.PACKED
    ensures = Stage.PACKED

    def match(self) -> Iterator[Epilogue]:
        """Every pack, with what is before it back to a packed convolution or to where several values meet."""
        for pack in [node for node in self.gm.graph.nodes if calls(node, PACK)]:
            chain: list[fx.Node] = []
            for node in upstream(pack):
                if calls(node, CONVOLUTION) or value_source(node) is None:
                    yield Epilogue(node, chain[::-1], pack)
                    break
                chain.append(node)

    def allowed(self, match: Epilogue) -> IntegerThreshold | Refusal:
        """Only bits may be read, value by value, and each channel must be monotone in its accumulator."""
        if not calls(match.start, CONVOLUTION):
            return Refusal(f"its values come from '{match.start.name}', not from one packed convolution alone")
        if not isinstance(match.pack.args[1], fx.Node) or match.pack.args[1].op != "get_attr":
            return Refusal(
                "the threshold is computed from the activations at run time (centring), so nothing folds into integers",
                "convert without centring: Config(options={'centre': False})",
            )
        for node in (match.start, *match.chain):
            if len(node.users) != 1:
                return Refusal(
                    f"'{node.name}' is also read as float, so the float stream stays",
                    f"let '{node.name}' have one reader, the binary layer; a residual network needs the stream",
                )
        mixing = [node for node in match.chain if not is_per_channel(self.gm, node, self.context.shapes)]
        if mixing:
            # what only gives values another order stands there for what needs that order
            name = next((node for node in mixing if not is_kind(self.gm, node, Kind.MOVE)), mixing[0]).name
            return Refusal(
                f"'{name}' mixes values, so no threshold per channel stands for it",
                f"take '{name}' out, or move it behind an activation or sum that keeps the float stream",
            )
        table = table_of_bits(self.gm, match.start, match.chain, match.pack)
        threshold = from_table(accumulators_of(self.gm, match.start), table)
        if threshold is None:
            return Refusal(
                "the float expression rises and falls with the accumulator in some channel",
                "use an activation that only rises, such as nn.Hardtanh, between the two layers",
            )
        return threshold

    def rewrite(self, match: Epilogue, plan: IntegerThreshold) -> None:
        """Emit the fused operator in the place of the pack."""
        graph, convolution = self.gm.graph, match.start
        bits, weight = convolution.args[:2]
        attributes, copies = shared_by(convolution)
        with graph.inserting_before(match.pack):
            threshold = edit.add_buffer(self.gm, f"{convolution.name}_threshold", torch.from_numpy(plan.threshold))
            flip = edit.add_buffer(self.gm, f"{convolution.name}_flip", torch.from_numpy(pack_bits(plan.flip)))
            fused = graph.call_function(
                BINARY_CONV2D_THRESHOLD[copies].target, (bits, weight, threshold, flip, *attributes)
            )
        edit.replace(match.pack, fused)

    def subject(self, match: Epilogue) -> str:
        """Name of the bits."""
        return match.pack.name

    def layers(self, match: Epilogue) -> tuple[str, ...]:
        """The layer whose accumulators are compared."""
        return self.context.layers_of(match.start)
