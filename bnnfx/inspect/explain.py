"""What became of every convolution and linear layer of the float model, why, and what would change it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import fx

from bnnfx.errors import StageError
from bnnfx.graph.dataflow import packed_op, weight_bits
from bnnfx.graph.record import PassReport, Record, Remark, Role, record_of
from bnnfx.graph.stage import Stage
from bnnfx.runtime.library import has_kernel
from bnnfx.tables import as_markdown, as_text

_WIDTH = 120  # of tables that do not go to a terminal


@dataclass(frozen=True)
class Finding:
    """What one pass said about a layer.

    Attributes:
        by: name of the pass.
        subject: the node or layer that it is about.
        reason: why it was left as it is, or what was noticed.
        remedy: the edit that would change it; empty where none is known.
    """

    by: str
    subject: str
    reason: str
    remedy: str

    @classmethod
    def of(cls, report: PassReport, remark: Remark) -> "Finding":
        """A remark of a pass."""
        return cls(report.name, remark.subject, remark.reason, remark.remedy)

    def __str__(self) -> str:
        """The reason, and what would change it."""
        return f"{self.reason}." + (f" To change it: {self.remedy}." if self.remedy else "")


@dataclass(frozen=True)
class LayerExplanation:
    """One layer of the float model.

    Attributes:
        name: qualified name; the node's name of a functional call.
        kind: type of the layer, or name of the function.
        binarized: whether its weight and its input are binary.
        packed: whether its weight is held as bits; None where the graph is not lowered yet.
        fused: whether everything behind it that could be one node with it is; None for a layer that is not packed.
        operators: what runs it, as ONNX names it; several where it is called several times.
        kernel: whether the kernel library has a kernel for all of `operators`; None for a layer that is not packed, or
            where the library was not built.
        findings: why it stays float, or what stands between it and the best form; the deciding reason comes first.
    """

    name: str
    kind: str
    binarized: bool
    packed: bool | None
    fused: bool | None
    operators: tuple[str, ...]
    kernel: bool | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class PassLog:
    """What one pass did.

    Attributes:
        name: of the pass.
        changed: whether graph or modules differ afterwards.
        applied: what it rewrote.
        refused: what it left as it is.
        notes: what it noticed.
    """

    name: str
    changed: bool
    applied: tuple[str, ...]
    refused: tuple[Finding, ...]
    notes: tuple[Finding, ...]


@dataclass(frozen=True)
class Explanation:
    """What `explain` found out; prints as two tables.

    Attributes:
        stage: of the graph, `"trainable"` or `"packed"`.
        scheme: that binarized it.
        layers: every convolution and linear layer of the float model, in the order of its definition, functional calls
            last.
        passes: the log of all passes so far, in order.
    """

    stage: str
    scheme: str
    layers: tuple[LayerExplanation, ...]
    passes: tuple[PassLog, ...]

    def __getitem__(self, name: str) -> LayerExplanation:
        """One layer by its name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """All of it as dictionaries, lists, strings and truth values, ready for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Both tables in GitHub's Markdown."""
        layers = as_markdown(_LAYER_COLUMNS, map(_layer_row, self.layers))
        return f"{self._title()}.\n\n{layers}\n\n{as_markdown(_PASS_COLUMNS, self._pass_rows())}\n"

    def __rich__(self) -> RenderableType:
        """Both tables, as rich renders them."""
        layers = _table(_LAYER_COLUMNS, map(_layer_row, self.layers))
        return Group(Text(self._title()), layers, _table(_PASS_COLUMNS, self._pass_rows()))

    def __str__(self) -> str:
        """Both tables as text."""
        return as_text(self, width=_WIDTH)

    def _pass_rows(self) -> list[tuple[str, ...]]:
        """The log; a remedy that the table of layers gives already is not repeated."""
        given = {finding for layer in self.layers for finding in layer.findings}
        rows: list[tuple[str, ...]] = []
        for log in self.passes:
            findings = (*log.refused, *log.notes)
            said = [f"{f.subject}: {f'{f.reason}.' if f in given else f}" for f in findings]
            rows.append((log.name, _mark(log.changed), ", ".join(log.applied), "\n".join(said)))
        return rows

    def _title(self) -> str:
        binary = sum(layer.binarized for layer in self.layers)
        title = f"scheme {self.scheme}, stage {self.stage}: {binary} of {len(self.layers)} layers are binary"
        return title if self.stage == Stage.PACKED.value else f"{title}; lower packs and fuses them"


