"""The rule of `costs` applied to a graph: a traced float model, a trainable graph or a packed one."""

import operator
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bnnfx.errors import ConversionError, ExampleInputError
from bnnfx.frontend.trace import trace
from bnnfx.graph.dataflow import (
    WEIGHT_LAYERS,
    calls,
    depends_on_input,
    drops,
    is_flatten,
    is_kind,
    module_of,
    packed_channels,
    packed_op,
    packed_result,
)
from bnnfx.graph.given_models import copy_of
from bnnfx.graph.operators import ATTENTION, Kind, operator_of, operator_of_type
from bnnfx.graph.readings import flattened_map
from bnnfx.graph.shapes import infer_shapes
from bnnfx.inspect.costs import BATCH_NORM_NUMBERS, Cost, LayerCost, Operands, packed_convolution
from bnnfx.inspect.function_macs import function_macs
from bnnfx.inspect.leaf_calls import (
    WHOLE,
    Call,
    Shape,
    Watch,
    is_batch_norm_module,
    is_layer,
)
from bnnfx.nn import ActivationBinarizer, BinaryLayer
from bnnfx.nn.frozen_norm import frozen_batch_norm
from bnnfx.nn.mode import CallByMode
from bnnfx.numerics.bits import row_bytes
from bnnfx.ops import PackedOp

_FLOAT_BYTES = 4


