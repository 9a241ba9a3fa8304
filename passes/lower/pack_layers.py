"""The step from a trainable to a packed graph: binarizers become `pack`, binary layers `binary_conv2d` on bits."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from bnnfx.graph import edit
from bnnfx.graph.chain import CONVOLUTION, PACK
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import bits_source, calls, constant, module_calls, module_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.readings import SEQUENCES, TOKENS, Reading, flattened_map
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.nn import ActivationBinarizer, BinaryLayer
from bnnfx.nn.binary_layer import MapConvolution, MapShape
from bnnfx.nn.comparison_probe import comparison_fault
from bnnfx.nn.weight import exact_zeros
from bnnfx.numerics.bits import pack_bits
from bnnfx.private_interfaces import rename


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

    Every layer is the convolution of a map, see `BinaryLayer.convolution`; a linear layer is that of a single pixel or,
    behind `torch.flatten` of a map, that of the map with a kernel of its size, so that its bits need not be reordered.
    Tokens `[N, ..., C]` are a map that is channels last.
    Whatever made the weight bits (rotation, centring, standardization) is evaluated here and gone.

    Allowed where weights are -1 or 1 and activations are what their threshold says.
    """

    requires = Stage.TRAINABLE
    ensures = Stage.PACKED

    def match(self) -> Iterator[fx.Node]:
        """Calls of binary layers."""
        yield from module_calls(self.gm, BinaryLayer)

    def allowed(self, match: fx.Node) -> BinaryWeight | Refusal:
        """Weights and activations must have the two values that a bit stands for; the plan is the weight."""
        layer = self._layer(match)
        with torch.no_grad():
            weight = BinaryWeight(*layer.binary_weight())
        others = weight.signs[(weight.signs != 1) & (weight.signs != -1)]
        if len(others):
            values = ", ".join(f"{value + 0.0:.9g}" for value in sorted(set(others.tolist()))[:3])
            return Refusal(
                f"its weight binarizer, {type(layer.binarizer).__name__}, gives {values} for {len(others)} of "
                f"{weight.signs.numel()} weights, and a bit stands for -1 or 1",
                "let its forward return exactly -1 and 1, as bnnfx.nn.sign.sign does (w + (s - w).detach() rounds), "
                "and a factor per filter as the scale",
            )
        binarizer = bits_source(self.gm, match.all_input_nodes[0])
        fault = comparison_fault(self._binarizer(binarizer), self.context.shapes[binarizer.all_input_nodes[0]])
        return weight if fault is None else fault

    def rewrite(self, match: fx.Node, plan: BinaryWeight) -> None:
        """Emit the packed operators, and views to and from 4-D around a layer that reads no map."""
        layer = self._layer(match)
        binarizer = bits_source(self.gm, match.all_input_nodes[0])
        x = binarizer.all_input_nodes[0]
        view = self._view(layer, binarizer)
        bits = self._pack(binarizer, x, view)
        convolution = layer.convolution(view.shape)
        size = convolution.window.output_size(*view.shape[1:], convolution.kernel)
        batch = self.context.shapes[match].numel() // (layer.width * size[0] * size[1])
        result_shape = torch.Size((batch, layer.width, *size))
        self._convolution(match, plan, bits, convolution, result_shape)

    def subject(self, match: fx.Node) -> str:
        """The layer's qualified name."""
        return str(match.target)

    def finish(self) -> None:
        """A packed graph has no other layers: refuse to make one, with every reason."""
        self.stop_if_refused("lower cannot pack every binary layer")

    def _layer(self, node: fx.Node) -> BinaryLayer:
        module = module_of(self.gm, node)
        assert isinstance(module, BinaryLayer)
        return module

    def _view(self, layer: BinaryLayer, binarizer: fx.Node) -> "_View":
        x = binarizer.all_input_nodes[0]
        sizes = self.context.shapes[x]
        of_channels = layer.channel_axis == -1 and len(sizes) == 2
        flattened = flattened_map(self.gm, x, self.context.shapes) if of_channels else None
        if flattened is not None:
            _, channels, *size = self.context.shapes[flattened]
            if len(size) == 2:
                return _View((channels, size[0], size[1]), flattened)
            return self._read(flattened, binarizer, SEQUENCES)
        shape = layer.as_map(tuple(sizes[1:]))
        reading = _reading(layer, sizes)
        if reading is not None:
            return self._read(x, binarizer, reading)
        if len(sizes) == 4:
            return _View(shape, x)
        view = (x, (-1, *shape))
        before = [user for user in x.users if user < binarizer]
        return _View(shape, next((user for user in before if calls(user, torch.reshape) and user.args == view), None))

    def _read(self, values: fx.Node, binarizer: fx.Node, reading: Reading) -> "_View":
        """Values as a map, by a node that reads them so already or by one that `_pack` makes."""
        source = reading.read_before(values, binarizer, self.context.shapes)
        _, channels, rows, columns = reading.of(torch.empty(self.context.shapes[values], device="meta")).shape
        return _View((channels, rows, columns), source, reading, values)

    def _binarizer(self, node: fx.Node) -> ActivationBinarizer:
        module = module_of(self.gm, node)
        assert isinstance(module, ActivationBinarizer)
        return module

    def _pack(self, binarizer: fx.Node, x: fx.Node, view: "_View") -> fx.Node:
        """The bits of `x`; shared by all layers that compare it alike."""
        module, graph, source = self._binarizer(binarizer), self.gm.graph, view.source
        value = None
        if module.pointwise:
            value = module.constant_threshold(len(self.context.shapes[x]))
            value = _broadcast(view.of(value.expand(1, *self.context.shapes[x][1:])))
            for user in [] if source is None else source.users:
                if calls(user, PACK) and _reads(self.gm, user.args[1], value):
                    if binarizer.name != _left_of(user.name):
                        self.context.let_stand(binarizer.name, user.name)
                    return user
        with graph.inserting_before(binarizer):
            if value is not None:
                threshold = edit.add_buffer(self.gm, f"{binarizer.target}_threshold", value)
            else:
                threshold = self._traced_threshold(module, x, view)
            if source is None and view.reading is not None:
                source = view.reading.read(view.values or x, self.context.shapes)
            elif source is None:
                source = graph.call_function(torch.reshape, (x, (-1, *view.shape)))
                self.context.shapes[source] = torch.Size((self.context.shapes[x][:-1].numel(), *view.shape))
            bits = graph.call_function(PACK, (source, threshold))
        edit.take_name(bits, binarizer, _LEFT)
        return bits

    def _traced_threshold(self, module: ActivationBinarizer, x: fx.Node, view: "_View") -> fx.Node:
        """What computes the threshold of `x` at run time, as a map that broadcasts to one of this shape."""
        graph, sizes = self.gm.graph, self.context.shapes[x]
        traced = fx.symbolic_trace(_Threshold(module, len(sizes))).graph
        argument = next(node for node in traced.nodes if node.op == "placeholder")
        threshold = graph.graph_copy(traced, {argument: x})
        assert isinstance(threshold, fx.Node)
        if len(sizes) == 4 and view.reading is None:
            return threshold
        one_per_sample = module.threshold(torch.zeros(sizes), len(sizes)).shape == (sizes[0], *(1,) * len(sizes[1:]))
        if one_per_sample and sizes[1:].numel() == torch.Size(view.shape).numel():  # a sample is a map
            return graph.call_function(torch.reshape, (threshold, (-1, 1, 1, 1)))
        everywhere = graph.call_method("expand_as", (threshold, x))
        if view.reading is not None and view.values is x:
            self.context.shapes[everywhere] = sizes
            return view.reading.read(everywhere, self.context.shapes)
        return graph.call_function(torch.reshape, (everywhere, (-1, *view.shape)))

    def _convolution(
        self,
        match: fx.Node,
        plan: BinaryWeight,
        bits: fx.Node,
        convolution: MapConvolution,
        result_shape: torch.Size,
    ) -> None:
        layer, graph, name = self._layer(match), self.gm.graph, str(match.target)
        shape = self.context.shapes[match]
        low = self._binarizer(bits_source(self.gm, match.all_input_nodes[0])).levels[0]
        zeros = exact_zeros(layer.weight)
        if zeros and name not in self.context.packed.values():  # once for all calls of the layer
            self.note(
                name,
                f"{zeros} weights are exactly zero; they are binarized by the rule sign(0) = +1",
                "train the layer, if most of its weights are",
            )
        with graph.inserting_before(match):
            signs = plan.signs.reshape(len(plan.signs), -1, *convolution.kernel)
            tensors = {
                "weight_bits": torch.from_numpy(pack_bits((signs > 0).permute(0, 2, 3, 1).contiguous().numpy())),
                "scale": plan.scale.clone(),
                "bias": torch.zeros_like(plan.scale) if layer.bias is None else layer.bias.detach().clone(),
            }
            constants = [edit.add_shared_buffer(self.gm, f"{name}_{what}", value) for what, value in tensors.items()]
            self.context.packed[str(constants[0].target)] = name
            window, groups = convolution.window, convolution.groups
            pairs = (list(window.stride), list(window.padding), list(window.dilation))
            attributes = (convolution.channels, *pairs, groups, int(low), 1)
            result = graph.call_function(CONVOLUTION, (bits, *constants, *attributes))
            rename(result, f"{match.name}_packed")  # stays behind a linear layer; otherwise it becomes the layer's name
            self.context.shapes[result] = result_shape
            reading = _reading(layer, shape)
            if reading is not None:
                result = reading.back(result, shape, self.context.shapes)
            elif len(shape) == 2:
                result = graph.call_function(torch.flatten, (result, 1))
            elif len(shape) != 4:
                result = graph.call_function(torch.reshape, (result, (-1, *shape[1:])))
        self.context.shapes[result] = shape
        edit.replace(match, result)


