"""Narrower layers for ternary activations, which are split into two binary ones later, and widths that a user sets."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import torch
from torch import fx, nn

from bnnfx.graph.channel_flow import follow_channels
from bnnfx.graph.channel_graph import Channels, Layer, WidthClass
from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import WEIGHT_LAYERS, module_calls, module_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.resize import resize
from bnnfx.graph.stage import Stage
from bnnfx.nn import layer_kind
from bnnfx.numerics.weight_count import Affine, Integers, LayerWeights, WeightCount, common_factor, fit_widths, scaled


@dataclass(frozen=True)
class Change:
    """A class of layers that would get another width.

    Attributes:
        tied: the class.
        width: the new width of each of its axes.
        refusal: why it keeps the one that it has, or None.
    """

    tied: WidthClass
    width: int
    refusal: str | None = None


class CoupleWidths(Pass[ConvertContext, Change, None]):
    """Before: `conv(64 -> 64)`. After: `conv(45 -> 45)`, with all that is tied to it.

    A split layer reads two binary channels for every ternary one, so a factor of 1/sqrt(2) on both its sides keeps the
    number of its weights. Every class of tied widths that a binary layer reads or writes is multiplied by the scheme's
    `width_factor` and rounded down, to a multiple of the number of groups where a grouped convolution is among them. A
    factor up to 1/sqrt(2) is lowered if the split binary layers would have more weights nevertheless, unless a width is
    set by `Config.widths`, which is for any scheme, or one cannot change.

    With `parity="exact"` the widths that `Config.widths` leaves are searched instead, see
    `bnnfx.numerics.weight_count.fit_widths`: the weights of all convolutions and linear layers of the split network
    come as near as possible to those of the binary network of full width, and do not exceed them.

    Tensors keep their first entries along each axis, see `bnnfx.graph.resize`; a float network that was trained before
    is a start for the distribution of the weights, not for their function.

    Source: BinaryDuo (arXiv 2002.06517), which rounds down (64 to 45, 128 to 90) or picks a width by hand.
    """

    requires = Stage.CANONICAL
    ensures = Stage.CANONICAL

    def __init__(self, gm: fx.GraphModule, context: ConvertContext) -> None:
        super().__init__(gm, context)
        options = context.options
        factor, parity = options.get("width_factor", 1.0), options.get("parity", "factor")
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 1:
            raise ValueError(f"width_factor is a number in (0, 1]; got {factor!r}.")
        if parity not in ("factor", "exact"):
            raise ValueError(f"parity is 'factor' or 'exact'; got {parity!r}.")
        unchanged = factor == 1 and parity == "factor" and not context.config.widths
        self._widths = None if unchanged else Widths(gm, context, factor, exact=parity == "exact")

    def match(self) -> Iterator[Change]:
        """The classes whose width would change."""
        if self._widths is not None:
            yield from self._widths.changes

    def allowed(self, match: Change) -> Refusal | None:
        """A class with a width that is given from outside stays."""
        if match.refusal is None:
            return None
        return Refusal(f"its width stays {match.tied.width}: {match.refusal}")

    def rewrite(self, match: Change, plan: None) -> None:
        """Resize every module that reads or gives these channels."""
        assert self._widths is not None
        for module, inputs, outputs in self._widths.resized(match):
            resize(module, inputs, outputs)
        rest = f", with {', '.join(match.tied.axes[1:])}" if len(match.tied.axes) > 1 else ""
        self.note(match.tied.axes[0], f"has {match.width} instead of {match.tied.width} output channels{rest}")

    def subject(self, match: Change) -> str:
        """The first layer of the class."""
        return match.tied.axes[0]

    def finish(self) -> None:
        """Drop the shapes, which are those of before, and say how the weights of the network compare."""
        if self._widths is not None and self._widths.smaller_factor:
            self.note("width_factor", self._widths.smaller_factor)
        if not self.report.applied:
            return
        assert self._widths is not None
        self.context.shapes = {}
        self.note(
            ", ".join(self.report.applied),
            "the layers of these widths start from the first entries of their float weights along each axis; weights "
            "that were trained before have lost their function",
        )
        if "width_factor" in self.context.options:
            (split, full), binary = self._widths.numbers_of_weights(), self._widths.numbers_of_weights(binary=True)
            self.note(
                "weights",
                f"the split network will have {split} in its convolutions and linear layers, {binary[0]} of them in "
                f"binary layers; the binary network of full width has {full} and {binary[1]}",
            )


class Widths:
    """The widths of a network: which of them are tied together, and which are to change.

    Attributes:
        changes: the classes that would get another width, in order.
        smaller_factor: why less than the factor given is taken; empty where it is not.

    Raises:
        ValueError: `Config.widths` contradicts itself or the network.
    """

    def __init__(self, gm: fx.GraphModule, context: ConvertContext, factor: float, *, exact: bool) -> None:
        self._gm = gm
        self._context = context
        self._graph = follow_channels(gm, context.shapes)
        self._classes = list(self._graph.classes())
        self._index = {axis: index for index, tied in enumerate(self._classes) for axis in tied.axes}
        self._original = np.array([tied.width for tied in self._classes], np.int64)
        self._steps = np.array([tied.multiple for tied in self._classes], np.int64)
        self._rows = dict(self._layer_weights())
        self.smaller_factor = ""
        explicit = self._explicit()
        self.changes = [c for c in explicit.values() if c.refusal is not None or c.width != c.tied.width]
        coupled = [tied for tied in self._coupled() if tied not in explicit]
        self.changes += self._fitted(coupled) if exact else self._scaled(coupled, factor, alone=not explicit)

    def resized(self, change: Change) -> Iterator[tuple[nn.Module, int, int]]:
        """Every module whose number of inputs or outputs a change makes another, behind those in front of it."""
        before = self._widths_before(change)
        after = before | dict.fromkeys(change.tied.axes, change.width)
        for layer in self._graph.layers.values():
            new = self._sizes(layer, after)
            if self._sizes(layer, before) != new:
                yield layer.module, *new

    def numbers_of_weights(self, binary: bool = False) -> tuple[int, int]:
        """Of the split network with the new widths, and of the binary one of full width; or of their binary layers."""
        names = self._context.binary if binary else None
        split, full = self._weights(split=True, names=names), self._weights(split=False, names=names)
        return split(self._with(self.changes)), full(self._original)

    def _widths_before(self, change: Change) -> dict[str, int]:
        earlier = self.changes[: self.changes.index(change)]
        return {axis: c.width for c in earlier if c.refusal is None for axis in c.tied.axes}

    def _with(self, changes: Sequence[Change]) -> Integers:
        """The width of every class with these changes."""
        widths = {c.tied: c.width for c in changes if c.refusal is None}
        return np.array([widths.get(tied, tied.width) for tied in self._classes], np.int64)

    def _scaled(self, coupled: list[WidthClass], factor: float, *, alone: bool) -> Iterator[Change]:
        """The widths times the factor, or times a smaller one where nothing else decides about a width."""
        taken: float | Fraction = factor
        if alone and not any(tied.fixed for tied in coupled):
            taken = self._within_baseline(factor, coupled)
        for tied in coupled:
            width = scaled(tied.width, taken, tied.multiple)
            if width != tied.width:
                yield Change(tied, width, tied.fixed)

    def _explicit(self) -> dict[WidthClass, Change]:
        """What `Config.widths` asks for, by class.

        Raises:
            ValueError: two layers of a class are given two widths, or a layer is named that cannot have its width.
        """
        changes: dict[WidthClass, Change] = {}
        asked: dict[WidthClass, str] = {}
        for name in dict.fromkeys(str(node.target) for node in module_calls(self._gm, WEIGHT_LAYERS)):
            wanted = self._context.config.width_of(name)
            if wanted is None:
                continue
            key, width = wanted
            tied, repeat = self._class_of(name)
            refusal = tied.fixed if width != tied.width * repeat else None
            if refusal is None and width % (tied.multiple * repeat):
                refusal = f"it must be a multiple of {tied.multiple * repeat}, because of the groups of a convolution"
            if refusal is not None and key == name:
                raise ValueError(
                    f"Config.widths cannot give '{name}' {width} output channels instead of {tied.width * repeat}: "
                    f"{refusal}."
                )
            change = Change(tied, width // repeat, refusal)
            if tied in changes and changes[tied].width != change.width:
                raise ValueError(
                    f"Config.widths contradicts itself: the widths of '{asked[tied]}' and '{name}' are tied together, "
                    f"and {changes[tied].width} is asked for the first, {change.width} for the second."
                )
            changes[tied], asked[tied] = change, asked.get(tied, name)
        return changes

    def _class_of(self, name: str) -> tuple[WidthClass, int]:
        """The class of a layer's output, and how many of its channels each channel of the class is."""
        layer = self._graph.layers.get(name)
        if layer is None:
            weight = self._gm.get_submodule(name).weight
            assert isinstance(weight, torch.Tensor)
            return WidthClass((name,), weight.shape[0], 1, "this kind of layer cannot be given another width"), 1
        if len(layer.outputs.parts) > 1:
            width = self._graph.width(layer.outputs)
            names = ", ".join(part.axis for part in layer.outputs.parts)
            return WidthClass(
                (name,), width, 1, f"it has one filter per channel of {names}; give the widths of those"
            ), 1
        part = layer.outputs.parts[0]
        return next(tied for tied in self._classes if part.axis in tied.axes), part.repeat

    def _coupled(self) -> Iterator[WidthClass]:
        """The classes that a binary layer reads or writes."""
        layers = [layer for name, layer in self._graph.layers.items() if name in self._context.binary]
        axes = {
            part.axis
            for layer in layers
            for channels in (layer.inputs, layer.outputs)
            if channels is not None
            for part in channels.parts
        }
        yield from (tied for tied in self._classes if axes & set(tied.axes))

    def _within_baseline(self, factor: float, coupled: list[WidthClass]) -> float | Fraction:
        """The factor, or a smaller one if the split binary layers would have more weights than those of full width.

        Not so for a factor above 1/sqrt(2): it is meant to give more.
        """
        if factor > math.sqrt(0.5) + 1e-9:
            return factor
        count = self._weights(split=True, names=self._context.binary)
        budget = self._weights(split=False, names=self._context.binary)(self._original)
        narrow = [scaled(t.width, factor, t.multiple) if t in coupled else t.width for t in self._classes]
        if count(np.array(narrow, np.int64)) <= budget:
            return factor
        free = [self._classes.index(tied) for tied in coupled]
        smaller = common_factor(count, self._original, self._steps, free, budget, factor)
        if smaller == 0:
            return factor
        self.smaller_factor = (
            f"is {float(smaller):.4f} instead of {factor:.4f}, with which the split network would have more weights in "
            "its binary layers than the binary network of full width; depthwise convolutions have more at any width"
        )
        return smaller

    def _fitted(self, coupled: list[WidthClass]) -> Iterator[Change]:
        """The widths nearest to parity."""
        free = [index for index, tied in enumerate(self._classes) if tied in coupled and tied.fixed is None]
        budget = self._weights(split=False)(self._original)
        widths = fit_widths(self._weights(split=True), self._with(self.changes), self._steps, free, budget)
        for tied, width in zip(self._classes, widths.tolist(), strict=True):
            if tied in coupled and (tied.fixed is not None or width != tied.width):
                yield Change(tied, width, tied.fixed)

    def _weights(self, split: bool, names: Collection[str] | None = None) -> WeightCount:
        """The number of weights in the layers of these names, or in all, with twice the ternary inputs if `split`."""
        rows = [
            replace(row, factor=2 * row.factor) if split and name in self._context.binary else row
            for name, row in self._rows.items()
            if names is None or name in names
        ]
        return WeightCount(rows, len(self._classes))

    def _layer_weights(self) -> Iterator[tuple[str, LayerWeights]]:
        """The weights of every convolution and linear layer, by its name."""
        for node in module_calls(self._gm, WEIGHT_LAYERS):
            name, module = str(node.target), module_of(self._gm, node)
            layer = self._graph.layers.get(name)
            if layer is None:
                weight = module.weight  # type: ignore[union-attr]
                assert isinstance(weight, torch.Tensor)
                yield name, LayerWeights(Fraction(weight.numel()), Affine(1), Affine(1))
                continue
            groups, kernel = getattr(module, "groups", 1), math.prod(getattr(module, "kernel_size", (1,)))
            if groups == getattr(module, "in_channels", 0) > 1:  # depthwise: each filter reads one channel
                groups, inputs = 1, Affine(1)
            else:
                inputs = Affine(self._sizes(layer)[0]) if layer.inputs is None else self._affine(layer.inputs)
            yield name, LayerWeights(Fraction(kernel, groups), inputs, self._affine(layer.outputs))

    def _affine(self, channels: Channels) -> Affine:
        """How many channels or features these are, by the indices of their classes."""
        coefficients: Counter[int] = Counter()
        for part in channels.parts:
            coefficients[self._index[part.axis]] += part.repeat * (1 if channels.is_map else channels.positions or 1)
        return Affine(0, coefficients)

    def _sizes(self, layer: Layer, widths: Mapping[str, int] = MappingProxyType({})) -> tuple[int, int]:
        module = layer.module
        kind = layer_kind(module)
        present = getattr(module, "in_channels" if kind is None else kind.width_names[0], 0)
        inputs = present if layer.inputs is None else self._graph.width(layer.inputs, widths)
        assert isinstance(inputs, int)
        return inputs, self._graph.width(layer.outputs, widths)
