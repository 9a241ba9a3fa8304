"""Running a model, in whichever form, and recording every bit it computes under the name of its binarizer."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import torch
from torch import Tensor, fx

from bnnfx.backends.onnx.packed_maps import packed_channels, packed_maps
from bnnfx.backends.onnx.symbolic import from_onnx
from bnnfx.errors import StageError
from bnnfx.graph.dataflow import calls, is_batch_norm, is_kind, module_of, packed_op, packed_result
from bnnfx.graph.operators import Kind, operator_of_module
from bnnfx.graph.record import record_of
from bnnfx.graph.shapes import leaves_of
from bnnfx.graph.stage import Stage
from bnnfx.nn import ActivationBinarizer, BinaryLayer
from bnnfx.nn.comparison import compare
from bnnfx.nn.frozen_norm import frozen_batch_norm
from bnnfx.numerics.bits import unpack_bits
from bnnfx.ops import BY_ONNX_NAME, PackedOp
from bnnfx.ops.packed_op import ONNX_DOMAIN
from bnnfx.runtime.session import OPSET_KEY, open_session, read_model

Array = npt.NDArray[Any]


@dataclass
class Bits:
    """What one binarizer gave, one row per sample, its values in the order of the trainable graph (channels first).

    Attributes:
        bits: `bool[N, K]`.
        compared: the float values that were compared with the threshold, minus it, `float[N, K]`; None where the bits
            came from integers.
    """

    bits: Array
    compared: Array | None


@dataclass
class BitTrace:
    """One run of a model.

    Attributes:
        bits: by binarizer name, in order of execution.
        outputs: the model's outputs.
        constants: per packed node, its constant inputs in order.
        faults: per packed ONNX node, how many values differ from the reference operator on the same inputs.
        terms: length of the longest float sum, plus the number of float steps: scales the rounding to expect.
    """

    bits: dict[str, Bits] = field(default_factory=dict)
    outputs: list[Array] = field(default_factory=list)
    constants: dict[str, list[Array]] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    terms: int = 1


def trace_bits(model: fx.GraphModule | str | Path, inputs: tuple[Tensor, ...], *, kernels: bool = True) -> BitTrace:
    """Run a trainable graph, a packed graph, or an ONNX file.

    Raises:
        StageError: it is a graph that `convert` or `lower` did not make, or a file that `export_onnx` did not write.
        ModelFileError: the file cannot be run.
    """
    if isinstance(model, str | Path):
        return _trace_file(Path(model), inputs, kernels)
    record = record_of(model) if isinstance(model, fx.GraphModule) else None
    if record is None or record.stage not in (Stage.TRAINABLE, Stage.PACKED):
        raise StageError(
            "verify compares graphs of bnnfx.convert and bnnfx.lower, and paths of exported files; "
            f"got {f'a graph in stage {record.stage.value}' if record else f'a {type(model).__name__}'}."
        )
    recorder = _Recorder(copy.deepcopy(model).eval().cpu().float(), len(inputs[0]))
    with torch.no_grad():
        outputs = recorder.run(*inputs)
    recorder.trace.outputs = [y.numpy() for y in leaves_of(outputs) if isinstance(y, Tensor)]
    weights = [
        p.shape
        for m in model.modules()
        if operator_of_module(m).kind is Kind.LAYER and not isinstance(m, BinaryLayer)
        for p in m.parameters(recurse=False)
        if p.ndim > 1
    ]
    recorder.trace.terms = _terms(recorder.trace, weights) + _float_steps(model)
    return recorder.trace


_BATCH_NORM_STEPS = 4  # x * (gamma / sigma) + (beta - mean * (gamma / sigma)); folded into a scale and bias, as many
_BINARY_LAYER_STEPS = 2  # scale and bias


def _float_steps(gm: fx.GraphModule) -> int:
    """How often a value of the graph may be rounded on its way through it, beside the sums of float layers."""
    steps = 0
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if is_batch_norm(gm, node) or calls(node, frozen_batch_norm):
            steps += _BATCH_NORM_STEPS
        elif isinstance(module, BinaryLayer):
            steps += _BINARY_LAYER_STEPS
        elif module is not None or (node.op in ("call_function", "call_method") and not is_kind(gm, node, Kind.MOVE)):
            steps += 1
    return steps


def _terms(trace: BitTrace, weights: list[torch.Size]) -> int:
    return max((shape[1:].numel() for shape in weights), default=1) + len(trace.bits) + len(weights)


class _Recorder(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, samples: int) -> None:
        super().__init__(gm)
        self.gm = gm
        self.samples = samples
        self.trace = BitTrace()
        self._arguments: dict[fx.Node, list[Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        binarizer = module_of(self.gm, n)
        if isinstance(binarizer, ActivationBinarizer):
            x = self.env[n.all_input_nodes[0]]
            # of several thresholds the highest first, as bnnfx.split orders the halves that it makes of a ternary map
            distance = torch.cat([x - t for t in reversed(binarizer.thresholds(x, x.ndim))], dim=1)
            bits = torch.cat([result > level for level in reversed(binarizer.levels[:-1])], dim=1)
            self.trace.bits[n.name] = Bits(*(_rows(y.numpy(), self.samples) for y in (bits, distance)))
        if calls(n, compare):
            x, threshold = (self.env[a] for a in n.all_input_nodes)
            bits = result > n.args[2]
            self.trace.bits[n.name] = Bits(*(_rows(y.numpy(), self.samples) for y in (bits, x - threshold)))
        op = packed_op(n)
        if op is not None:
            arguments = [self.env[a] if isinstance(a, fx.Node) else a for a in n.args]
            self._arguments = {n: arguments}  # the nodes that pick its results come next
            sources = [a for a in n.args[: op.inputs] if isinstance(a, fx.Node)]
            self.trace.constants[n.name] = [self.env[a].numpy() for a in sources if a.op == "get_attr"]
        packed = packed_result(n)
        if packed is not None and packed.output == "bits":
            arguments = self._arguments[n if op is not None else n.args[0]]  # type: ignore[index]
            compared = None if packed.op.compared is None else packed.op.compared(*arguments).numpy()
            self.trace.bits[n.name] = _packed_bits(result.numpy(), packed_channels(n), compared, self.samples)
        return result


def _packed_bits(packed: Array, channels: int, compared: Array | None, samples: int) -> Bits:
    """Bits of a packed map, and where they came from floats the value minus the threshold, `[N, H, W, C]`."""
    distance = None if compared is None else _rows(compared.transpose(0, 3, 1, 2), samples)
    return Bits(_rows(unpack_bits(packed, channels).transpose(0, 3, 1, 2), samples), distance)


def _rows(array: Array, samples: int) -> Array:
    return array.reshape(samples, -1)


def _trace_file(path: Path, inputs: tuple[Tensor, ...], kernels: bool) -> BitTrace:
    model = read_model(path)
    if not any(entry.key == OPSET_KEY for entry in model.metadata_props):
        raise StageError(f"{path} was not written by bnnfx.export_onnx, so it is no form of a binary model.")
    graph, samples = model.graph, len(inputs[0])
    ours = [node for node in graph.node if node.domain == ONNX_DOMAIN]
    maps = packed_maps(model)
    constants = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
    outputs = [value.name for value in graph.output]
    known = {*constants, *(value.name for value in graph.input), *outputs}
    wanted = [name for node in ours for name in (*node.input, *node.output)]
    wanted += [name for packed in maps for name in (packed.name, *packed.compared)]
    exposed = [name for name in dict.fromkeys(wanted) if name not in known]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in exposed)
    values = open_session(model, str(path), kernels=kernels).run(*inputs)
    feeds = dict(zip((value.name for value in graph.input), (x.numpy() for x in inputs), strict=True))
    computed = values if isinstance(values, tuple) else (values,)
    by_name = constants | feeds | dict(zip([*outputs, *exposed], computed, strict=True))
    trace = BitTrace(outputs=[by_name[name] for name in outputs])
    distances: dict[str, Array] = {}
    for node in ours:
        op, arguments = _call(node, by_name)
        trace.faults[node.name] = _wrong_bytes(op, arguments, [by_name[name] for name in node.output])
        trace.constants[node.name] = [constants[name] for name in node.input if name in constants]
        if op.compared is not None:
            distances[node.output[op.outputs.index("bits")]] = op.compared(*arguments).numpy()
    for packed in maps:
        compared = distances.get(packed.name)
        if packed.compared:
            compared = np.subtract(*(by_name[name] for name in packed.compared))
            compared = compared if packed.channels_last else compared.transpose(0, 2, 3, 1)
        trace.bits[packed.name] = _packed_bits(by_name[packed.name], packed.channels, compared, samples)
    weights = [torch.Size(array.shape) for array in constants.values() if array.dtype == np.float32 and array.ndim > 1]
    trace.terms = _terms(trace, weights)
    return trace


def _call(node: onnx.NodeProto, by_name: dict[str, Array]) -> tuple[PackedOp, list[Any]]:
    """The reference operator of a node of ours, and the arguments that the node gives it."""
    op = BY_ONNX_NAME[node.op_type]
    tensors = [torch.from_numpy(np.array(by_name[name])) for name in node.input]
    attributes = from_onnx({a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
    return op, [*tensors, *(attributes[name] for name in op.attributes)]


def _wrong_bytes(op: PackedOp, arguments: list[Any], given: list[Array]) -> int:
    """In how many bytes results differ from those of the reference operator on the same inputs."""
    expected = leaves_of(op.target(*arguments))
    return sum(
        int((y.numpy().view(np.uint8) != np.ascontiguousarray(x).view(np.uint8)).sum())
        for y, x in zip(expected, given, strict=True)
    )
