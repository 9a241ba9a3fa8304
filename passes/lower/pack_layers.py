"""The step from a trainable to a packed graph: binarizers become `pack`, binary layers `binary_conv2d` on bits."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnnfx.graph import edit
from bnnfx.graph.chain import CONVOLUTION
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import bits_source, calls, module_calls, module_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.stage import Stage
from bnnfx.nn import ActivationBinarizer, BinaryConv2d, BinaryLinear
from bnnfx.nn.weight import exact_zeros
from bnnfx.numerics.bits import pack_bits
from bnnfx.private_interfaces import rename


class PackLayers(Pass[LowerContext, fx.Node]):
    """Before: `layer(sign(x))`. After: `binary_conv2d(pack(x, threshold), weight bits, scale, bias)`, the same numbers.

    A linear layer becomes the convolution of a 1x1 map; behind `torch.flatten` of a map, the convolution of that map
    with a kernel of its size, so that its bits need not be reordered. Whatever made the weight bits (rotation,
    centring, standardization) is evaluated here and gone.
    """

    requires = Stage.TRAINABLE
    ensures = Stage.PACKED

    def match(self) -> Iterator[fx.Node]:
        """Calls of binary layers."""
        self._packs: dict[tuple[fx.Node, bytes], fx.Node] = {}
        self._weights: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        yield from module_calls(self.gm, (BinaryConv2d, BinaryLinear))

    def rewrite(self, match: fx.Node) -> None:
        """Emit the packed operators, and views to and from 4-D around a linear layer."""
        layer = module_of(self.gm, match)
        binarizer = bits_source(self.gm, match.all_input_nodes[0])
        x = binarizer.all_input_nodes[0]
        low = self._binarizer(binarizer).levels[0]
        if isinstance(layer, BinaryConv2d):
            bits = self._pack(binarizer, x, tuple(self.context.shapes[x][1:]))
            self._convolution(match, layer, bits, (layer.kernel_size[0], layer.kernel_size[1]), low)
            return
        assert isinstance(layer, BinaryLinear)
        shape = (layer.in_features, 1, 1)
        source = x.args[0] if calls(x, torch.flatten) and x.args[1:] in ((1,), (1, -1)) else None
        if isinstance(source, fx.Node) and len(self.context.shapes.get(source, ())) == 4:
            channels, rows, columns = self.context.shapes[source][1:]
            shape = (channels, rows, columns)
        else:
            source = None
        bits = self._pack(binarizer, x, shape, source)
        self._convolution(match, layer, bits, shape[1:], low)

    def subject(self, match: fx.Node) -> str:
        """The layer's qualified name."""
        return str(match.target)

    def _binarizer(self, node: fx.Node) -> ActivationBinarizer:
        module = module_of(self.gm, node)
        assert isinstance(module, ActivationBinarizer)
        return module

    def _pack(self, binarizer: fx.Node, x: fx.Node, shape: tuple[int, ...], source: fx.Node | None = None) -> fx.Node:
        """The bits of `x`, from `source` (its values as a map) if given; shared by all layers that compare it alike."""
        module, graph = self._binarizer(binarizer), self.gm.graph
        rank = len(self.context.shapes[x])
        constant = module.threshold(torch.empty(0), rank).detach().float() if module.pointwise else None
        key = (x, b"" if constant is None else constant.numpy().tobytes())
        if constant is not None and key in self._packs:
            return self._packs[key]
        with graph.inserting_before(binarizer):
            if constant is not None:
                constant = constant.reshape(1, *(shape if constant.numel() > 1 else (1, 1, 1)))
                threshold = edit.add_buffer(self.gm, f"{binarizer.target}_threshold", constant)
            else:
                threshold = self._traced_threshold(module, x, rank)
            if source is None:
                source = x
                if rank != 4:
                    source = graph.call_function(torch.reshape, (x, (-1, *shape)))
                    self.context.shapes[source] = torch.Size((self.context.shapes[x][:-1].numel(), *shape))
            bits = graph.call_function(torch.ops.bnnfx.pack.default, (source, threshold))
        edit.take_name(bits, binarizer, "float")
        self._packs[key] = bits
        return bits

    def _traced_threshold(self, module: ActivationBinarizer, x: fx.Node, rank: int) -> fx.Node:
        traced = fx.symbolic_trace(_Threshold(module, rank)).graph
        argument = next(node for node in traced.nodes if node.op == "placeholder")
        threshold = self.gm.graph.graph_copy(traced, {argument: x})
        assert isinstance(threshold, fx.Node)
        return self.gm.graph.call_function(torch.reshape, (threshold, (-1, 1, 1, 1))) if rank != 4 else threshold

    def _convolution(
        self, match: fx.Node, layer: BinaryConv2d | BinaryLinear, bits: fx.Node, kernel: tuple[int, ...], low: float
    ) -> None:
        graph, name = self.gm.graph, str(match.target)
        shape = self.context.shapes[match]
        rank = len(shape)
        with graph.inserting_before(match):
            tensors = self._layer_tensors(match, layer, kernel)
            constants = [
                edit.add_buffer(self.gm, f"{name}_{what}", tensor)
                for what, tensor in zip(("weight_bits", "scale", "bias"), tensors, strict=True)
            ]
            self.context.packed[str(constants[0].target)] = name
            result = graph.call_function(CONVOLUTION, (bits, *constants, *_geometry(layer, kernel), int(low), 1))
            rename(result, f"{match.name}_packed")  # stays behind a linear layer; otherwise it becomes the layer's name
            self.context.shapes[result] = shape if rank == 4 else torch.Size((shape[:-1].numel(), shape[-1], 1, 1))
            if rank == 2:
                result = graph.call_function(torch.flatten, (result, 1))
            elif isinstance(layer, BinaryLinear):
                result = graph.call_function(torch.reshape, (result, (-1, *shape[1:])))
        self.context.shapes[result] = shape
        edit.replace(match, result)

    def _layer_tensors(
        self, match: fx.Node, layer: BinaryConv2d | BinaryLinear, kernel: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Packed weights `uint8[O, kh, kw, B]`, scale and bias `float32[O]`, evaluated once per layer."""
        name = str(match.target)
        if name not in self._weights:
            with torch.no_grad():
                signs, scale = layer.binary_weight()
            zeros = exact_zeros(layer.weight)
            if zeros:
                self.note(
                    name,
                    f"{zeros} weights are exactly zero; they are binarized by the rule sign(0) = +1",
                    "train the layer, if most of its weights are",
                )
            signs = signs.reshape(signs.shape[0], -1, *kernel)
            packed = torch.from_numpy(pack_bits((signs > 0).permute(0, 2, 3, 1).contiguous().numpy()))
            bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.detach().clone()
            self._weights[name] = packed, scale.detach().clone(), bias
        return self._weights[name]


class _Threshold(nn.Module):
    def __init__(self, binarizer: ActivationBinarizer, rank: int) -> None:
        super().__init__()
        self.binarizer = binarizer
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        return self.binarizer.threshold(x, self.rank)


def _geometry(layer: BinaryConv2d | BinaryLinear, kernel: tuple[int, ...]) -> tuple[Any, ...]:
    """The attributes of the packed convolution: channels, strides, pads, dilations, groups."""
    if isinstance(layer, BinaryLinear):
        return layer.in_features // (kernel[0] * kernel[1]), [1, 1], [0, 0], [1, 1], 1
    if layer.padding == "same":
        pads = [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    else:
        pads = [0, 0] if isinstance(layer.padding, str) else list(layer.padding)
    return layer.in_channels, list(layer.stride), pads, list(layer.dilation), layer.groups
