"""The benchmark of whole models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from bnnfx.bench.contenders import WITH_KERNELS, Field
from bnnfx.bench.engines import Array, Engine, open_engine
from bnnfx.bench.inputs import Input, feeds
from bnnfx.bench.memory import peak_memory
from bnnfx.bench.nodes import GroupRow, NodeRow, OnnxRuntimeProfile, tabulate, timed_runs
from bnnfx.bench.timing import Effort, Spread, alternate, ratios
from bnnfx.errors import BenchmarkError, first_line
from bnnfx.runtime.library import ceiling

Notify = Callable[[str, float], None]
"""Told what is being done, and how much of it is done, from 0 to 1."""

_PROFILE_SHARE = 0.2  # of the time, for the profile of our nodes


@dataclass(frozen=True)
class Row:
    """One contender.

    Attributes:
        name: of the contender.
        ratio: how many times as fast as the reference, taken round by round.
        milliseconds: per image.
        peak_mib: rise of a fresh process's peak resident memory, where measured.
        samples: milliseconds of each round, for the whole batch.
    """

    name: str
    ratio: Spread
    milliseconds: Spread
    peak_mib: float | None
    samples: list[float]


@dataclass(frozen=True)
class Table:
    """All contenders at one number of threads and one batch size, and the nodes of ours.

    Attributes:
        threads: of each contender.
        batch: images per run.
        rounds: how often each contender ran.
        reference: the contender that ratios refer to.
        rows: one per contender, in the order in which they ran.
        ceiling: binary multiply-accumulates per second of all threads together; None if we do not take part.
        nodes: our nodes in our file with kernels.
        others: its other nodes, by operator.
    """

    threads: int
    batch: int
    rounds: int
    reference: str
    rows: list[Row]
    ceiling: float | None
    nodes: list[NodeRow]
    others: list[GroupRow]


def measure(
    field: Field,
    inputs: Sequence[Input],
    *,
    threads: int,
    batch: int,
    effort: Effort,
    memory: bool,
    seed: int,
    notify: Notify,
) -> Table:
    """Time all contenders in turn; then, each by itself, the nodes of ours and the memory of all.

    Raises:
        BenchmarkError: a contender cannot be run, or the batch size is not that of the file.
    """
    where = f"{threads} thread(s), batch {batch}"
    given = feeds(inputs, batch, seed)
    notify(f"opening {len(field.engines)} contenders ({where})", 0.0)
    runs = {name: _open(name, engine, threads, given) for name, engine in field.engines.items()}
    profiled = field.engines.get(WITH_KERNELS)
    share = _PROFILE_SHARE if profiled else 0.0
    timed = Effort(effort.seconds * (1 - share), effort.rounds)
    seconds = alternate(runs, timed, lambda part: notify(f"timing ({where})", part))
    del runs
    limit: float | None = None
    nodes: list[NodeRow] = []
    others: list[GroupRow] = []
    if profiled is not None:
        limit = threads * ceiling()
        profile = OnnxRuntimeProfile(profiled, threads, given)
        brief = Effort(effort.seconds * share, effort.rounds)
        alternate({WITH_KERNELS: profile}, brief, lambda part: notify(f"profiling our nodes ({where})", part))
        nodes, others = tabulate(timed_runs(profile.nodes()), onnx.load(profiled.path), limit)
    rows = []
    for done, (name, times) in enumerate(seconds.items()):
        if memory:
            notify(f"memory ({where})", done / len(seconds))
        peak = peak_memory(field.engines[name], threads, given) if memory else None
        samples = [1e3 * second for second in times]
        per_image = Spread.of([sample / batch for sample in samples])
        rows.append(Row(name, ratios(seconds[field.reference], times), per_image, peak, samples))
    return Table(threads, batch, len(rows[0].samples), field.reference, rows, limit, nodes, others)


def _open(name: str, engine: Engine, threads: int, given: Sequence[Array]) -> Callable[[], object]:
    """Opens a contender and runs it once, so that a failure is told by its name."""
    try:
        run = open_engine(engine, threads, given)
        run()
    except Exception as error:
        raise BenchmarkError(f"{name} cannot run: {first_line(error)}") from error
    return run
