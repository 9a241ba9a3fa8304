"""The rule of `costs` applied to an ONNX file: one of ours in either dialect, or any other."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
import onnx.helper
import onnx.inliner
import onnx.shape_inference
from onnx import TensorProto
from torch import Tensor

from bnnfx.backends.onnx.packed_maps import packed_maps
from bnnfx.backends.onnx.symbolic import from_onnx
from bnnfx.errors import ExampleInputError, ModelFileError
from bnnfx.inspect.costs import Cost, LayerCost, Operands, packed_convolution
from bnnfx.ops import BY_ONNX_NAME
from bnnfx.ops.packed_op import ONNX_DOMAIN
from bnnfx.runtime.session import read_model

_WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "ConvInteger": 1, "MatMulInteger": 1} | {
    "QLinearConv": 3,
    "QLinearMatMul": 3,
}
"""Which input of a convolution or matrix product is its weight."""
_MATRIX_PRODUCTS = ("MatMul", "MatMulInteger", "QLinearMatMul")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_SMALL = 64  # elements of a constant that shape inference may need the values of

Shape = tuple[int, ...]


def file_costs(path: Path, inputs: tuple[Tensor, ...] | None) -> list[LayerCost]:
    """One row per node with constants of its own, one for the remaining constants, one for the rest of the file.

    The bytes add up to the size of the file (and of the files of external data that it refers to).

    Raises:
        ModelFileError: it is no ONNX file, or the size of some map cannot be told.
        ExampleInputError: sizes other than the batch are open, or the inputs do not fit.
    """
    model = read_model(path)
    foreign = [(function.domain, function.name) for function in model.functions if function.domain != ONNX_DOMAIN]
    if foreign:
        model = onnx.inliner.inline_selected_functions(model, foreign)
    batch, sizes = _input_sizes(model, path, inputs)
    accountant = _Accountant(model, path, _infer_shapes(model, sizes), batch)
    rows = accountant.rows()
    stored, file_size = sum(constant.bytes for constant in accountant.constants.values()), path.stat().st_size
    rest = stored - sum(row.cost.packed_bytes for row in rows)
    if rest:
        rows.append(LayerCost("other constants", "constants", None, (), (), Cost(packed_bytes=rest)))
    # constants that do not fit in are in files of their own
    overhead = file_size - stored if stored <= file_size else file_size
    return [*rows, LayerCost("graph and functions", "file", None, (), (), Cost(packed_bytes=overhead))]


@dataclass(frozen=True)
class _Constant:
    elements: int
    bytes: int
    type: int

    @staticmethod
    def of(tensor: TensorProto) -> "_Constant":
        elements = prod(tensor.dims)
        if tensor.data_type == TensorProto.STRING:
            return _Constant(elements, sum(map(len, tensor.string_data)), tensor.data_type)
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        return _Constant(elements, elements * itemsize, tensor.data_type)


class _Accountant:
    """Walks the nodes once; a constant is counted at the first node that reads it."""

    def __init__(self, model: onnx.ModelProto, path: Path, shapes: dict[str, Shape], batch: int) -> None:
        self._nodes, self._path, self._shapes, self._batch = list(model.graph.node), path, shapes, batch
        maps = packed_maps(model)
        self._channels = {packed.name: packed.channels for packed in maps}
        self._compared = {packed.compared for packed in maps}
        self._producers = {name: node for node in self._nodes for name in node.output}
        self._ours = model.producer_name == "bnnfx"
        self.constants = {tensor.name: _Constant.of(tensor) for tensor in model.graph.initializer}
        for node in self._nodes:
            values = [attribute.t for attribute in node.attribute if attribute.type == onnx.AttributeProto.TENSOR]
            if node.op_type == "Constant" and values:
                self.constants[node.output[0]] = _Constant.of(values[0])
        self._sources = self._constant_sources()
        self._counted: set[str] = set()

    def rows(self) -> list[LayerCost]:
        found = (self._node(node) for node in self._nodes if node.output[0] not in self._sources)
        return [row for row in found if row is not None]

    def _node(self, node: onnx.NodeProto) -> LayerCost | None:
        if node.domain == ONNX_DOMAIN and node.op_type in BY_ONNX_NAME:
            return self._packed(node)
        operands, shape_in = None, self._shapes.get(node.input[0] if node.input else "", ())[1:]
        weight = node.input[_WEIGHTS[node.op_type]] if self._multiplies(node) else ""
        new = self._new(node)
        floats = sum(constant.elements for constant in new if constant.type in _FLOATS)
        if weight and self._is_unpacked(weight):
            operands = Operands(2, 2)
            weights, macs, shape_in = self._unpacked_convolution(node)
            own = any(constant.type == TensorProto.UINT8 for constant in new)
            cost = Cost.sum((operands.macs(macs), Cost(one_bit_parameters=weights if own else 0)))
        elif weight in self._sources:
            operands = Operands()
            macs = self._macs(node, self._shape(node, weight))
            cost = Cost.sum((operands.macs(macs), Cost(float_parameters=sum(constant.elements for constant in new))))
        elif node.op_type == "BatchNormalization":
            cost = Cost(batch_norm_channels=self.constants[node.input[1]].elements if new else 0)
        elif self._compares_with_mean(node):
            cost = Cost(mean_additions=prod(self._shape(node, node.input[0])) // self._batch)
        elif self._ours or self._is_bias(node):
            cost = Cost(float_parameters=floats)
        else:
            cost = Cost(other_parameters=floats)
        if cost == Cost():  # sizes, axes and the like, if anything
            return None
        return self._row(node, operands, shape_in, Cost.sum((cost, Cost(packed_bytes=_bytes(new)))))

    def _packed(self, node: onnx.NodeProto) -> LayerCost:
        op = BY_ONNX_NAME[node.op_type]
        tensors = dict(zip(op.tensors, node.input, strict=True))
        x, new = self._shape(node, tensors["x"]), self._new(node)
        floats = sum(constant.elements for constant in new if constant.type != TensorProto.UINT8)
        costs = [Cost(float_parameters=floats, packed_bytes=_bytes(new))]
        operands, shape_in = None, x[1:]
        if "weight" in tensors:
            attributes = from_onnx({a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
            weight = self._shape(node, tensors["weight"])
            weights, macs, _ = packed_convolution(weight, x, attributes)
            operands, shape_in = Operands(2, 2), (*x[1:3], attributes["channels"])
            own = any(constant.type == TensorProto.UINT8 and constant.bytes == prod(weight) for constant in new)
            costs += [operands.macs(macs // self._batch), Cost(one_bit_parameters=weights if own else 0)]
        elif op.bits_in:
            shape_in = (*x[1:3], self._channels.get(tensors["x"], x[3]))
        if not op.bits_in and tensors["threshold"] not in self._sources:
            costs.append(Cost(mean_additions=prod(x) // self._batch))
        return self._row(node, operands, shape_in, Cost.sum(costs))

    def _row(self, node: onnx.NodeProto, operands: Operands | None, shape_in: Shape, cost: Cost) -> LayerCost:
        result = node.output[0]
        shape = self._shapes.get(result, ())[1:]
        if result in self._channels and node.domain == ONNX_DOMAIN:
            shape = (*shape[:-1], self._channels[result])
        return LayerCost(node.name or result, node.op_type, operands, shape_in, shape, cost)

    def _macs(self, node: onnx.NodeProto, weight: Shape) -> int:
        x, y = self._shape(node, node.input[0]), self._shape(node, node.output[0])
        if node.op_type in _MATRIX_PRODUCTS:
            total = prod(y) * weight[-2 if len(weight) > 1 else -1]
        elif node.op_type == "Gemm":
            total = prod(y) // y[1] * prod(weight)
        else:
            # a transposed convolution multiplies every input by each weight, the others every output
            total = (prod(x) // x[1] if node.op_type == "ConvTranspose" else prod(y) // y[1]) * prod(weight)
        return -(-total // self._batch)

    def _multiplies(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a convolution or a product; our functions use an integer convolution to pack bits."""
        return node.domain == "" and node.op_type in _WEIGHTS and not (self._ours and node.op_type == "ConvInteger")

    def _is_unpacked(self, weight: str) -> bool:
        """Whether a weight is unpacked from bits inside the file, as in the dialect of standard operators."""
        sources = [self.constants[name].type for name in self._sources.get(weight, ())]
        return self._ours and weight not in self.constants and TensorProto.UINT8 in sources

    def _unpacked_convolution(self, node: onnx.NodeProto) -> tuple[int, int, Shape]:
        """Weights, multiply-accumulates of one sample and input shape of a convolution whose operands are unpacked."""
        packed = next(name for name in self._sources[node.input[1]] if self.constants[name].type == TensorProto.UINT8)
        name = node.input[0]
        while name in self._producers and name not in self._channels:  # along what unpacks it, one tensor each
            name = next(source for source in self._producers[name].input if source not in self._sources)
        if name not in self._channels:
            raise ModelFileError(
                f"{self._path} does not say which value holds the bits of '{node.name}'; export the model again."
            )
        x = self._shape(node, name)
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        attributes = from_onnx(given | {"channels": self._channels[name], "groups": given["group"]})
        weights, macs, _ = packed_convolution(self._shape(node, packed), x, attributes)
        return weights, macs // self._batch, (*x[1:3], self._channels[name])

    def _compares_with_mean(self, node: onnx.NodeProto) -> bool:
        """Whether bits come from a threshold that is computed at run time."""
        return tuple(node.input) in self._compared and node.input[1] not in self._sources

    def _is_bias(self, node: onnx.NodeProto) -> bool:
        """Whether a sum adds the bias of a linear layer, which ONNX spells as a product and a sum."""
        producers = [self._producers[name] for name in node.input if name in self._producers]
        return node.op_type == "Add" and any(
            producer.op_type in _MATRIX_PRODUCTS and producer.input[1] in self._sources for producer in producers
        )

    def _new(self, node: onnx.NodeProto) -> list[_Constant]:
        """The constants behind a node's inputs that no earlier node has counted."""
        names = dict.fromkeys(source for name in node.input for source in self._sources.get(name, ()))
        new = [name for name in names if name not in self._counted]
        self._counted.update(new)
        return [self.constants[name] for name in new]

    def _constant_sources(self) -> dict[str, tuple[str, ...]]:
        """For every value that depends on constants only: the constants."""
        sources: dict[str, tuple[str, ...]] = {name: (name,) for name in self.constants}
        for node in self._nodes:
            names = [name for name in node.input if name]
            if node.op_type == "Constant" or (names and all(name in sources for name in names)):
                behind = tuple(dict.fromkeys(source for name in names for source in sources[name]))
                for name in node.output:
                    sources.setdefault(name, behind)
        return sources

    def _shape(self, node: onnx.NodeProto, name: str) -> Shape:
        if name in self._shapes:
            return self._shapes[name]
        raise ModelFileError(
            f"The shape of '{name}', at node '{node.name or node.output[0]}' of {self._path}, cannot be inferred, so "
            "its operations cannot be counted; a size that depends on values is the usual cause."
        )


