"""Padding that the packed convolution does not have, in front of the layer: the binarizer sees it there."""

from collections.abc import Iterator
from typing import Any

from torch import fx
from torch.nn import functional as F

from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import above_dropouts, module_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.plain_layers import as_pad
from bnnfx.graph.stage import Stage

Padding = tuple[tuple[int, ...], str]
"""How `F.pad` is told: the values on both sides of each axis, the last axis first, and the mode."""


class PadInFront(Pass[ConvertContext, fx.Node, Padding]):
    """Before: `conv(x)` with `padding_mode="reflect"`. After: `conv(F.pad(x, ..., mode="reflect"))` without padding.

    Likewise for `"replicate"` and `"circular"`, and for `padding="same"` where it pads the two sides differently. A
    binarizer compares each value alone, so that the bits are those of padded bits, but for zeros, which are no bit. In
    front of a dropout, as the binarizer will be.
    """

    requires = Stage.CANONICAL
    ensures = Stage.CANONICAL

    def match(self) -> Iterator[fx.Node]:
        """The first call of every layer that will be binary and has such a padding."""
        seen: set[object] = set()
        for node in list(self.gm.graph.nodes):
            if node.target not in seen and self.context.is_binary(node) and self._padding(node) is not None:
                seen.add(node.target)
                yield node

    def allowed(self, match: fx.Node) -> Padding:
        """Always."""
        padding = self._padding(match)
        assert padding is not None
        return padding

    def rewrite(self, match: fx.Node, plan: Padding) -> None:
        """Pad what each call reads; the layer has no padding then."""
        pads, mode = plan
        layer: Any = module_of(self.gm, match)
        layer.padding, layer.padding_mode = (0,) * len(layer.kernel_size), "zeros"
        for node in [node for node in self.gm.graph.nodes if node.op == "call_module" and node.target == match.target]:
            reader, source = above_dropouts(self.gm, node)
            with self.gm.graph.inserting_before(reader):
                padded = self.gm.graph.call_function(F.pad, (source, pads), {"mode": mode})
            reader.replace_input_with(source, padded)

    def subject(self, match: fx.Node) -> str:
        """The layer's qualified name."""
        return str(match.target)

    def _padding(self, node: fx.Node) -> Padding | None:
        layer: Any = module_of(self.gm, node)
        mode = getattr(layer, "padding_mode", "zeros")
        if layer is None or not hasattr(layer, "padding"):
            return None
        if layer.padding == "same":
            totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            sides = [(total // 2, total - total // 2) for total in totals]
        else:
            sides = [(0, 0) if layer.padding == "valid" else (n, n) for n in layer.padding]
        if mode == "zeros" and all(before == behind for before, behind in sides):
            return None
        return as_pad(tuple(sides)), "constant" if mode == "zeros" else mode
