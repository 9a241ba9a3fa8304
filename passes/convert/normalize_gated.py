"""Batch norm between a gate and the sign behind it, which would not show the gate."""

from collections.abc import Iterator

from torch import Tensor, fx

from bnnfx.graph import edit
from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import module_of
from bnnfx.graph.gates import hidden_gates
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.graph.value_flow import follow_values
from bnnfx.nn import layer_kind


class NormalizeGated(Pass[ConvertContext, fx.Node, None]):
    """Before: `conv(x * gate)` of a layer that becomes binary. After: `conv(bn(x * gate))`.

    A gate, as of squeeze-and-excite, is never negative: `sign(x * gate)` is `sign(x)`, whatever the gate. Behind a
    batch norm the sign says whether a value is above the mean of its channel, which the gate moves it across.
    """

    requires = Stage.CANONICAL
    ensures = Stage.CANONICAL

    def __init__(self, gm: fx.GraphModule, context: ConvertContext) -> None:
        super().__init__(gm, context)
        self._values = follow_values(gm, context.shapes)
        self._hidden = hidden_gates(gm, self._values, context.shapes)

    def match(self) -> Iterator[fx.Node]:
        """Calls of binary layers that read what has a gate, with no norm or sum in between."""
        for node in list(self.gm.graph.nodes):
            if self.context.is_binary(node) and node.all_input_nodes[0] in self._hidden:
                yield node

    def allowed(self, match: fx.Node) -> Refusal | None:
        """Unless the configuration says that gates stay as they are."""
        if "gates" in self.context.config.adapt:
            return None
        return Refusal(
            f"a sign of what it reads does not show the gate in '{self._hidden[match.all_input_nodes[0]].name}'",
            "leave 'gates' in Config.adapt, which puts a batch norm between",
        )

    def rewrite(self, match: fx.Node, plan: None) -> None:
        """Insert the batch norm in front of the layer, named after it, on its device and in its type."""
        layer, source = module_of(self.gm, match), match.all_input_nodes[0]
        kind = layer_kind(layer)
        assert kind is not None and layer is not None
        weight = layer.weight
        assert isinstance(weight, Tensor)
        norm = kind.norm(self._values[source].axes)
        module = norm(getattr(layer, kind.width_names[0]), device=weight.device, dtype=weight.dtype)
        with self.gm.graph.inserting_before(match):
            new = self.gm.graph.call_module(edit.add_module(self.gm, str(match.target), "gated_bn", module), (source,))
        match.replace_input_with(source, new)
        self.note(
            str(match.target),
            f"a batch norm is in front of it, without which a sign would not show the gate in "
            f"'{self._hidden[source].name}'",
            "Config(adapt=('activations',)) leaves it out",
        )

    def subject(self, match: fx.Node) -> str:
        """The layer's qualified name."""
        return str(match.target)
