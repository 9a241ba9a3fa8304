"""Results as tables and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from rich.table import Table as RichTable

from bnnfx.bench.machine import Machine
from bnnfx.bench.many_models import ModelRow
from bnnfx.bench.single_layers import LayerTable
from bnnfx.bench.timing import Spread
from bnnfx.bench.whole_models import Table


@dataclass(frozen=True)
class Report:
    """Everything that one command found out.

    Attributes:
        command: as it was typed.
        machine: where.
        seed: of weights and inputs.
        notes: what has to be said about the contenders.
        models: one table per number of threads and batch size.
        layers: one table per shape, number of threads and batch size.
        rows: of several models, one per model, number of threads and batch size.
    """

    command: list[str]
    machine: Machine
    seed: int
    notes: list[str]
    models: list[Table]
    layers: list[LayerTable]
    rows: list[ModelRow] = field(default_factory=list)

    def to_json(self) -> str:
        """All of it, with every single measurement."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def to_text(self) -> list[RichTable | str]:
        """Lines and tables to be printed one below the other."""
        machine = self.machine
        versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
        lines: list[RichTable | str] = [
            f"{machine.processor}, {_count(machine.available, 'processor')} available, {machine.system}; "
            f"kernels for {machine.isa} (of {', '.join(machine.isas)})",
            versions,
        ]
        for table in self.models:
            lines += _model_tables(table)
        if self.rows:
            lines += _overview(self.rows)
        for layers in _by_setting(self.layers):
            lines += _layer_tables(layers)
        return [*lines, *(f"note: {note}" for note in self.notes)]


def _model_tables(table: Table) -> list[RichTable | str]:
    setting = f"{_count(table.threads, 'thread')}, batch {table.batch}, {_count(table.rounds, 'round')}"
    times = RichTable()
    times.add_column("contender", no_wrap=True)
    for column in (f"times as fast as {table.reference}", "ms per image", "peak MiB"):
        times.add_column(column, justify="right")
    for row in table.rows:
        peak = "-" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        times.add_row(row.name, _spread(row.ratio, 2), _spread(row.milliseconds, 3), peak)
    lines: list[RichTable | str] = [f"\n{setting}: medians (10th to 90th percentile)", times]
    if table.ceiling is None:
        return lines
    nodes = RichTable()
    nodes.add_column("node", overflow="fold")
    nodes.add_column("operator")
    for column in ("ms", "share", "M MAC", "of ceiling"):
        nodes.add_column(column, justify="right")
    for node in table.nodes:
        macs = "" if node.macs is None else f"{node.macs / 1e6:.1f}"
        share = _percent(node.share)
        nodes.add_row(
            node.name, node.op_type, f"{node.milliseconds.median:.3f}", share, macs, _percent(node.of_ceiling)
        )
    nodes.add_section()
    for other in table.others:
        name = f"({_count(other.count, 'other node')})"
        nodes.add_row(name, other.op_type, f"{other.milliseconds:.3f}", _percent(other.share), "", "")
    limit = f"the ceiling is {_giga(table.ceiling)} G binary MAC/s"
    heading = f"\n{setting}: nodes of our file with kernels, run by itself; {limit}"
    return [*lines, heading, nodes]


def _overview(rows: Sequence[ModelRow]) -> list[RichTable | str]:
    """One table of all models; where several were asked for, with threads and batch."""
    several = len({(row.threads, row.batch) for row in rows}) > 1
    table = RichTable()
    table.add_column("model", overflow="fold")
    for column in (*(("threads", "batch") if several else ()), "fp32 ms", "ours ms", "x fp32", "int8 x fp32"):
        table.add_column(column, justify="right")
    for column in ("binary MACs", "file MB", "float MB"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.source,
            *((str(row.threads), str(row.batch)) if several else ()),
            f"{row.fp32.median:.2f}",
            f"{row.ours.median:.2f}",
            _spread(row.ratio, 2),
            "-" if row.int8 is None else f"{row.int8.median:.2f}",
            _percent(row.binary_share),
            *(f"{size / 1e6:.1f}" for size in (row.file_bytes, row.float_bytes)),
        )
    setting = (
        f"{_count(rows[0].threads, 'thread')}, batch {rows[0].batch}, per image: " if not several else "per image: "
    )
    return [f"\n{setting}medians (10th to 90th percentile)", table]


def _by_setting(tables: Sequence[LayerTable]) -> list[list[LayerTable]]:
    groups: dict[tuple[int, int], list[LayerTable]] = {}
    for table in tables:
        groups.setdefault((table.threads, table.batch), []).append(table)
    return list(groups.values())


def _layer_tables(tables: Sequence[LayerTable]) -> list[RichTable | str]:
    first = tables[0]
    ceilings = sorted(table.ceiling for table in tables)
    limits = f"{_giga(ceilings[0])} to {_giga(ceilings[-1])}"
    setting = f"{_count(first.threads, 'thread')}, batch {first.batch}"
    heading = (
        f"\n{setting}: medians (10th to 90th percentile) of the convolution alone\n"
        f"the ceiling is {limits} G binary MAC/s; 'around' is all other nodes, which pack, quantize or reorder"
    )
    result = RichTable()
    for column in ("layer", "contender", "runs as"):
        result.add_column(column)
    for column in ("x fp32", "us per image", "around us", "of ceiling"):
        result.add_column(column, justify="right")
    for table in tables:
        for i, row in enumerate(table.rows):
            times = Spread(*(1e3 * x for x in (row.milliseconds.median, row.milliseconds.p10, row.milliseconds.p90)))
            figures = (
                f"{row.ratio.median:.2f}",
                _spread(times, 0),
                f"{1e3 * row.around:.0f}",
                _percent(row.of_ceiling),
            )
            result.add_row(str(table.layer) if i == 0 else "", row.name, row.implementation or row.operator, *figures)
        result.add_section()
    return [heading, result]


def _spread(spread: Spread, digits: int) -> str:
    return f"{spread.median:.{digits}f} ({spread.p10:.{digits}f} to {spread.p90:.{digits}f})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _giga(rate: float) -> str:
    return f"{rate / 1e9:.0f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
