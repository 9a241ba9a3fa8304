"""The step from a trainable to a packed graph: binarizers become `pack`, binary layers `binary_conv2d` on bits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnnfx.graph import edit
from bnnfx.graph.chain import CONVOLUTION, PACK
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import bits_source, calls, constant, module_calls, module_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.stage import Stage
from bnnfx.nn import ActivationBinarizer, BinaryConv2d, BinaryLinear
from bnnfx.nn.weight import exact_zeros
from bnnfx.numerics.bits import pack_bits


@dataclass
class BinaryWeight:
    """A layer's weight as evaluation uses it.

    Attributes:
        signs: +-1, shaped as the weight.
        scale: `float32[O]`.
    """

    signs: Tensor
    scale: Tensor


class PackLayers(Pass[LowerContext, fx.Node, BinaryWeight]):
    """Before: `layer(sign(x))`. After: `binary_conv2d(pack(x, threshold), weight bits, scale, bias)`, the same numbers.

    A linear layer becomes the convolution of a 1x1 map; behind `torch.flatten` of a map, the convolution of that map
    with a kernel of its size, so that its bits need not be reordered. Whatever made the weight bits (rotation,
    centring, standardization) is evaluated here and gone.
    """

    requires = Stage.TRAINABLE
    ensures = Stage.PACKED

    def match(self) -> Iterator[fx.Node]:
        """Calls of binary layers."""
        yield from module_calls(self.gm, (BinaryConv2d, BinaryLinear))

    def allowed(self, match: fx.Node) -> BinaryWeight:
        """Always; the plan is the weight that evaluation uses."""
        layer = module_of(self.gm, match)
        assert isinstance(layer, BinaryConv2d | BinaryLinear)
        with torch.no_grad():
            return BinaryWeight(*layer.binary_weight())

    def rewrite(self, match: fx.Node, plan: BinaryWeight) -> None:
        """Emit the packed operators, and views to and from 4-D around a linear layer."""
        layer = module_of(self.gm, match)
        binarizer = bits_source(self.gm, match.all_input_nodes[0])
        x = binarizer.all_input_nodes[0]
        low = self._binarizer(binarizer).levels[0]
        if isinstance(layer, BinaryConv2d):
            bits = self._pack(binarizer, x, tuple(self.context.shapes[x][1:]))
            self._convolution(match, layer, plan, bits, (layer.kernel_size[0], layer.kernel_size[1]), low)
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
        self._convolution(match, layer, plan, bits, shape[1:], low)

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
        if source is None and rank == 4:
            source = x
        if source is None:
            view = (x, (-1, *shape))
            source = next((user for user in x.users if calls(user, torch.reshape) and user.args == view), None)
        value = None
        if module.pointwise:
            value = module.threshold(torch.empty(0), rank).detach().float()
            value = value.reshape(1, *(shape if value.numel() > 1 else (1, 1, 1)))
            for user in [] if source is None else source.users:
                if calls(user, PACK) and _reads(self.gm, user.args[1], value):
                    return user
        with graph.inserting_before(binarizer):
            if value is not None:
                threshold = edit.add_buffer(self.gm, f"{binarizer.target}_threshold", value)
            else:
                threshold = self._traced_threshold(module, x, rank)
            if source is None:
                source = graph.call_function(torch.reshape, (x, (-1, *shape)))
                self.context.shapes[source] = torch.Size((self.context.shapes[x][:-1].numel(), *shape))
            bits = graph.call_function(PACK, (source, threshold))
        edit.take_name(bits, binarizer, "float")
        return bits

    def _traced_threshold(self, module: ActivationBinarizer, x: fx.Node, rank: int) -> fx.Node:
        traced = fx.symbolic_trace(_Threshold(module, rank)).graph
        argument = next(node for node in traced.nodes if node.op == "placeholder")
        threshold = self.gm.graph.graph_copy(traced, {argument: x})
        assert isinstance(threshold, fx.Node)
        return self.gm.graph.call_function(torch.reshape, (threshold, (-1, 1, 1, 1))) if rank != 4 else threshold

    def _convolution(
        self,
        match: fx.Node,
        layer: BinaryConv2d | BinaryLinear,
        plan: BinaryWeight,
        bits: fx.Node,
        kernel: tuple[int, ...],
        low: float,
    ) -> None:
        graph, name = self.gm.graph, str(match.target)
        shape = self.context.shapes[match]
        rank = len(shape)
        zeros = exact_zeros(layer.weight)
        if zeros and name not in self.context.packed.values():  # once for all calls of the layer
            self.note(
                name,
                f"{zeros} weights are exactly zero; they are binarized by the rule sign(0) = +1",
                "train the layer, if most of its weights are",
            )
        with graph.inserting_before(match):
            signs = plan.signs.reshape(plan.signs.shape[0], -1, *kernel)
            tensors = {
                "weight_bits": torch.from_numpy(pack_bits((signs > 0).permute(0, 2, 3, 1).contiguous().numpy())),
                "scale": plan.scale.clone(),
                "bias": torch.zeros_like(plan.scale) if layer.bias is None else layer.bias.detach().clone(),
            }
            constants = [edit.add_shared_buffer(self.gm, f"{name}_{what}", value) for what, value in tensors.items()]
            self.context.packed[str(constants[0].target)] = name
            result = graph.call_function(CONVOLUTION, (bits, *constants, *_geometry(layer, kernel), int(low), 1))
            result._rename(f"{match.name}_packed")  # stays behind a linear layer; otherwise it becomes the layer's name
            self.context.shapes[result] = shape if rank == 4 else torch.Size((shape[:-1].numel(), shape[-1], 1, 1))
            if rank == 2:
                result = graph.call_function(torch.flatten, (result, 1))
            elif isinstance(layer, BinaryLinear):
                result = graph.call_function(torch.reshape, (result, (-1, *shape[1:])))
        self.context.shapes[result] = shape
        edit.replace(match, result)


def _reads(gm: fx.GraphModule, node: object, value: Tensor) -> bool:
    """Whether a node reads a constant that equals `value`."""
    return isinstance(node, fx.Node) and node.op == "get_attr" and torch.equal(constant(gm, node), value)


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