def as_graph(model: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """The model as a graph; one that cannot be traced as the single call of a leaf with so many inputs.

    Raises:
        ConversionError: it cannot be copied.
    """
    if isinstance(model, fx.GraphModule):
        return model
    try:
        return trace(model, example_inputs=inputs).gm
    except ConversionError:
        model = copy_of(model)  # what cannot be copied cannot be run on the side, either
        graph = fx.Graph()
        arguments = tuple(graph.placeholder(f"input_{index}") for index in range(len(inputs)))
        graph.output(graph.call_module(WHOLE, arguments))
        return fx.GraphModule({WHOLE: model}, graph)


def graph_costs(gm: fx.GraphModule, inputs: tuple[Tensor, ...]) -> list[LayerCost]:
    """One row per call of a layer, and per node with constants of its own, in graph order.

    Raises:
        ExampleInputError: the inputs do not fit, or their batch is empty.
    """
    if inputs and not len(inputs[0]):
        raise ExampleInputError("The batch of the example inputs is empty; give at least one sample.")
    watch = Watch(gm)
    with watch.listening():
        try:
            with _ChoicesNeedValues():
                shapes = infer_shapes(gm, inputs, compute=False, before=watch.begin)
        except ExampleInputError:  # some module needs values; if it is another failure, it fails again
            shapes = infer_shapes(gm, inputs, before=watch.begin)
    return _Accountant(gm, shapes, watch.calls, len(inputs[0])).rows()


class _ChoicesNeedValues(TorchFunctionMode):
    """Refuses operators that, without values, would take every branch."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.higher_order.cond, torch.ops.higher_order.while_loop):
            raise RuntimeError(f"{func} needs values")
        return func(*args, **(kwargs or {}))


class _Accountant:
    """Walks a graph once; a parameter is counted where it is met first."""

    def __init__(
        self, gm: fx.GraphModule, shapes: dict[fx.Node, torch.Size], called: dict[fx.Node, list[Call]], batch: int
    ) -> None:
        self._gm, self._shapes, self._called, self._batch = gm, shapes, called, batch
        self._counted: dict[int, object] = {}  # holds what it counted, so that no address is used twice

    def rows(self) -> list[LayerCost]:
        rows: list[LayerCost] = []
        for node in self._gm.graph.nodes:
            module = module_of(self._gm, node)
            if module is not None and not isinstance(module, CallByMode):
                rows += [self._module(call, node if is_layer(module) else None) for call in self._called[node]]
            elif node.op in ("call_function", "call_method", "call_module"):
                rows += self._function(node)
        return rows

    def _module(self, call: Call, node: fx.Node | None = None) -> LayerCost:
        module, costs = call.module, []
        operands = None
        if isinstance(module, WEIGHT_LAYERS):
            levels = None if node is None else _levels(self._gm, node.all_input_nodes[0])
            operands = Operands(2 if isinstance(module, BinaryLayer) else None, levels)
            costs = [operands.macs(self._per_sample(_macs(call), node)), self._layer_parameters(call, operands, node)]
        elif is_batch_norm_module(module):
            costs = [_batch_norm(int(module.num_features) if self._is_new(module) else 0)]  # type: ignore[arg-type]
        elif isinstance(module, ActivationBinarizer) and not module.pointwise:
            costs = [Cost(mean_additions=self._per_sample(prod(call.input_shape), node))]
        others = self._new_parameters(module, recurse=is_layer(module))
        # what the binarizer of a weight learns folds into scale and bias
        stored = 0 if isinstance(module, WEIGHT_LAYERS) else others
        costs.append(Cost(other_parameters=others, packed_bytes=_FLOAT_BYTES * stored))
        kind = type(module).__name__
        return LayerCost(call.name, kind, operands, call.input_shape[1:], call.output_shape[1:], Cost.sum(costs))

    def _layer_parameters(self, call: Call, operands: Operands, node: fx.Node | None) -> Cost:
        layer = call.module
        if operands.weight is None:
            new = [parameter.numel() for parameter in layer.parameters() if self._is_new(parameter)]
            return _floats(sum(new))
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        own = dict(layer.named_parameters(recurse=False))
        weights = weight.numel() if self._is_new(own.get("weight", layer)) else 0
        biases = bias.numel() if isinstance(bias, Tensor) and self._is_new(bias) else 0
        assert isinstance(layer, BinaryLayer)
        packed = _packed_rows(layer, call.input_shape[1:], self._map_behind_flatten(node)) if weights else 0
        return Cost.sum((Cost(one_bit_parameters=weights, packed_bytes=packed), _floats(biases)))

    def _map_behind_flatten(self, node: fx.Node | None) -> Shape:
        """The map `[C, H, W]` that a binary linear layer reads flattened; its bits are packed as that map's."""
        source = None if node is None else node.all_input_nodes[0]
        while source is not None and not is_flatten(source):
            before = drops(self._gm, source) or isinstance(module_of(self._gm, source), ActivationBinarizer)
            source = source.all_input_nodes[0] if before else None
        flattened = flattened_map(self._gm, source, self._shapes)
        shape = () if flattened is None else tuple(self._shapes[flattened])
        return shape[1:] if len(shape) != 3 else (shape[1], 1, shape[2])

    def _function(self, node: fx.Node) -> list[LayerCost]:
        op, module = packed_op(node), module_of(self._gm, node)
        if op is not None:
            return [self._packed(node, op)]
        x, y = self._shape_in(node), tuple(self._shapes.get(node, ()))
        operands, constants = None, sum(tensor.numel() for tensor in self._new_constants(node))
        if calls(node, frozen_batch_norm) or calls(node, F.batch_norm):
            cost = _batch_norm(x[1] if constants else 0)
        elif (factors := self._factors(node)) and (macs := function_macs(node, module, self._shapes)) is not None:
            data = next(filter(depends_on_input, factors), factors[0])
            x, operands = tuple(self._shapes[data]), Operands(None, _levels(self._gm, data))
            cost = Cost.sum((operands.macs(self._per_sample(macs, node)), _floats(constants)))
        else:
            cost = Cost(other_parameters=constants, packed_bytes=_FLOAT_BYTES * constants)
        function = module.function if isinstance(module, CallByMode) else node.target
        kind = str(getattr(function, "__name__", function))
        return [] if cost == Cost() else [LayerCost(node.name, kind, operands, x[1:], y[1:], cost)]

    def _packed(self, node: fx.Node, op: PackedOp) -> LayerCost:
        tensors = dict(zip(op.tensors, node.args, strict=False))
        attributes: dict[str, Any] = dict(zip(op.attributes, node.args[op.inputs :], strict=True))
        constants = self._new_constants(node)
        floats = sum(tensor.numel() for tensor in constants if tensor.dtype != torch.uint8)
        costs = [Cost(float_parameters=floats, packed_bytes=sum(tensor.nbytes for tensor in constants))]
        x = self._shapes[tensors["x"]]  # type: ignore[index]
        shape_in, operands = tuple(x[1:]), None
        if "weight" in tensors:
            weight = self._shapes[tensors["weight"]]  # type: ignore[index]
            weights, macs, _ = packed_convolution(tuple(weight), tuple(x), attributes)
            operands, shape_in = Operands(2, 2), (*x[1:3], attributes["channels"])
            new = any(tensor.shape == weight and tensor.dtype == torch.uint8 for tensor in constants)
            costs += [operands.macs(self._per_sample(macs, node)), Cost(one_bit_parameters=weights if new else 0)]
        elif op.bits_in:
            shape_in = (*x[1:3], packed_channels(tensors["x"]))  # type: ignore[arg-type]
        threshold = tensors.get("threshold")
        if not op.bits_in and isinstance(threshold, fx.Node) and depends_on_input(threshold):
            costs.append(Cost(mean_additions=self._per_sample(x.numel(), node)))
        return LayerCost(node.name, str(op.onnx_name), operands, shape_in, self._result(node, op), Cost.sum(costs))

    def _result(self, node: fx.Node, op: PackedOp) -> Shape:
        """The shape of a packed operator's result, with channels in place of bytes."""
        for result in (node, *node.users):
            packed = packed_result(result)
            if packed is not None and packed.op is op and result in self._shapes:
                shape = tuple(self._shapes[result][1:])
                return shape if packed.output == "float" else (*shape[:2], packed_channels(result))
        return ()

    def _new_constants(self, node: fx.Node) -> list[Tensor]:
        """The constants that a node reads and no earlier one has."""
        read = [operator.attrgetter(str(n.target))(self._gm) for n in node.all_input_nodes if n.op == "get_attr"]
        return [tensor for tensor in read if isinstance(tensor, Tensor) and self._is_new(tensor)]

    def _new_parameters(self, module: nn.Module, recurse: bool) -> int:
        """How many parameters of a module are not counted yet; a batch norm's are, as channels."""
        new = [parameter for parameter in module.parameters(recurse) if self._is_new(parameter)]
        return 0 if is_batch_norm_module(module) else sum(parameter.numel() for parameter in new)

    def _is_new(self, key: object) -> bool:
        if id(key) in self._counted:
            return False
        self._counted[id(key)] = key
        return True

    def _per_sample(self, total: int, node: fx.Node | None) -> int:
        """A layer that reads no input of the graph runs once, whatever the batch."""
        return total if node is not None and not depends_on_input(node) else -(-total // self._batch)

    def _shapes_in(self, node: fx.Node) -> tuple[Shape, ...]:
        return tuple(tuple(self._shapes[n]) for n in node.all_input_nodes if n in self._shapes)

    def _shape_in(self, node: fx.Node) -> Shape:
        return next(iter(self._shapes_in(node)), ())

    def _factors(self, node: fx.Node) -> list[fx.Node]:
        """What a function multiplies: a layer that is called as one, a product of matrices, attention."""
        row = operator_of(self._gm, node)
        if row.multiplies:
            return node.all_input_nodes[-2:]  # what is added stands in front
        layer = row.kind is Kind.LAYER and node.op == "call_function"
        return node.all_input_nodes if layer or row.name == ATTENTION else []


def _levels(gm: fx.GraphModule, node: fx.Node) -> int | None:
    """How many values an activation can take; None for floats."""
    module = module_of(gm, node)
    if isinstance(module, ActivationBinarizer):
        return len(module.levels)
    if calls(node, torch.cat):
        parts = {_levels(gm, part) for part in node.all_input_nodes}
        return parts.pop() if len(parts) == 1 else None
    passes = drops(gm, node) or is_kind(gm, node, Kind.MOVE) or isinstance(module, nn.MaxPool1d | nn.MaxPool2d)
    return _levels(gm, node.all_input_nodes[0]) if passes else None


def _macs(call: Call) -> int:
    """Multiply-accumulates of a layer, for the whole batch; taps that fall on the padding count."""
    kind = next(kind for kind in type(call.module).__mro__ if kind in WEIGHT_LAYERS)  # a subclass counts as its base
    count = operator_of_type(kind).macs
    assert count is not None
    return count(call.module, call.input_shapes, call.output_shape)


def _packed_rows(layer: BinaryLayer, sizes: Shape, map_behind_flatten: Shape) -> int:
    """Bytes of the packed weight of a binary layer, which reads an input of these sizes behind the batch."""
    flattened = layer.channel_axis == -1 and len(map_behind_flatten) == 3
    convolution = layer.convolution(map_behind_flatten if flattened else layer.as_map(sizes))  # type: ignore[arg-type]
    return layer.width * prod(convolution.kernel) * row_bytes(convolution.channels // convolution.groups)


def _floats(count: int) -> Cost:
    return Cost(float_parameters=count, packed_bytes=_FLOAT_BYTES * count)


def _batch_norm(channels: int) -> Cost:
    return Cost(batch_norm_channels=channels, packed_bytes=_FLOAT_BYTES * BATCH_NORM_NUMBERS * channels)
