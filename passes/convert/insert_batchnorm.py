"""Batch norm behind every layer whose output a binary network needs normalized, where there is none."""

from collections.abc import Iterator

from torch import fx, nn

from bnnfx.graph import edit
from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import WEIGHT_LAYERS, module_calls, module_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.graph.value_flow import follow_values, normalized, producer


class InsertBatchNorm(Pass[ConvertContext, fx.Node, None]):
    """Before: `layer -> ...` without batch norm. After: `layer -> bn -> ...`.

    It is needed behind binary layers, whose integers reach +-n, and behind float layers that feed one: a sign of values
    that are not centred says little.
    """

    requires = Stage.CANONICAL
    ensures = Stage.CANONICAL

    def __init__(self, gm: fx.GraphModule, context: ConvertContext) -> None:
        super().__init__(gm, context)
        self._values = follow_values(gm, context.shapes)
        self._normalized = normalized(gm)

    def match(self) -> Iterator[fx.Node]:
        """Calls of binary layers, and of `Conv2d` or `Linear` that reach one through pooling and activations only."""
        feeding = {
            producer(self.gm, node.all_input_nodes[0]) for node in self.gm.graph.nodes if self.context.is_binary(node)
        }
        for node in module_calls(self.gm, WEIGHT_LAYERS):
            needed = self.context.is_binary(node) or node in feeding
            if needed and isinstance(module_of(self.gm, node), nn.Conv2d | nn.Linear) and node not in self._normalized:
                yield node

    def allowed(self, match: fx.Node) -> Refusal | None:
        """`BatchNorm1d` normalizes axis 1, which is a linear layer's features in `[N, C]` only."""
        rank = self._values[match].axes
        if rank in (2, None) or not isinstance(module_of(self.gm, match), nn.Linear):
            return None
        return Refusal(
            f"no batch norm is put behind it, though a binary layer reads what it gives: a BatchNorm1d would take axis "
            f"1 of its {rank} for the features",
            "normalize its features yourself, with nn.LayerNorm, or nn.BatchNorm2d once they are the channels of a map",
        )

    def rewrite(self, match: fx.Node, plan: None) -> None:
        """Insert `BatchNorm2d` or `BatchNorm1d` named after the layer, on its device and in its type."""
        layer = module_of(self.gm, match)
        like = layer.weight  # type: ignore[union-attr]
        norm: nn.Module
        if isinstance(layer, nn.Conv2d):
            norm = nn.BatchNorm2d(layer.out_channels, device=like.device, dtype=like.dtype)
        else:
            assert isinstance(layer, nn.Linear)
            norm = nn.BatchNorm1d(layer.out_features, device=like.device, dtype=like.dtype)
        edit.call_module_after(self.gm, match, edit.add_module(self.gm, str(match.target), "bn", norm))

    def subject(self, match: fx.Node) -> str:
        """The layer's qualified name."""
        return str(match.target)
