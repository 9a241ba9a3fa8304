"""How much memory a contender takes, measured in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

from bnnfx.bench import engines
from bnnfx.bench.engines import Array, Engine
from bnnfx.errors import BenchmarkError

_RUNS = 3  # the first run allocates what later ones use again


def peak_memory(engine: Engine, threads: int, feeds: Sequence[Array]) -> float | None:
    """The rise of a fresh process's peak resident memory, in MiB, by opening a file and running it a few times.

    The engine is imported before that, so that only the model counts. None where it cannot be measured: the figure is
    read from /proc, which only Linux has.

    Raises:
        BenchmarkError: the process failed.
    """
    if not sys.platform.startswith("linux"):
        return None
    inputs = [(feed.shape, feed.dtype.name) for feed in feeds]
    request = {"engine": asdict(engine), "threads": threads, "inputs": inputs, "runs": _RUNS}
    # -P keeps the folder of the program off the import path: what lies there is named like other people's modules
    command = [sys.executable, "-P", engines.__file__]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise BenchmarkError(
            f"The process that measures the memory of {engine.kind} ended with status {done.returncode} and said: "
            f"{said[-1]} Use --no-memory to measure without it."
        )
    answer = json.loads(done.stdout)
    return float(answer["after"] - answer["before"]) / 1024
