"""Running a model, in whichever form, and recording every bit it computes under the name of its binarizer."""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from bnnfx.errors import StageError
from bnnfx.graph.dataflow import (
    calls,
    channel_axis,
    drops,
    is_inner,
    module_of,
    packed_channels,
    packed_op,
    packed_result,
)
from bnnfx.graph.halved_channels import groups_of, readers_of_shifted
from bnnfx.graph.record import record_of
from bnnfx.graph.shapes import infer_shapes, leaves_of, require_arguments
from bnnfx.graph.stage import Stage
from bnnfx.nn import ActivationBinarizer, BinaryLayer, layer_kind
from bnnfx.nn.comparison import compare
from bnnfx.nn.halves import halves_by_group, halves_in_blocks
from bnnfx.numerics.bits import pack_bits, unpack_bits
from bnnfx.ops import PackedOp
from bnnfx.verification.rounding import UNIT, Deviations, error_of

Array = npt.NDArray[Any]


@dataclass
class Bits:
    """What one binarizer gave, one row per sample, its values in the order of the trainable graph (channels first).

    Attributes:
        bits: `bool[N, K]`.
        compared: the float values that were compared with the threshold, minus it, `float[N, K]`; None where the bits
            came from integers.
        error: how far rounding may have moved each of them, `float[N, K]`; None where the form does not tell.
    """

    bits: Array
    compared: Array | None
    error: Array | None = None


@dataclass
class BitTrace:
    """One run of a model.

    Attributes:
        bits: by binarizer name, in order of execution.
        outputs: the model's outputs.
        errors: how far rounding may have moved each value of each output; None where the form does not tell.
        constants: per packed node, its constant inputs in order.
        faults: per packed ONNX node, how many bytes differ from the reference operator's on the same inputs.
        same: binarizers whose bits are those of another one, by name.
        inner: the names of bits that no binarizer has, as those that are pooled before they are used.
        shapes: of a graph, the shape of every tensor, by its node.
        as_floats: the binarizers that float layers alone read; a file has no bits of them.
        of_file: whether it is the run of a file.
        samples: how many samples were run.
    """

    bits: dict[str, Bits] = field(default_factory=dict)
    outputs: list[Array] = field(default_factory=list)
    errors: list[Array] | None = None
    constants: dict[str, list[Array]] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    inner: set[str] = field(default_factory=set)
    shapes: dict[fx.Node, torch.Size] = field(default_factory=dict)
    as_floats: set[str] = field(default_factory=set)
    of_file: bool = False
    samples: int = 0

    def bits_of(self, name: str, same: Mapping[str, str]) -> Bits | None:
        """The bits of a binarizer, or of the one that stands for it; None if there are none."""
        return self.bits.get(name) or self.bits.get(same.get(name, "")) or self.bits.get(self.same.get(name, ""))


def trace_bits(
    model: fx.GraphModule | str | Path,
    inputs: tuple[Tensor, ...],
    *,
    kernels: bool = True,
    given: BitTrace | None = None,
) -> BitTrace:
    """Run a trainable graph, a packed graph, or an ONNX file.

    Args:
        model: the graph, or the path of the file.
        inputs: the arguments of its forward.
        kernels: run a file with the kernel library.
        given: another run, whose bits go on in place of the model's own: each node gets the inputs that it has there,
            and what differs at one does not make others differ. The model's own bits are recorded.

    Raises:
        ExampleInputError: the inputs do not fit the graph.
        StageError: it is a graph that `convert` or `lower` did not make, or a file that `export_onnx` did not write.
        ModelFileError: the file cannot be run.
    """
    if isinstance(model, str | Path):
        from bnnfx.runtime.session import read_model
        from bnnfx.verification.file_trace import trace_file

        return trace_file(read_model(model), str(model), inputs, kernels=kernels, given=given)
    record = record_of(model) if isinstance(model, fx.GraphModule) else None
    if record is None or record.stage not in (Stage.TRAINABLE, Stage.PACKED):
        raise StageError(
            "verify compares graphs of bnnfx.convert and bnnfx.lower, and paths of exported files; "
            f"got {f'a graph in stage {record.stage.value}' if record else f'a {type(model).__name__}'}."
        )
    require_arguments(model, inputs)
    run = copy.deepcopy(model).eval().cpu().float()
    try:
        return trace_graph(run, inputs, dict(record.same_bits), given)
    except Exception:
        infer_shapes(run, inputs)  # names what does not fit
        raise