def _bytes(constants: list[_Constant]) -> int:
    return sum(constant.bytes for constant in constants)


def _input_sizes(model: onnx.ModelProto, path: Path, given: tuple[Tensor, ...] | None) -> tuple[int, dict[str, Shape]]:
    """The batch, and the shape of each input: as given, or as in the file with a batch of one."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if given is not None and len(given) != len(inputs):
        names = ", ".join(value.name for value in inputs)
        raise ExampleInputError(f"{path} takes {len(inputs)} input(s) ({names}); example_inputs has {len(given)}.")
    sizes: dict[str, Shape] = {}
    for index, value in enumerate(inputs):
        dims = [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
        shown = "x".join("?" if size is None else str(size) for size in dims)
        if given is not None:
            shape = tuple(given[index].shape)
            fits = len(shape) == len(dims) and all(d in (None, s) for d, s in zip(dims, shape, strict=True))
            if not fits or not shape[0]:
                raise ExampleInputError(
                    f"{path}: input {value.name} is {shown}, at least one sample; got {'x'.join(map(str, shape))}."
                )
        else:
            if not dims or None in dims[1:]:
                raise ExampleInputError(
                    f"{path} leaves sizes of input {value.name} ({shown or 'no shape'}) open; give example_inputs."
                )
            shape = tuple(1 if size is None else size for size in dims)
        sizes[value.name] = shape
    return next((shape[0] for shape in sizes.values()), 1), sizes


def _infer_shapes(model: onnx.ModelProto, sizes: dict[str, Shape]) -> dict[str, Shape]:
    """The shape of every value that is stored in the file, which ours are, or that `onnx` can infer from inputs."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= _SMALL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    symbols: dict[str, int] = {}
    for value in model.graph.input:
        if value.name in sizes:
            dims, kind = value.type.tensor_type.shape.dim, value.type.tensor_type.elem_type
            symbols |= {dim.dim_param: size for dim, size in zip(dims, sizes[value.name], strict=True) if dim.dim_param}
            light.graph.input.append(onnx.helper.make_tensor_value_info(value.name, kind, sizes[value.name]))
    for value in model.graph.output:
        light.graph.output.append(onnx.helper.make_empty_tensor_value_info(value.name))
    for value in model.graph.value_info:
        shape = [_size(dim, symbols) for dim in value.type.tensor_type.shape.dim]
        if None not in shape:
            kind = value.type.tensor_type.elem_type
            light.graph.value_info.append(onnx.helper.make_tensor_value_info(value.name, kind, shape))
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _size(dim: onnx.TensorShapeProto.Dimension, symbols: dict[str, int]) -> int | None:
    """A size, where it is a number or, as torch writes what it flattened, a product such as `64*batch`."""
    if dim.HasField("dim_value"):
        return dim.dim_value
    factors = [symbols.get(word, int(word) if word.isdecimal() else 0) for word in dim.dim_param.split("*")]
    return prod(factors) or None
