"""Who runs against whom."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bnnfx.bench.engines import Engine, openvino_compile, openvino_read
from bnnfx.bench.inputs import Input, feeds
from bnnfx.bench.model_forms import Files
from bnnfx.bench.nodes import NodeTimes, OnnxRuntimeProfile
from bnnfx.bench.quantized import quantize
from bnnfx.errors import first_line
from bnnfx.runtime.library import library_path

FP32 = "ONNX Runtime fp32"
INT8 = "ONNX Runtime int8"
WITHOUT_KERNELS = "bnnfx without kernels"
STANDARD = "bnnfx, dialect standard"
WITH_KERNELS = "bnnfx with kernels"
OPENVINO_FP32, OPENVINO_BF16, OPENVINO_INT8 = "OpenVINO fp32", "OpenVINO bf16", "OpenVINO int8"

NO_OPENVINO = "OpenVINO was skipped: it is not installed (pip install 'bnnfx[openvino]')"


@dataclass
class Field:
    """All contenders by name, and what has to be said about them: who is missing and why, what runs how."""

    engines: dict[str, Engine]
    notes: list[str]

    @property
    def reference(self) -> str:
        """The contender that the others are compared with."""
        return FP32 if FP32 in self.engines else next(iter(self.engines))


def gather(files: Files, seed: int, folder: Path) -> Field:
    """Every contender that the files at hand allow; the int8 file is written to `folder`.

    Raises:
        FileNotFoundError: the kernel library was never built.
    """
    field = Field({}, list(files.notes))
    if files.original is not None:
        field.engines[FP32] = Engine("onnxruntime", str(files.original))
        int8 = folder / "int8.onnx"
        try:
            quantize(files.original, int8, files.inputs, seed)
            field.notes.append(_integer_share(int8, files.inputs))
            field.engines[INT8] = Engine("onnxruntime", str(int8))
        except Exception as error:  # whatever the quantizer meets in a file of unknown origin
            field.notes.append(_skipped(INT8, error, folder))
    if files.ours is not None:
        field.engines[WITHOUT_KERNELS] = Engine("onnxruntime", str(files.ours))
        if files.standard is not None:
            field.engines[STANDARD] = Engine("onnxruntime", str(files.standard))
        field.engines[WITH_KERNELS] = Engine("onnxruntime", str(files.ours), library=str(library_path()))
    if files.original is not None:
        _add_openvino(field, files.inputs, folder)
    return field


def _add_openvino(field: Field, inputs: tuple[Input, ...], folder: Path) -> None:
    if find_spec("openvino") is None:
        field.notes.append(NO_OPENVINO)
        return
    import openvino

    path = field.engines[FP32].path
    candidates = {OPENVINO_FP32: Engine("openvino", path, precision="f32")}
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        candidates[OPENVINO_BF16] = Engine("openvino", path, precision="bf16")  # what it chooses by itself here
    if INT8 in field.engines:
        candidates[OPENVINO_INT8] = Engine("openvino", field.engines[INT8].path)
    given = feeds(inputs, _batch(inputs), 0)
    for name, engine in candidates.items():
        try:
            compiled = openvino_compile(openvino_read(engine, given), 1, engine.precision)
        except Exception as error:  # a file of unknown origin, again
            field.notes.append(_skipped(name, error, folder))
            continue
        field.engines[name] = engine
        if name == OPENVINO_INT8:
            field.notes.append(_openvino_integer_share(compiled))


def _skipped(name: str, error: Exception, folder: Path) -> str:
    """Without the name of our temporary folder, which means nothing to the reader."""
    return f"{name} was skipped: {first_line(error).replace(str(folder), '...')}"


def _batch(inputs: tuple[Input, ...]) -> int:
    return next((value.shape[0] for value in inputs if value.shape and value.shape[0] is not None), 1)


def _integer_share(path: Path, inputs: tuple[Input, ...]) -> str:
    """Runs an int8 file once and counts the products that are really computed on integers."""
    profile = OnnxRuntimeProfile(Engine("onnxruntime", str(path)), 1, feeds(inputs, _batch(inputs), 0))
    profile()
    products = [node for node in profile.nodes() if node.is_product]
    return _share(INT8, [node.on_integers for node in products])


def _openvino_integer_share(compiled: Any) -> str:
    """The same, from the graph that OpenVINO compiled."""
    integer = []
    for operation in compiled.get_runtime_model().get_ops():
        info = operation.get_rt_info()
        if NodeTimes(operation.get_friendly_name(), info["layerType"].astype(str)).is_product:
            integer.append(info["runtimePrecision"].astype(str) in ("u8", "i8"))
    return _share(OPENVINO_INT8, integer)


def _share(name: str, integer: list[bool]) -> str:
    stay = "" if all(integer) else f"; {integer.count(False)} stay float"
    return f"{name}: {sum(integer)} of {len(integer)} convolutions and matrix products run on integers{stay}"