@dataclass
class _View:
    """How a layer's input is a map.

    Attributes:
        shape: of one sample of the map.
        source: the node that is the map, if there is one already.
        reading: how `values` are a map, where a reading has it.
        values: the input, or what it is the `flatten` of.
    """

    shape: MapShape
    source: fx.Node | None
    reading: Reading | None = None
    values: fx.Node | None = None

    def of(self, values: Tensor) -> Tensor:
        """Values of one sample, shaped as the input, as the map."""
        if self.reading is None or values.ndim == 2:
            return values.reshape(-1, *self.shape)
        return self.reading.of(values)


def _reading(layer: BinaryLayer, sizes: torch.Size) -> Reading | None:
    """How values of these sizes, which a layer reads or gives, are a map; None where a plain view makes them one."""
    if len(sizes) == 2:
        return None
    if layer.channel_axis == -1:
        return TOKENS
    channels, *length = sizes[1:]
    return SEQUENCES if len(length) == 1 and layer.as_map((channels, *length)) == (channels, 1, *length) else None


_LEFT = "float"


def _left_of(name: str) -> str:
    """The name of a binarizer whose bits took its own, as long as other layers read it."""
    return f"{name}_{_LEFT}"


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


def _broadcast(value: Tensor) -> Tensor:
    """The smallest tensor of as many axes that broadcasts to `value`."""
    for axis in range(value.ndim):
        first = value.narrow(axis, 0, 1)
        value = first if bool((value == first).all()) else value
    return value.contiguous()