def trace_graph(
    gm: fx.GraphModule,
    inputs: tuple[Tensor, ...],
    same: dict[str, str],
    given: BitTrace | None = None,
    graph: fx.Graph | None = None,
) -> BitTrace:
    """Run a trainable or packed graph, in evaluation and in float32 on the CPU, as it is.

    Args:
        gm: the graph; its modules may keep what they were called with.
        inputs: the arguments of its forward.
        same: what its record says of binarizers that share their bits.
        given: see `trace_bits`.
        graph: that of which `gm` is a copy, to record the shapes of its nodes.
    """
    recorder = _Recorder(gm, len(inputs[0]), same, given, graph)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        recorder.run(*inputs)
    return recorder.trace


class _Recorder(fx.Interpreter):
    def __init__(
        self,
        gm: fx.GraphModule,
        samples: int,
        same: dict[str, str],
        given: BitTrace | None,
        graph: fx.Graph | None,
    ) -> None:
        super().__init__(gm, graph=graph)
        self.extra_traceback = False
        self.gm = gm
        self.samples = samples
        self.given = given
        self.trace = BitTrace(same=same, samples=samples)
        self.deviations = Deviations(gm, self)
        self._call: tuple[fx.Node, list[Any]] | None = None

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.trace.shapes[n] = result.shape
        binarizer = module_of(self.gm, n)
        if isinstance(binarizer, ActivationBinarizer):
            result = self._binarize(n, binarizer, result)
        elif calls(n, compare):
            result = self._compare(n, result)
        elif n.op == "output":
            self._keep_outputs(n, result)
        op = packed_op(n)
        if op is not None:
            self._call = (n, [self.env[a] if isinstance(a, fx.Node) else a for a in n.args])  # its results come next
            sources = [a for a in n.args[: op.inputs] if isinstance(a, fx.Node)]
            self.trace.constants[n.name] = [self.env[a].numpy() for a in sources if a.op == "get_attr"]
        packed = packed_result(n)
        if packed is not None and packed.output == "bits":
            result = self._pack(n, packed.op, result)
        if n.op != "output":
            self.deviations.note(n, result)
        return result

    def _binarize(self, n: fx.Node, binarizer: ActivationBinarizer, result: Tensor) -> Tensor:
        source, levels = n.all_input_nodes[0], binarizer.levels
        x = self.env[source]
        deviation = self.deviations.of(source)
        # of several thresholds the highest first, and by group, as bnnfx.split orders the halves of a ternary map
        thresholds = binarizer.thresholds(x, x.ndim)[::-1]
        distances = [x - t for t in thresholds]
        if not binarizer.pointwise and x.numel():  # the threshold is computed from all values of a sample
            axes = tuple(range(1, x.ndim))
            deviation = deviation + UNIT * x[0].numel() ** 0.5 * x.abs().amax(axes, keepdim=True)
            deviation = deviation + deviation.amax(axes, keepdim=True)
        axis = channel_axis(self.gm, n)
        distance = _channels_first(distances, axis)
        error = error_of(_channels_first([UNIT * y.abs() + deviation for y in distances], axis))
        bits = _channels_first([result > level for level in reversed(levels[:-1])], axis)
        groups = self._groups(n) if len(levels) == 3 else 1
        if groups > 1:
            distance, error, bits = (halves_by_group(each, groups) for each in (distance, error, bits))
        self._record(n, bits.numpy(), distance.numpy(), error.numpy())
        if not any(isinstance(module_of(self.gm, user), BinaryLayer) for user in self._readers(n)):
            self.trace.as_floats.add(n.name)
        given = self._given(n.name)
        if given is None or given.size != bits.numel():
            return result
        parts = torch.from_numpy(given).reshape(bits.shape)
        above = (halves_in_blocks(parts, groups) if groups > 1 else parts).chunk(len(levels) - 1, dim=1)
        return torch.tensor(levels, dtype=result.dtype)[sum(part.long() for part in above)].movedim(1, axis)

    def _readers(self, n: fx.Node) -> Iterator[fx.Node]:
        """What reads the bits, with what keeps them in evaluation in between."""
        for user in n.users:
            yield from self._readers(user) if drops(self.gm, user) else (user,)

    def _groups(self, n: fx.Node) -> int:
        """In how many groups the layers read a ternary map; `bnnfx.split` refuses what they read in several ways."""
        layers = [reader for _, reader, _ in readers_of_shifted(self.gm, n) if layer_kind(module_of(self.gm, reader))]
        return max((groups_of(self.gm, layer) for layer in layers), default=1)

    def _compare(self, n: fx.Node, result: Tensor) -> Tensor:
        source, threshold = n.all_input_nodes
        x, t = self.env[source], self.env[threshold]
        low, high, axis = (float(n.args[2]), float(n.args[3]), (*n.args, 1)[4])  # type: ignore[arg-type]
        error = error_of(UNIT * (x - t).abs() + self.deviations.of(source))
        bits, distance, error = (_channels_first([y], axis) for y in (result > low, x - t, error))  # type: ignore[arg-type]
        self._record(n, bits.numpy(), distance.numpy(), error.numpy())
        self.trace.as_floats.add(n.name)
        given = self._given(n.name)
        if given is None or given.size != result.numel():
            return result
        return torch.where(torch.from_numpy(given).reshape(bits.shape), high, low).movedim(1, axis)  # type: ignore[arg-type]

    def _pack(self, n: fx.Node, op: PackedOp, result: Tensor) -> Tensor:
        assert self._call is not None
        channels = packed_channels(n)
        shape = (*result.shape[:3], channels)
        if is_inner(n):
            self.trace.inner.add(n.name)
        given = self._given(n.name)
        replaced = result
        if given is not None and given.size == math.prod(shape):
            replaced = torch.from_numpy(packed_map(given, shape))
            if torch.equal(replaced, result):  # what was compared is of no interest
                self.trace.bits[n.name] = Bits(given, None)
                return result
        bits = unpack_bits(result.numpy(), channels)
        compared, error = (None if y is None else y.transpose(0, 3, 1, 2) for y in self._compared(op, *self._call))
        self._record(n, bits.transpose(0, 3, 1, 2), compared, error)
        return replaced

    def _compared(self, op: PackedOp, node: fx.Node, arguments: list[Any]) -> tuple[Array | None, ...]:
        """What was compared, minus the threshold, and how far it may be off, `[N, H, W, C]`."""
        if op.compared is None:
            return None, None
        threshold = arguments[op.tensors.index("threshold")]
        if op.bits_in:
            stream = self.env[node][0] if len(op.outputs) > 1 else None
            distance = op.compared(*arguments) if stream is None else stream - threshold
            if stream is None:  # it is the operator's own
                deviation = self.deviations.of_stream(node, op, distance + threshold)
            else:
                deviation = self.deviations.of(node)[0]
        else:
            distance = op.compared(*arguments)
            deviation = self.deviations.of(node.args[0]) + self.deviations.of(node.args[1])
            if isinstance(deviation, Tensor) and not op.signature.channels_last:
                deviation = deviation.expand_as(arguments[0]).permute(0, 2, 3, 1)
        return distance.numpy(), error_of(UNIT * distance.abs() + deviation).numpy()

    def _record(self, n: fx.Node, bits: Array, compared: Array | None, error: Array | None) -> None:
        rows = (None if y is None else y.reshape(rows_of(y, self.samples), -1) for y in (bits, compared, error))
        self.trace.bits[n.name] = Bits(*rows)  # type: ignore[arg-type]

    def _given(self, name: str) -> Array | None:
        found = None if self.given is None else self.given.bits_of(name, self.trace.same)
        return None if found is None else found.bits

    def _keep_outputs(self, n: fx.Node, result: Any) -> None:
        self.trace.outputs = [y.numpy() for y in leaves_of(result) if isinstance(y, Tensor)]
        given = leaves_of(fx.node.map_arg(n.args[0], self._deviation_like))
        pairs = [(d, y) for d, y in zip(given, leaves_of(result), strict=True) if isinstance(y, Tensor)]
        self.trace.errors = [
            error_of(torch.zeros_like(y) + d).numpy() if y.is_floating_point() else np.zeros(y.shape, np.float32)
            for d, y in pairs
        ]

    def _deviation_like(self, source: fx.Node) -> Any:
        """The deviation of a value, in the form of that."""
        value, deviation = self.env[source], self.deviations.of(source)
        if isinstance(value, Tensor) or isinstance(deviation, Tensor) or leaves_of(deviation) != [0.0]:
            return deviation
        return [0.0] * len(leaves_of(value))  # a structure of exact values


def _channels_first(parts: list[Tensor], axis: int) -> Tensor:
    """Values side by side, with their channels, which are this axis, as axis 1."""
    return torch.cat(parts, dim=axis).movedim(axis, 1)


def packed_map(rows: Array, shape: tuple[int, ...]) -> Array:
    """Rows of bits, channels first, as a packed map.

    Args:
        rows: `bool[N, K]`.
        shape: of the map as bits, `[N, H, W, C]`.

    Returns:
        `uint8[N, H, W, row_bytes(C)]`.
    """
    batch, height, width, channels = shape
    return pack_bits(np.ascontiguousarray(rows.reshape(batch, channels, height, width).transpose(0, 2, 3, 1)))


def rows_of(values: Array, samples: int) -> int:
    """In how many rows values lie, one for each sample; in one where no input goes into them, as their number tells."""
    return samples if values.size % samples == 0 else 1
