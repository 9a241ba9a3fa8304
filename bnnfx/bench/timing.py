"""Timing several contenders in turn, and what is said about the times."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WARM_UP_ROUNDS = 3
UNTIMED_RUNS = 4
"""Runs before each timed one: so many it takes until a model's time does not depend on who ran before it."""

LEAST_ROUNDS = 5
MOST_ROUNDS = 2000

Advance = Callable[[float], None]
"""Told how much of the work is done, from 0 to 1."""


@dataclass(frozen=True)
class Spread:
    """The middle of some measurements, and where four fifths of them lie."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize values, at least one.

        >>> Spread.of([float(x) for x in range(11)])
        Spread(median=5.0, p10=1.0, p90=9.0)
        """
        p10, median, p90 = (float(q) for q in np.quantile(values, (0.1, 0.5, 0.9)))
        return cls(median, p10, p90)


@dataclass(frozen=True)
class Effort:
    """How long to measure: a number of rounds, or, where that is None, as many as fit into a time."""

    seconds: float
    rounds: int | None = None

    def shared(self, parts: int) -> "Effort":
        """The effort for one of several measurements that share the time."""
        return Effort(self.seconds / parts, self.rounds)


def alternate(runs: Mapping[str, Callable[[], object]], effort: Effort, advance: Advance) -> dict[str, list[float]]:
    """Run all contenders once per round, always in the same order, and time each run.

    What disturbs a machine for longer than a round (its clock rate, a neighbor) disturbs all of them alike. Untimed
    runs come before each timed one, so that each finds the caches as it left them itself, as a model in use does, and
    not as its competitors left them.

    Args:
        runs: by name, what to run.
        effort: how many rounds; some untimed ones come first.
        advance: told of the progress.

    Returns:
        Seconds by name, one figure per round.
    """
    for _ in range(WARM_UP_ROUNDS):
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    start, done = time.perf_counter(), 0
    while not _finished(effort, done, time.perf_counter() - start):
        for name, run in runs.items():
            for _ in range(UNTIMED_RUNS):
                run()
            before = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - before)
        done += 1
        advance(done / effort.rounds if effort.rounds else min(1.0, (time.perf_counter() - start) / effort.seconds))
    return seconds


def timed_only(samples: Sequence[float]) -> list[float]:
    """Of one figure per run, as an engine's profile gives them, those of the runs that `alternate` times.

    >>> untimed = [8.0] * UNTIMED_RUNS
    >>> timed_only([9.0] * WARM_UP_ROUNDS + [*untimed, 1.0, *untimed, 2.0])
    [1.0, 2.0]
    """
    return list(samples[WARM_UP_ROUNDS + UNTIMED_RUNS :: UNTIMED_RUNS + 1])


def _finished(effort: Effort, done: int, elapsed: float) -> bool:
    if effort.rounds is not None:
        return done >= effort.rounds
    return done >= MOST_ROUNDS or (done >= LEAST_ROUNDS and elapsed >= effort.seconds)


def ratios(reference: Sequence[float], times: Sequence[float]) -> Spread:
    """How many times as fast as the reference: the quotient in each round, summarized.

    >>> ratios([8.0, 8.0, 6.0], [2.0, 4.0, 2.0]).median
    3.0
    """
    return Spread.of([a / b for a, b in zip(reference, times, strict=True)])
