"""Running an exported file: a thin wrapper of `onnxruntime.InferenceSession`."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from torch import Tensor

from bnnfx.arguments import as_path, require_flag, require_instance, require_whole
from bnnfx.errors import ModelFileError, first_line
from bnnfx.ops.packed_op import OPSET_VERSION
from bnnfx.private_interfaces import invalid_argument
from bnnfx.runtime.library import library_path

OPSET_KEY = "bnnfx.opset_version"
"""File metadata: the version of our operator definitions that the file was written for."""

MOST_THREADS = 1024
"""Where it cannot start its threads, ONNX Runtime ends the process."""

Array = npt.NDArray[Any]


class Session:
    """An ONNX Runtime session of a file written by `bnnfx.export_onnx`.

    Attributes:
        ort: the `onnxruntime.InferenceSession`.

    Raises:
        ValueError: it is something else, such as the path of a file, which `bnnfx.load` opens.
    """

    def __init__(self, ort: onnxruntime.InferenceSession) -> None:
        require_instance(
            "What a Session is made of",
            ort,
            onnxruntime.InferenceSession,
            "an onnxruntime.InferenceSession (bnnfx.load makes one)",
        )
        self.ort = ort
        self._names = [value.name for value in ort.get_inputs()]

    def run(self, *inputs: Array | Tensor) -> Array | tuple[Array, ...]:
        """Run the model.

        Args:
            *inputs: one numpy array (of either byte order) or torch tensor (on any device) per graph input, in order;
                of the element type and shape that the graph says, for nothing is rounded on the way.

        Returns:
            A numpy array, or a tuple of them where the model has several outputs.

        Raises:
            ValueError: wrong number, shape or element type of inputs.
        """
        if len(inputs) != len(self._names):
            raise ValueError(
                f"The model takes {len(self._names)} input(s) ({', '.join(self._names)}); got {len(inputs)}."
            )
        arrays = [_array(x) for x in inputs]
        wanted = [_element_type(value.type) for value in self.ort.get_inputs()]
        if any(dtype not in (None, array.dtype) for dtype, array in zip(wanted, arrays, strict=True)):
            raise self._misfit(arrays)
        try:
            outputs = self.ort.run(None, dict(zip(self._names, arrays, strict=True)))
        except invalid_argument() as error:
            raise self._misfit(arrays) from error
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _misfit(self, arrays: list[Array]) -> ValueError:
        """The runtime's own message does not always name the input."""
        needed = ", ".join(f"{value.name} {value.type} {value.shape}" for value in self.ort.get_inputs())
        given = ", ".join(f"{x.dtype} {list(x.shape)}" for x in arrays)
        return ValueError(f"The model takes {needed}; got {given}.")


def _array(x: Array | Tensor) -> Array:
    """What the runtime is given; it takes the bytes of an array as they are, whatever their order.

    Raises:
        ValueError: a tensor that is no array of numbers in memory.
    """
    if isinstance(x, Tensor):
        try:
            return x.detach().cpu().resolve_conj().resolve_neg().numpy()
        except (TypeError, RuntimeError) as error:  # meta, sparse and quantized tensors, types that numpy lacks
            raise ValueError(
                f"A {str(x.layout).removeprefix('torch.')} tensor of {x.dtype} on {x.device} cannot be given to ONNX "
                f"Runtime: {first_line(error)}"
            ) from error
    try:
        array: Array = np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:  # lists of lists that are not as long as each other
        raise ValueError(f"A {type(x).__name__} cannot be given to ONNX Runtime: {first_line(error)}") from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


@functools.cache
def _element_type(type_name: str) -> np.dtype[Any] | None:
    """The element type of what ONNX Runtime calls `tensor(float)` and so on; None of what is no tensor.

    >>> _element_type("tensor(float)"), _element_type("tensor(uint8)"), _element_type("seq(tensor(float))")
    (dtype('float32'), dtype('uint8'), None)
    """
    name = type_name.removeprefix("tensor(").removesuffix(")").upper()
    if name not in onnx.TensorProto.DataType.keys():  # noqa: SIM118 (no mapping)
        return None
    return onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(name))


def load(path: str | Path, *, threads: int = 0, kernels: bool = True) -> Session:
    """Open an exported file in ONNX Runtime.

    Args:
        path: the ONNX file.
        threads: threads for one operator; 0 leaves the choice to ONNX Runtime.
        kernels: register the bnnfx kernel library; without it the functions stored in the file run instead.

    Returns:
        The session. Every output of our operators is the same to the last bit whatever `kernels`, `threads` and the
        instruction set are. The runtime's own float operators (convolutions, pools, means) may sum in another order,
        which changes their values, and with them whole outputs, by 3e-8 to 2e-7 of the values; where a sum is that
        close to a threshold, it may turn a bit, and `bnnfx.verify` counts those.

    Raises:
        ValueError: an argument is something else, or there are more threads than 1024.
        ModelFileError: no such file, no ONNX file, or a file of a newer op-set version.
    """
    threads = require_whole("threads", threads, least=0, most=MOST_THREADS)
    require_flag("kernels", kernels)
    return open_session(read_model(path), str(path), threads=threads, kernels=kernels)


def read_model(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file and check that this version of bnnfx understands it.

    Raises:
        ValueError: it is no path.
        ModelFileError: it cannot be read, or it was written for a newer op-set version.
    """
    path = as_path(path)
    try:
        there = path.is_file()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not there:
        raise ModelFileError(f"There is no file {path}; bnnfx.export_onnx writes one.")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:
        raise ModelFileError(f"{path} is not a valid ONNX file: {first_line(error)}") from error
    written = {entry.key: entry.value for entry in model.metadata_props}.get(OPSET_KEY)
    if written is not None and int(written) > OPSET_VERSION:
        raise ModelFileError(
            f"{path} was written for version {written} of the bnnfx operators; this installation knows version "
            f"{OPSET_VERSION}. Upgrade bnnfx, or export the model again with this version."
        )
    return model


def open_session(
    model: onnx.ModelProto, source: str, *, threads: int = 0, kernels: bool = True, optimize: bool = True
) -> Session:
    """A session of a model in memory; `source` names it in errors. One that runs once is quicker as it stands."""
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if kernels:
        options.register_custom_ops_library(str(library_path()))
    try:
        ort = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelFileError(f"ONNX Runtime cannot run {source}: {first_line(error)}") from error
    return Session(ort)


@functools.cache
def newest_opset() -> int:
    """The newest version of the standard operators that the installed onnx knows and ONNX Runtime runs; it is asked."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    copied = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "identity", [value], [copied])
    for version in range(onnx.defs.onnx_opset_version(), 0, -1):
        opset = onnx.helper.make_opsetid("", version)
        try:
            open_session(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), "it", kernels=False)
        except ModelFileError:
            continue
        return version
    raise AssertionError("ONNX Runtime runs no version of the standard operators that onnx knows")
