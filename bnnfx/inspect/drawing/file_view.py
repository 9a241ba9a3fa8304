"""The graph of an ONNX file as people look at it; `graph_view` says what the parts are.

A file knows no modules, so nodes are in no blocks; those of our operators are named for the layers that they were.
"""

from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path

import onnx
import onnx.helper
from onnx import TensorProto

from bnnfx.backends.onnx.packed_maps import packed_maps
from bnnfx.inspect.drawing.graph_view import Edge, GraphView, Kind, Node
from bnnfx.inspect.drawing.graph_view_labels import epilogue_of
from bnnfx.inspect.drawing.graph_view_values import Holds
from bnnfx.ops.packed_op import ONNX_DOMAIN
from bnnfx.runtime.session import read_model

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_SIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_OUTPUT = "output"


def file_view(path: str | Path) -> GraphView:
    """What there is to see of an ONNX file, ours or any other. Functions are not looked into.

    Raises:
        ModelFileError: missing, not ONNX, or written for newer operators of ours.
    """
    path = Path(path)
    model = read_model(path)
    reader = _Reader(model)
    scheme = next((entry.value for entry in model.metadata_props if entry.key == "bnnfx.scheme"), "")
    title = ", ".join(part for part in (path.name, "ONNX", scheme) if part)
    return GraphView(title, tuple(reader.nodes()), tuple(reader.edges()))


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.type == onnx.AttributeProto.TENSOR:
                    self._constants[node.output[0]] = attribute.t
        self._inputs = [value.name for value in graph.input if value.name not in self._constants]
        self._outputs = [value.name for value in graph.output]
        self._nodes = [node for node in graph.node if node.output[0] not in self._constants]
        self._types = {v.name: v.type.tensor_type for v in (*graph.value_info, *graph.input, *graph.output)}
        self._channels = {packed.name: packed.channels for packed in packed_maps(model)}
        self._names = self._unique_names()
        self._sources = {name: name for name in self._inputs}
        self._sources |= {value: name for node, name in self._named() for value in node.output if value}
        batch = self._types[self._inputs[0]].shape.dim if self._inputs else ()
        self._batch = batch[0].dim_param if batch else ""

    def nodes(self) -> Iterator[Node]:
        for name in self._inputs:
            yield Node(name, "input", (f"{name} input",), name, "", "", {"operation": "input"}, ())
        for node, name in self._named():
            ours = node.domain == ONNX_DOMAIN
            constants = tuple(value for value in node.input if value in self._constants)
            operation, steps = epilogue_of(node.op_type) if ours else (node.op_type, "")
            first = " ".join(part for part in (name, operation, self._sizes(node)) if part)
            kind: Kind = "packed" if ours else "float"
            yield Node(name, kind, (first, steps) if steps else (first,), name, "", "", self._details(node), constants)
        yield Node(_OUTPUT, "output", (_OUTPUT,), _OUTPUT, "", "", {"operation": _OUTPUT}, ())

    def edges(self) -> Iterator[Edge]:
        for node, name in self._named():
            for value in dict.fromkeys(node.input):
                if value in self._sources:
                    yield self._edge(value, name)
        for value in dict.fromkeys(self._outputs):
            if value in self._sources:
                yield self._edge(value, _OUTPUT)

    def _named(self) -> Iterator[tuple[onnx.NodeProto, str]]:
        return zip(self._nodes, self._names, strict=True)

    def _unique_names(self) -> list[str]:
        """Names need not be there, nor differ; inputs and the output are nodes here, too."""
        taken = Counter((*self._inputs, _OUTPUT))
        names = []
        for node in self._nodes:
            name = wanted = node.name or node.output[0]
            while taken[name]:
                name = f"{wanted}_{taken[wanted]}"
                taken[wanted] += 1
            taken[name] += 1
            names.append(name)
        return names

    def _edge(self, value: str, target: str) -> Edge:
        kind = self._types.get(value)
        item = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize if kind and kind.elem_type else None
        dims = list(kind.shape.dim) if kind is not None and kind.HasField("shape") else None
        bits = value in self._channels
        holds: Holds = "bits" if bits else "float" if kind is None or kind.elem_type in _FLOATS else "other"
        if dims is None:
            return Edge(self._sources[value], target, value, holds, None, None)
        known = [dim.dim_value for dim in dims if dim.HasField("dim_value")]
        size = item * prod(known) if item and len(known) + any(map(self._is_batch, dims)) == len(dims) else None
        shape = ["N" if self._is_batch(dim) else str(dim.dim_value or dim.dim_param or "?") for dim in dims]
        if bits:
            shape[-1] = str(self._channels[value])
        return Edge(self._sources[value], target, value, holds, tuple(shape), size)

    def _is_batch(self, dim: onnx.TensorShapeProto.Dimension) -> bool:
        return bool(self._batch) and dim.dim_param == self._batch

    def _sizes(self, node: onnx.NodeProto) -> str:
        """Kernel and channels, where a constant weight says them; stride, dilation and groups where they are not 1."""
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        weight = self._constants.get(node.input[1]) if len(node.input) > 1 else None
        parts = []
        if node.domain == ONNX_DOMAIN and weight is not None and "channels" in given:
            parts += [f"{weight.dims[1]}×{weight.dims[2]}", f"{given['channels']}→{weight.dims[0]}"]
        elif node.op_type in _SIZED and weight is not None and len(weight.dims) > 2:
            groups = given.get("group", 1)
            parts += ["×".join(map(str, weight.dims[2:])), f"{weight.dims[1] * groups}→{weight.dims[0]}"]
        elif node.op_type in _SIZED and weight is not None and len(weight.dims) == 2:
            inputs, outputs = reversed(weight.dims) if given.get("transB") else weight.dims
            parts.append(f"{inputs}→{outputs}")
        elif "kernel_shape" in given:
            parts.append("×".join(map(str, given["kernel_shape"])))
        for mark, names in (("/", ("strides",)), ("d", ("dilations",)), ("g", ("group", "groups"))):
            value = next((given[name] for name in names if name in given), 1)
            sizes = list(value) if isinstance(value, list) else [value]
            if set(sizes) != {1}:
                parts.append(mark + "×".join(map(str, sizes[:1] if len(set(sizes)) == 1 else sizes)))
        return " ".join(parts)

    def _details(self, node: onnx.NodeProto) -> dict[str, str]:
        details = {"operation": node.op_type, "domain": node.domain or "ai.onnx"}
        settings = [
            f"{attribute.name}={onnx.helper.get_attribute_value(attribute)}"
            for attribute in node.attribute
            if attribute.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS, onnx.AttributeProto.FLOAT)
        ]
        if settings:
            details["settings"] = ", ".join(settings)
        for name in node.input:
            if name in self._constants:
                tensor = self._constants[name]
                details[name] = f"{TensorProto.DataType.Name(tensor.data_type).lower()}{list(tensor.dims)}"
        return details