def explain(gm: fx.GraphModule) -> Explanation:
    """Say of every convolution and linear layer of the float model what became of it, and what would change that.

    Layers are named wherever they are: in a submodule that could not be traced, called as a function, or never called.
    A trainable graph tells what is binary; a packed one also what is packed and fused, and whether the operator that
    runs a layer has a kernel.

    Args:
        gm: a graph of `bnnfx.convert` or `bnnfx.lower`; it is not run.

    Returns:
        One entry per layer and one per pass; prints as two tables.

    Raises:
        StageError: `gm` is no such graph.

    >>> import bnnfx
    >>> from torch import nn
    >>> explanation = explain(bnnfx.convert(nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(3))), "xnor"))
    >>> [layer.binarized for layer in explanation.layers]
    [False, True, False]
    >>> explanation["0"].findings[0].reason
    'the first layer stays float'
    """
    record = record_of(gm) if isinstance(gm, fx.GraphModule) else None
    if record is None:
        raise StageError(
            f"explain takes a graph that bnnfx.convert or bnnfx.lower returned; got a {type(gm).__name__}. A float "
            "model becomes one by bnnfx.convert(model, scheme)."
        )
    operators = _operators(gm, record)
    layers = tuple(_explain_layer(name, kind, record, operators.get(name, ())) for name, kind in record.layers.items())
    passes = tuple(
        PassLog(
            report.name,
            report.changed,
            tuple(report.applied),
            tuple(Finding.of(report, remark) for remark in report.refused),
            tuple(Finding.of(report, remark) for remark in report.notes),
        )
        for report in record.reports
    )
    return Explanation(record.stage.value, record.scheme, layers, passes)


def _operators(gm: fx.GraphModule, record: Record) -> dict[str, tuple[str, ...]]:
    """The ONNX operators that run each packed layer, without repetition."""
    found: dict[str, tuple[str, ...]] = {}
    for node in gm.graph.nodes:
        layer, op = record.packed.get(weight_bits(node) or ""), packed_op(node)
        if layer is not None and op is not None and op.onnx_name is not None:
            found[layer] = tuple(dict.fromkeys((*found.get(layer, ()), op.onnx_name)))
    return found


def _explain_layer(name: str, kind: str, record: Record, operators: tuple[str, ...]) -> LayerExplanation:
    said = [
        (report.role, Finding.of(report, remark))
        for report in record.reports
        for remark in (*report.refused, *report.notes)
        if name in (remark.subject, *remark.layers)
    ]
    said.sort(key=lambda pair: pair[0] is not Role.DECIDES)  # stable: the passes' order stays
    binarized = any(
        name in report.applied and name not in (remark.subject for remark in report.notes)  # its weight stayed float
        for report in record.reports
        if report.role is Role.BINARIZES
    )
    lowered = record.stage is Stage.PACKED
    left = any(role is Role.FUSES for role, _ in said)
    return LayerExplanation(
        name,
        kind,
        binarized,
        bool(operators) if lowered else None,
        not left if operators else None,
        operators,
        _kernels(operators) if operators else None,
        tuple(finding for _, finding in said),
    )


def _kernels(operators: tuple[str, ...]) -> bool | None:
    try:
        return all(map(has_kernel, operators))
    except FileNotFoundError:
        return None


_LAYER_COLUMNS = (
    "layer",
    "kind",
    "binary",
    "packed",
    "fused",
    "kernel",
    "operator, reasons and what would change them",
)
_PASS_COLUMNS = ("pass", "changed", "applied to", "refused and noted")


def _layer_row(layer: LayerExplanation) -> tuple[str, ...]:
    marks = (layer.binarized, layer.packed, layer.fused, layer.kernel)
    said = [*layer.operators, *map(str, layer.findings)]
    return (layer.name, layer.kind, *map(_mark, marks), "\n".join(said))


def _mark(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "-"}[value]


def _table(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(show_lines=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
