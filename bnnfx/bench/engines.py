"""Opening a model file in an inference engine, and running it.

This file imports nothing of bnnfx and each engine only where it is used, because it is also run by itself: as a program
it opens one file in a fresh process and says how much memory that took (see `bnnfx.bench.memory`).
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Engine:
    """A file, and what runs it.

    Attributes:
        kind: the engine.
        path: the ONNX file.
        library: kernel library to register (ONNX Runtime only).
        precision: what floats are computed in, as OpenVINO names it; None leaves the choice to the engine.
    """

    kind: Literal["onnxruntime", "openvino"]
    path: str
    library: str | None = None
    precision: str | None = None


def open_engine(engine: Engine, threads: int, feeds: Sequence[Array]) -> Callable[[], object]:
    """A function of no arguments that runs the file once, on these inputs."""
    if engine.kind == "onnxruntime":
        session = onnxruntime_session(engine, threads)
        named = {value.name: feed for value, feed in zip(session.get_inputs(), feeds, strict=True)}
        return lambda: session.run(None, named)
    request = openvino_compile(openvino_read(engine, feeds), threads, engine.precision).create_infer_request()
    inputs = list(feeds)
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)


def onnxruntime_session(engine: Engine, threads: int, profile_prefix: str | None = None) -> Any:
    """An ONNX Runtime session; it profiles where a prefix for the profile's file name is given."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The threads of a session otherwise go on spinning after a run and take the processor from whoever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    if engine.library is not None:
        options.register_custom_ops_library(engine.library)
    return onnxruntime.InferenceSession(engine.path, options, providers=["CPUExecutionProvider"])


def openvino_read(engine: Engine, feeds: Sequence[Array]) -> Any:
    """The model, with the shapes of the inputs written into it: OpenVINO is slower on open ones."""
    import openvino

    model = openvino.Core().read_model(engine.path)
    model.reshape({i: openvino.PartialShape(list(feed.shape)) for i, feed in enumerate(feeds)})
    return model


def openvino_compile(model: Any, threads: int, precision: str | None, *, profile: bool = False) -> Any:
    """The model compiled for the CPU, to answer one request as fast as it can."""
    import openvino

    # Pinning would change the affinity of this thread, which the other engines run on too.
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": profile,
    }
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    return openvino.Core().compile_model(model, "CPU", settings)


def _peak_kib() -> int:
    """The most memory that this process has held.

    Not `getrusage`: its figure starts with that of the parent process, which is far larger than this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def _main() -> None:
    request = json.load(sys.stdin)
    engine = Engine(**request["engine"])
    feeds = [np.ones(shape, dtype=dtype) for shape, dtype in request["inputs"]]
    if engine.kind == "onnxruntime":
        import onnxruntime  # noqa: F401  # its own memory is not the model's
    else:
        import openvino

        openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")  # loads its CPU plug-in
    before = _peak_kib()
    run = open_engine(engine, request["threads"], feeds)
    for _ in range(request["runs"]):
        run()
    json.dump({"before": before, "after": _peak_kib()}, sys.stdout)


if __name__ == "__main__":
    _main()
