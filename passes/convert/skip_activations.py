"""Activation functions in front of a sign that keep the sign: without them it gives the same bits."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import fx, nn

from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import module_of, sole_user
from bnnfx.graph.operators import Kind, Mode, operator_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.graph.value_flow import curve_of


class Skipped(NamedTuple):
    """An activation function in front of a binary layer.

    Attributes:
        layer: the call of the layer.
        activation: the call of the function.
        reader: what reads the function's result on the way to the layer; the layer itself, or a dropout, say.
        zeros: the negative numbers, of a few, of which the function gives 0.
    """

    layer: fx.Node
    activation: fx.Node
    reader: fx.Node
    zeros: tuple[float, ...]


class SkipActivations(Pass[ConvertContext, Skipped, None]):
    """Before: `conv(silu(x))` of a layer that becomes binary. After: `conv(x)`; other readers of silu(x) keep it.

    `sign(silu(x))` is `sign(x)`, for SiLU, GELU, Mish, ELU, LeakyReLU: in front of a sign they cost time and weaken the
    gradient, and say nothing. Hardswish and the like also give exact zeros to some negative values, of which a sign
    would make +1; here the threshold is in front of them. A Hardtanh stays: it bounds the gradient, and schemes put it
    there. So does what has parameters.
    """

    requires = Stage.CANONICAL
    ensures = Stage.CANONICAL

    def match(self) -> Iterator[Skipped]:
        """Functions of which the scheme's activation makes the same as of their arguments."""
        for layer in list(self.gm.graph.nodes):
            found = self._activation_before(layer) if self.context.is_binary(layer) else None
            zeros = None if found is None else self._kept_signs(layer, found[0])
            if found is not None and zeros is not None:
                yield Skipped(layer, *found, zeros)

    def allowed(self, match: Skipped) -> Refusal | None:
        """Unless the configuration says that activation functions stay."""
        if "activations" in self.context.config.adapt:
            return None
        return Refusal(
            f"'{match.activation.name}' in front of it stays, though a sign of it is the sign of its input",
            "leave 'activations' in Config.adapt",
        )

    def rewrite(self, match: Skipped, plan: None) -> None:
        """Read what the function reads."""
        match.reader.replace_input_with(match.activation, match.activation.all_input_nodes[0])
        least = min(match.zeros, default=0.0)
        band = f"; of {least:.2g}, say, it gives 0, and a sign of that is +1" if least else ""
        self.note(
            str(match.layer.target),
            f"'{match.activation.name}' in front of it is left out: a sign of it is the sign of its input{band}",
            "Config(adapt=('gates',)) keeps it",
        )
        if not match.activation.users:
            self.gm.graph.erase_node(match.activation)

    def subject(self, match: Skipped) -> str:
        """The layer's qualified name."""
        return str(match.layer.target)

    def _activation_before(self, layer: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """A function, and what reads its result: the layer, or the first of dropouts and views that it alone reads."""
        reader = layer
        while True:
            source = reader.all_input_nodes[0]
            row, module = operator_of(self.gm, source), module_of(self.gm, source)
            if row.mode is Mode.DROPS or row.kind is Kind.MOVE or row.identity:
                if sole_user(source) is not reader:
                    return None
                reader = source
                continue
            learned = module is not None and any(True for _ in module.parameters())
            found = row.kind is Kind.ELEMENTWISE and row.mode is Mode.SAME and not learned
            return (source, reader) if found and not isinstance(module, nn.Hardtanh) else None

    def _kept_signs(self, layer: fx.Node, function: fx.Node) -> tuple[float, ...] | None:
        """None if the scheme's activation makes something else of the function's values; else see `Skipped.zeros`."""
        activation = self.context.scheme.activation(self.context.binary[str(layer.target)])
        curve = curve_of(self.gm, function)
        if curve is None or not activation.pointwise:
            return None
        grid, values = curve
        with torch.no_grad():
            same = (activation(values) == activation(grid)) | (values == 0)
        if not bool(same.all()) or not bool((values < 0).any()):
            return None
        return tuple(grid[(values == 0) & (grid < 0)].tolist())
