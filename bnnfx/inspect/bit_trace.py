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
from torch import Tensor, fx, nn

from bnnfx.core.dataflow import CONVOLUTIONS, module_of, packed_op
from bnnfx.core.record import record_of
from bnnfx.core.stage import Stage
from bnnfx.errors import StageError
from bnnfx.export.packed_maps import packed_channels, packed_maps
from bnnfx.export.symbolic import from_onnx
from bnnfx.nn import ActivationBinarizer
from bnnfx.numerics.bits import unpack_bits
from bnnfx.ops import PACKED_OPS
from bnnfx.ops.registry import ONNX_DOMAIN
from bnnfx.runtime.session import open_session, read_model

Array = npt.NDArray[Any]

_BY_ONNX_NAME = {op.onnx_name: op for op in PACKED_OPS}


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
        StageError: it is a graph that was not made by `convert` or `lower`.
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
    recorder.trace.outputs = [y.numpy() for y in _tensors(outputs)]
    weights = [p.shape for m in model.modules() if type(m) in _FLOAT for p in m.parameters(recurse=False) if p.ndim > 1]
    recorder.trace.terms = _terms(recorder.trace, weights)
    return recorder.trace


_FLOAT = (*CONVOLUTIONS, nn.Linear)


def _terms(trace: BitTrace, weights: list[torch.Size]) -> int:
    return max((shape[1:].numel() for shape in weights), default=1) + len(trace.bits) + len(weights)


def _tensors(outputs: object) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    assert isinstance(outputs, tuple | list)
    return [tensor for item in outputs for tensor in _tensors(item)]


class _Recorder(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, samples: int) -> None:
        super().__init__(gm)
        self.gm = gm
        self.samples = samples
        self.trace = BitTrace()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        binarizer = module_of(self.gm, n)
        if isinstance(binarizer, ActivationBinarizer):
            x = self.env[n.all_input_nodes[0]]
            compared = (x - binarizer.threshold(x, x.ndim)).numpy()
            self.trace.bits[n.name] = Bits(_rows(result.numpy() > 0, self.samples), _rows(compared, self.samples))
        op = packed_op(n)
        if op is not None:
            sources = [a for a in n.args[: op.inputs] if isinstance(a, fx.Node)]
            self.trace.constants[n.name] = [self.env[a].numpy() for a in sources if a.op == "get_attr"]
            if op.bits_out:
                compared = [] if op.bits_in else [self.env[a].numpy() for a in sources]
                self.trace.bits[n.name] = _packed_bits(result.numpy(), packed_channels(n), compared, self.samples)
        return result


def _packed_bits(packed: Array, channels: int, compared: list[Array], samples: int) -> Bits:
    """Bits of a packed map, and what was compared if it was made from a float map and a threshold."""
    distance = _rows(compared[0] - compared[1], samples) if compared else None
    return Bits(_rows(unpack_bits(packed, channels).transpose(0, 3, 1, 2), samples), distance)


def _rows(array: Array, samples: int) -> Array:
    return array.reshape(samples, -1)


def _trace_file(path: Path, inputs: tuple[Tensor, ...], kernels: bool) -> BitTrace:
    model = read_model(path)
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
    for packed in maps:
        compared = [by_name[name] for name in packed.compared]
        trace.bits[packed.name] = _packed_bits(by_name[packed.name], packed.channels, compared, samples)
    for node in ours:
        trace.faults[node.name] = _wrong_bytes(node, by_name)
        trace.constants[node.name] = [constants[name] for name in node.input if name in constants]
    weights = [torch.Size(array.shape) for array in constants.values() if array.dtype == np.float32 and array.ndim > 1]
    trace.terms = _terms(trace, weights)
    return trace


def _wrong_bytes(node: onnx.NodeProto, by_name: dict[str, Array]) -> int:
    """In how many bytes the node's result differs from that of the reference operator on the same inputs."""
    op = _BY_ONNX_NAME[node.op_type]
    tensors = [torch.from_numpy(np.array(by_name[name])) for name in node.input]
    attributes = from_onnx({a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
    expected = op.target(*tensors, *(attributes[name] for name in op.attributes)).numpy()
    given = np.ascontiguousarray(by_name[node.output[0]])
    return int((expected.view(np.uint8) != given.view(np.uint8)).sum())
