"""Batch norm behind every layer whose output a binary network needs normalized, where there is none."""

from collections.abc import Iterator

from torch import Tensor, fx

from bnnfx.graph import edit
from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import WEIGHT_LAYERS, module_calls, module_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.stage import Stage
from bnnfx.graph.value_flow import follow_values, normalized, producer
from bnnfx.nn import BINARY_LAYERS, BinaryLayer


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
        """Calls of binary layers, and of layers of such kinds that reach one through pooling and activations only."""
        feeding = {
            producer(self.gm, node.all_input_nodes[0]) for node in self.gm.graph.nodes if self.context.is_binary(node)
        }
        for node in module_calls(self.gm, WEIGHT_LAYERS):
            needed = self.context.is_binary(node) or node in feeding
            known = isinstance(module_of(self.gm, node), tuple(BINARY_LAYERS))
            if needed and known and node not in self._normalized:
                yield node

    def allowed(self, match: fx.Node) -> None:
        """Always."""

    def rewrite(self, match: fx.Node, plan: None) -> None:
        """Insert the batch norm over the layer's channels, named after the layer, on its device and in its type."""
        weight = module_of(self.gm, match).weight  # type: ignore[union-attr]
        assert isinstance(weight, Tensor)
        kind = self._kind(match)
        norm = kind.norm(self._values[match].axes)(len(weight), device=weight.device, dtype=weight.dtype)
        edit.call_module_after(self.gm, match, edit.add_module(self.gm, str(match.target), "bn", norm))

    def _kind(self, node: fx.Node) -> type[BinaryLayer]:
        module = module_of(self.gm, node)
        return next(kind for float_type, kind in BINARY_LAYERS.items() if isinstance(module, float_type))

    def subject(self, match: fx.Node) -> str:
        """The layer's qualified name."""
        return str(match.target)
