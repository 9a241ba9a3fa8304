"""The step from a float to a trainable binary graph: binarizers before the selected layers, binary weights in them."""

from collections.abc import Iterator

from torch import fx, nn
from torch.nn import functional as F

from bnnfx.graph import edit
from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import above_dropouts, calls, module_of
from bnnfx.graph.operators import call_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Role
from bnnfx.graph.stage import Stage
from bnnfx.nn import BINARY_LAYERS, BinaryLayer


class BinarizeLayers(Pass[ConvertContext, fx.Node, None]):
    """Before: `conv(x)`. After: `binary_conv(sign(x))`, with the float layer's parameters under their old names.

    A scheme that binarizes activations only leaves the layer itself as it is: `conv(sign(x))`.

    A dropout in front of the layer ends up between the two: dropped +-1 values are 0, which a sign behind it would turn
    into +1.
    """

    requires = Stage.CANONICAL
    ensures = Stage.TRAINABLE
    role = Role.BINARIZES

    def match(self) -> Iterator[fx.Node]:
        """Every call of a selected layer."""
        for node in list(self.gm.graph.nodes):
            if self.context.is_binary(node):
                yield node

    def allowed(self, match: fx.Node) -> None:
        """`SelectLayers` has decided."""

    def rewrite(self, match: fx.Node, plan: None) -> None:
        """Insert the binarizer, and swap the layer at its first call."""
        name = str(match.target)
        scheme, options = self.context.scheme, self.context.binary[name]
        layer = module_of(self.gm, match)
        assert layer is not None
        if not isinstance(layer, BinaryLayer):
            weight = scheme.weight(layer, options)
            if weight is None:
                chosen = ", ".join(f"{key}={value!r}" for key, value in options.items())
                self.note(
                    name,
                    "its weight stays float behind a binarized activation, as the scheme's options say",
                    f"choose options of the scheme with which it is binarized; they are {chosen} here",
                )
            else:
                edit.replace_module(self.gm, name, BINARY_LAYERS[type(layer)].from_float(layer, weight))
        reader, source = above_dropouts(self.gm, match)
        if _pads_with_zeros(self.gm, source):
            self.note(
                source.name,
                f"its zeros are in front of the binarizer of '{name}', which makes bits of them",
                "pad by the layer itself, alike on both sides (padding=1), where zeros stay zeros",
                (name,),
            )
        binarizer = scheme.activation(options).to(self.gm.get_parameter(f"{name}.weight").device)
        target = edit.add_module(self.gm, name, "sign", binarizer)
        with self.gm.graph.inserting_before(reader):
            bits = self.gm.graph.call_module(target, (source,))
        reader.replace_input_with(source, bits)

    def subject(self, match: fx.Node) -> str:
        """The layer's qualified name."""
        return str(match.target)


def _pads_with_zeros(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a padding with a constant that is 0, by torch's function or one of its modules."""
    module = module_of(gm, node)
    if isinstance(module, nn.ConstantPad1d | nn.ConstantPad2d):
        return module.value == 0
    call = call_of(gm, node)
    return calls(node, F.pad) and call.get("mode", "constant") == "constant" and not call.get("value", 0)
