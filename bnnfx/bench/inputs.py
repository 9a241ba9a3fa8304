"""What a model is fed with: shapes read from the file, values drawn from a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from bnnfx.bench.engines import Array
from bnnfx.errors import BenchmarkError


@dataclass(frozen=True)
class Input:
    """One graph input.

    Attributes:
        name: of the input.
        shape: its sizes; the first one is None where the batch is free.
        dtype: its element type, as numpy names it.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    @property
    def free_batch(self) -> bool:
        """Whether any batch size will do."""
        return bool(self.shape) and self.shape[0] is None


def read_inputs(model: onnx.ModelProto, source: str | Path, size: int | None) -> tuple[Input, ...]:
    """The inputs of a model.

    Args:
        model: the model.
        source: names it in errors.
        size: rows and columns of images where the file leaves them open.

    Raises:
        BenchmarkError: a size other than the batch is open, or an element type cannot be made up.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in constants]
    return tuple(_read_input(value, source, size) for value in values)


def _read_input(value: onnx.ValueInfoProto, source: str | Path, size: int | None) -> Input:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise BenchmarkError(f"Input '{value.name}' of {source} has no shape; write one into the file.")
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    written = [str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim]
    if len(sizes) == 4 and size is not None:
        sizes[2:] = [size if known is None else known for known in sizes[2:]]
    if None in sizes[1:]:
        hint = (
            "give rows and columns with --size" if len(sizes) == 4 and sizes[1] is not None else "fix them in the file"
        )
        raise BenchmarkError(
            f"Input '{value.name}' of {source} is [{', '.join(written)}]: sizes other than the batch are open; {hint}."
        )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if dtype.kind not in "fiub":
        raise BenchmarkError(
            f"Input '{value.name}' of {source} is of type {dtype}; numbers and booleans can be made up."
        )
    return Input(value.name, tuple(sizes), dtype.name)


def feeds(inputs: Sequence[Input], batch: int, seed: int) -> list[Array]:
    """Inputs for one run: standard normal floats, or integers 0 and 1, which are valid as indices.

    Raises:
        BenchmarkError: the model has another batch size.
    """
    rng = np.random.default_rng(seed)
    made = []
    for value in inputs:
        if value.shape and value.shape[0] not in (None, batch):
            raise BenchmarkError(
                f"Input '{value.name}' has a batch size of {value.shape[0]} in the file; --batch asks for {batch}. "
                f"Use --batch {value.shape[0]}, or export the model with a free batch."
            )
        shape = tuple(batch if size is None else size for size in value.shape)
        dtype = np.dtype(value.dtype)
        drawn = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        made.append(np.asarray(drawn).astype(dtype))
    return made
