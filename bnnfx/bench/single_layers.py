"""The benchmark of single convolutions: the time of that node alone, out of the engines' profiles."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from bnnfx.bench.contenders import FP32, INT8, NO_OPENVINO, WITH_KERNELS
from bnnfx.bench.engines import Array, Engine
from bnnfx.bench.inputs import feeds
from bnnfx.bench.layer_files import LayerShape, layer_files, openvino_layer
from bnnfx.bench.nodes import NodeTimes, OnnxRuntimeProfile, OpenVinoProfile, Profile, timed_runs
from bnnfx.bench.quantized import quantize
from bnnfx.bench.timing import Effort, Spread, alternate, ratios
from bnnfx.bench.whole_models import Notify
from bnnfx.errors import BenchmarkError, first_line
from bnnfx.runtime.library import ceiling, isa_in_use, isas, library_path

OPENVINO_BINARY = "OpenVINO binary"

_RESOLUTION = 1e-6  # of the engines' profiles, in seconds: what took less is counted as that


@dataclass(frozen=True)
class LayerRow:
    """One contender.

    Attributes:
        name: of the contender.
        operator: what the convolution became.
        implementation: what the engine says it ran; empty where it does not.
        ratio: how many times as fast as the float convolution, taken round by round.
        milliseconds: of the convolution alone, per image.
        around: of all other nodes (packing, quantizing, change of layout) together, per image.
        of_ceiling: its rate as a share of what the processor can do; None if it is not binary, or not held to the same
            instruction set.
        samples: milliseconds of the convolution in each round, for the whole batch.
    """

    name: str
    operator: str
    implementation: str
    ratio: Spread
    milliseconds: Spread
    around: float
    of_ceiling: float | None
    samples: list[float]


@dataclass(frozen=True)
class LayerTable:
    """All contenders for one shape.

    Attributes:
        layer: the shape.
        macs: multiply-accumulates for one image.
        threads: of each contender.
        batch: images per run.
        ceiling: binary multiply-accumulates per second of all threads together.
        rows: one per contender.
        notes: who is missing and why.
    """

    layer: LayerShape
    macs: int
    threads: int
    batch: int
    ceiling: float
    rows: list[LayerRow]
    notes: list[str]


def measure_layer(
    shape: LayerShape, *, threads: int, batch: int, effort: Effort, seed: int, folder: Path, notify: Notify
) -> LayerTable:
    """Build one convolution in every form and profile all in turn, in one process.

    Raises:
        BenchmarkError: an engine did not run the convolution as a node of its own.
        FileNotFoundError: the kernel library was never built.
    """
    notify(f"building {shape}", 0.0)
    files = layer_files(shape, seed, folder)
    assert files.original is not None and files.ours is not None
    int8 = folder / "int8.onnx"
    quantize(files.original, int8, files.inputs, seed)
    given = feeds(files.inputs, batch, seed)
    engines = {
        FP32: Engine("onnxruntime", str(files.original)),
        INT8: Engine("onnxruntime", str(int8)),
        WITH_KERNELS: Engine("onnxruntime", str(files.ours), library=str(library_path())),
    }
    profiles: dict[str, Profile] = {
        name: OnnxRuntimeProfile(engine, threads, given) for name, engine in engines.items()
    }
    notes = []
    try:
        profiles[OPENVINO_BINARY] = _openvino(shape, threads, given, seed)
    except BenchmarkError as error:
        notes.append(str(error))
    limit = threads * ceiling()
    alternate(profiles, effort, lambda part: notify(f"timing {shape}, {threads} thread(s), batch {batch}", part))
    nodes = {name: timed_runs(profile.nodes()) for name, profile in profiles.items()}
    reference = _convolution(FP32, nodes[FP32]).seconds
    work = batch * shape.macs
    held_to_it = [WITH_KERNELS]
    if isa_in_use() == isas()[0]:  # BNNFX_ISA narrows our kernels and the ceiling, not OpenVINO
        held_to_it.append(OPENVINO_BINARY)
    rows = [
        _row(name, found, reference, batch, work / limit if name in held_to_it else None)
        for name, found in nodes.items()
    ]
    return LayerTable(shape, shape.macs, threads, batch, limit, rows, notes)


def _openvino(shape: LayerShape, threads: int, given: Sequence[Array], seed: int) -> Profile:
    if find_spec("openvino") is None:
        raise BenchmarkError(NO_OPENVINO)
    try:
        return OpenVinoProfile(openvino_layer(shape, len(given[0]), seed), threads, "f32", given)
    except Exception as error:  # it compiles some shapes and not others
        raise BenchmarkError(f"{OPENVINO_BINARY} was skipped: {first_line(error)}") from error


def _convolution(name: str, nodes: Sequence[NodeTimes]) -> NodeTimes:
    found = [node for node in nodes if node.is_convolution]
    if len(found) != 1:
        ran = ", ".join(node.op_type for node in nodes)
        raise BenchmarkError(f"{name} did not run the layer as one convolution; it ran {ran}.")
    (node,) = found
    return replace(node, seconds=[max(second, _RESOLUTION) for second in node.seconds])


def _row(
    name: str, nodes: Sequence[NodeTimes], reference: Sequence[float], batch: int, least: float | None
) -> LayerRow:
    """`least` is the time in which the ceiling does this work; None if the work is not binary."""
    node = _convolution(name, nodes)
    samples = [1e3 * second for second in node.seconds]
    spread = Spread.of([sample / batch for sample in samples])
    around = sum(1e3 * Spread.of(other.seconds).median / batch for other in nodes if not other.is_convolution)
    share = None if least is None else 1e3 * least / (spread.median * batch)
    return LayerRow(
        name, node.op_type, node.implementation, ratios(reference, node.seconds), spread, around, share, samples
    )
