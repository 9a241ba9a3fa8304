"""Binarizers that something else than a binary layer reads: the comparison that they are, with a float result."""

from collections.abc import Iterator

from torch import fx

from bnnfx.graph import edit
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import channel_axis, module_calls, module_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.nn import ActivationBinarizer, BinaryLayer
from bnnfx.nn.comparison import compare
from bnnfx.nn.comparison_probe import comparison_fault
from bnnfx.private_interfaces import rename


class CompareForFloatLayers(Pass[LowerContext, fx.Node, list[fx.Node]]):
    """Before: `float_layer(heaviside(x))`. After: `float_layer(compare(x, threshold, 0, 1))`, on a float map.

    A layer whose weight stayed float behind a binarized activation (BinaryDuo's `weight_bits=32`) computes in float;
    binary layers behind the same binarizer go on reading it.
    """

    requires = Stage.TRAINABLE
    ensures = Stage.TRAINABLE

    def match(self) -> Iterator[fx.Node]:
        """Binarizers with a reader that is no binary layer."""
        for node in module_calls(self.gm, ActivationBinarizer):
            if self._float_readers(node):
                yield node

    def allowed(self, match: fx.Node) -> list[fx.Node] | Refusal:
        """The threshold must be a constant; the plan is the float readers."""
        module = module_of(self.gm, match)
        assert isinstance(module, ActivationBinarizer)
        readers = self._float_readers(match)
        if module.pointwise:
            return comparison_fault(module, self.context.shapes[match]) or readers
        names = ", ".join(f"'{reader.name}'" for reader in readers)
        return Refusal(
            f"its threshold is computed from the activations, and {names} would compare with it in float",
            "let binary layers alone read it",
        )

    def rewrite(self, match: fx.Node, plan: list[fx.Node]) -> None:
        """Compare in front of the float readers."""
        module, x = module_of(self.gm, match), match.all_input_nodes[0]
        assert isinstance(module, ActivationBinarizer)
        threshold = module.constant_threshold(len(self.context.shapes[x]))
        axis = channel_axis(self.gm, match)
        last = () if axis == 1 else (axis,)
        with self.gm.graph.inserting_before(match):
            constant = edit.add_buffer(self.gm, f"{match.target}_threshold", threshold)
            values = self.gm.graph.call_function(compare, (x, constant, *module.levels, *last))
        self.context.shapes[values] = self.context.shapes[match]
        for reader in plan:
            reader.replace_input_with(match, values)
        if not match.users:
            edit.replace(match, values)
        else:
            rename(values, f"{match.name}_compared")
            self.context.let_stand(values.name, match.name)

    def subject(self, match: fx.Node) -> str:
        """The binarizer's qualified name."""
        return str(match.target)

    def finish(self) -> None:
        """A packed graph has no binarizers: refuse to make one, with every reason."""
        self.stop_if_refused("lower cannot compare in front of float layers")

    def _float_readers(self, binarizer: fx.Node) -> list[fx.Node]:
        # nothing stands between binary layers and the binarizer any more
        return [user for user in binarizer.users if not isinstance(module_of(self.gm, user), BinaryLayer)]
