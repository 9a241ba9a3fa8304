"""What the command line calls: a whole benchmark, from what the user named to a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bnnfx.bench.contenders import gather
from bnnfx.bench.layer_files import LayerShape
from bnnfx.bench.machine import Machine, describe
from bnnfx.bench.many_models import ModelRow, narrow, row_of
from bnnfx.bench.model_forms import Files, model_files, onnx_files
from bnnfx.bench.report import Report
from bnnfx.bench.single_layers import measure_layer
from bnnfx.bench.timing import Effort
from bnnfx.bench.whole_models import Notify, measure
from bnnfx.errors import BnnfxError, first_line


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        command: as it was typed, for the report.
        threads: a table for each number.
        batches: likewise.
        effort: for all tables together.
        memory: whether to measure memory.
        seed: of everything random.
    """

    command: list[str]
    threads: Sequence[int]
    batches: Sequence[int]
    effort: Effort
    memory: bool = True
    seed: int = 0


def bench_model(source: str, scheme: str, shape: Sequence[int], settings: Settings, notify: Notify) -> Report:
    """Benchmark a model in all its forms; `source` names it as for `bnnfx.model_source.load_model`.

    Raises:
        BnnfxError: it cannot be built or run.
    """
    with TemporaryDirectory() as folder:
        notify(f"building {source} as {scheme}", 0.0)
        return _bench_files(model_files(source, scheme, shape, settings.seed, Path(folder)), settings, notify)


def bench_models(
    sources: Sequence[str], scheme: str, shape: Sequence[int], settings: Settings, notify: Notify
) -> Report:
    """Benchmark several models, a row for each; one that cannot be built or run is a note.

    Raises:
        BnnfxError: none of them can.
    """
    machine = describe()
    rows: list[ModelRow] = []
    failures: list[BnnfxError] = []
    notes: list[str] = []
    cases = [(t, b) for t in settings.threads for b in settings.batches]
    effort = settings.effort.shared(len(cases) * len(sources))
    for source in sources:
        with TemporaryDirectory() as folder:
            notify(f"building {source} as {scheme}", 0.0)
            try:
                files = model_files(source, scheme, shape, settings.seed, Path(folder), standard=False)
                field = narrow(gather(files, settings.seed, Path(folder)))
                tables = [
                    measure(
                        field,
                        files.inputs,
                        threads=threads,
                        batch=batch,
                        effort=effort,
                        memory=False,
                        seed=settings.seed,
                        notify=notify,
                    )
                    for threads, batch in cases
                ]
            except BnnfxError as error:
                failures.append(error)
                notes.append(f"{source} was left out: {first_line(error)}")
                continue
            rows += [row_of(source, files, table) for table in tables]
            notes += files.notes
    if not rows:
        raise failures[0]
    notes = list(dict.fromkeys(notes)) + _crowding(machine, settings)
    return Report(settings.command, machine, settings.seed, notes, [], [], rows)


def bench_file(path: Path, original: Path | None, size: int | None, settings: Settings, notify: Notify) -> Report:
    """Benchmark an ONNX file, and its float original if there is one.

    Raises:
        BnnfxError: it cannot be read or run.
    """
    return _bench_files(onnx_files(path, original, size), settings, notify)


def bench_layers(shapes: Sequence[LayerShape], settings: Settings, notify: Notify) -> Report:
    """Benchmark single convolutions.

    Raises:
        BnnfxError: one cannot be built or run.
    """
    machine = describe()
    cases = [(t, b, shape) for t in settings.threads for b in settings.batches for shape in shapes]
    tables = []
    for threads, batch, shape in cases:
        with TemporaryDirectory() as folder:
            table = measure_layer(
                shape,
                threads=threads,
                batch=batch,
                effort=settings.effort.shared(len(cases)),
                seed=settings.seed,
                folder=Path(folder),
                notify=notify,
            )
        tables.append(table)
    notes = list(dict.fromkeys(note for table in tables for note in table.notes)) + _crowding(machine, settings)
    return Report(settings.command, machine, settings.seed, notes, [], tables)


def _bench_files(files: Files, settings: Settings, notify: Notify) -> Report:
    machine = describe()
    with TemporaryDirectory() as folder:
        notify("building the contenders", 0.0)
        field = gather(files, settings.seed, Path(folder))
        cases = [(t, b) for t in settings.threads for b in settings.batches]
        tables = [
            measure(
                field,
                files.inputs,
                threads=threads,
                batch=batch,
                effort=settings.effort.shared(len(cases)),
                memory=settings.memory,
                seed=settings.seed,
                notify=notify,
            )
            for threads, batch in cases
        ]
    notes = field.notes + _crowding(machine, settings)
    return Report(settings.command, machine, settings.seed, notes, tables, [])


def _crowding(machine: Machine, settings: Settings) -> list[str]:
    most = max(settings.threads)
    if most <= machine.available:
        return []
    return [f"{most} threads took turns on {machine.available} processor(s): those figures say nothing about threads"]
