"""What an ONNX file holds: its interface, its operators and which of them have kernels, its metadata and versions."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bnnfx.ops.packed_op import ONNX_DOMAIN
from bnnfx.runtime.library import has_kernel
from bnnfx.runtime.session import read_model


@dataclass(frozen=True)
class OperatorCount:
    """Nodes of one operator.

    Attributes:
        domain: of the operator, empty for standard ones.
        name: of the operator.
        count: how many nodes.
        kernel: whether our library has a kernel; None for operators that are not ours, or if it was not built.
        function: whether the file holds a function for it.
    """

    domain: str
    name: str
    count: int
    kernel: bool | None
    function: bool


@dataclass(frozen=True)
class FileContents:
    """An ONNX file; prints as a table.

    Attributes:
        path: of the file.
        bytes: its size.
        ir_version: of the ONNX format.
        opsets: version by domain; the standard domain is "ai.onnx".
        producer: name and version.
        metadata: what the file says of itself.
        inputs: type and shape by name.
        outputs: likewise.
        operators: counts, in order of first appearance.
    """

    path: str
    bytes: int
    ir_version: int
    opsets: dict[str, int]
    producer: str
    metadata: dict[str, str]
    inputs: dict[str, str]
    outputs: dict[str, str]
    operators: tuple[OperatorCount, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)

    def __rich__(self) -> RenderableType:
        """Lines and a table of operators."""
        versions = ", ".join(f"{domain} {version}" for domain, version in self.opsets.items())
        lines = [f"{self.path}: {self.bytes:,} bytes, ONNX IR {self.ir_version}, {versions}; by {self.producer}"]
        for what, values in (("input", self.inputs), ("output", self.outputs)):
            lines += [f"{what} {name}: {kind}" for name, kind in values.items()]
        lines += [f"{key}: {value}" for key, value in self.metadata.items() if len(value) < _LONG]
        table = Table("nodes", "operator", "domain", "kernel", "function in the file")
        for operator in self.operators:
            kernel = {True: "yes", False: "no", None: ""}[operator.kernel]
            row = (str(operator.count), operator.name, operator.domain or "ai.onnx", kernel)
            table.add_row(*map(Text, row), "yes" if operator.function else "")
        return Group(*map(Text, lines), table)


_LONG = 80  # characters of a metadata value that is for programs


def file_contents(path: str | Path) -> FileContents:
    """Read what an ONNX file, of ours or any other, holds.

    Raises:
        ModelFileError: missing, not ONNX, or written for newer operators of ours.
    """
    model = read_model(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    functions = {(function.domain, function.name) for function in model.functions}
    counts = Counter((node.domain, node.op_type) for node in model.graph.node)
    return FileContents(
        str(path),
        Path(path).stat().st_size,
        model.ir_version,
        {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        " ".join(part for part in (model.producer_name, model.producer_version) if part) or "unknown",
        {entry.key: entry.value for entry in model.metadata_props},
        {value.name: _kind(value) for value in model.graph.input if value.name not in constants},
        {value.name: _kind(value) for value in model.graph.output},
        tuple(
            OperatorCount(domain, name, count, _kernel(domain, name), (domain, name) in functions)
            for (domain, name), count in counts.items()
        ),
    )


def _kernel(domain: str, name: str) -> bool | None:
    try:
        return has_kernel(name) if domain == ONNX_DOMAIN else None
    except FileNotFoundError:
        return None


def _kind(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    sizes = [dim.dim_param or (str(dim.dim_value) if dim.HasField("dim_value") else "?") for dim in kind.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(kind.elem_type).lower()}[{', '.join(sizes)}]"
