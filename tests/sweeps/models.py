"""Public classifiers with random weights through the whole chain: `make sweep-models`, `make sweep-models MODELS=...`.

Without arguments, every model of torchvision and one in a few of timm's that have at most `MOST_PARAMETERS`, every
eighth of them lowered and exported. Arguments are patterns of names, or `families` for the list of
`helpers/families.py`; all of these are lowered and exported, or every Nth with `--lowered N`. Two small images;
converted in both modes; the float graph compared by value, in both modes and for each half of the batch; whether the
bits vary; the packed graph and the file.
"""

import argparse
import fnmatch
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.families import FAMILIES, build, check_model
from helpers.outcomes import Outcome, outcome_of, run

from bnnfx._torchvision import import_torchvision

MOST_PARAMETERS = 30_000_000
LOWERED = 8  # every eighth, of all
SIZES = (64, 96, 128)  # the smallest that a model takes, or else the one that it is made for
SECONDS = 300  # for one model
PROCESSES = multiprocessing.get_context("forkserver")

try:
    import_torchvision()
    from torchvision import models as torchvision_models
except ImportError:
    torchvision_models = None
try:
    import timm
except ImportError:
    timm = None


def all_names() -> Iterator[str]:
    """The models of torchvision; of timm one of each architecture, as most names are of the same with other widths."""
    if torchvision_models is not None:
        yield from (f"torchvision.{name}" for name in torchvision_models.list_models(module=torchvision_models))
    for module in [] if timm is None else timm.list_modules():
        names = timm.list_models(module=module)
        yield from (f"timm.{name}" for name in names[:: max(1, len(names) // 3)])


def images(model: nn.Module) -> tuple[Tensor | None, str]:
    """Two images of the smallest size that the model takes; or None, and why it takes none."""
    made_for = getattr(model, "pretrained_cfg", {}).get("input_size")  # timm's
    reason = ""
    for size in (*SIZES, *((224, 299) if made_for is None else made_for[-1:])):
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        try:
            for training in (False, True):
                run(model, x, training)
            return x, ""
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    return None, reason


def size_of(name: str) -> int:
    """How many parameters a model has, without the memory for them."""
    library, _, model = name.partition(".")
    if library == "torchvision":
        return int(torchvision_models.get_model_weights(model).DEFAULT.meta["num_params"])
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in build(name).parameters())
    except (NotImplementedError, RuntimeError):  # its constructor computes with them
        return sum(p.numel() for p in build(name).parameters())


@dataclass
class Result:
    """One model in both modes; the outcomes are named by the mode and by how far it came."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # of the processor by step; all of them by the clock

    @property
    def kind(self) -> str:
        kinds = [outcome.kind for outcome in self.outcomes.values()]
        return max(kinds, key=("right", "skipped", "refused", "too slow", "wrong", "raw error").index)

    @property
    def details(self) -> list[str]:
        texts: dict[str, list[str]] = {}
        for where, outcome in self.outcomes.items():
            if outcome.detail:
                texts.setdefault(" ".join(outcome.detail.split()), []).append(where)
        return [f"{', '.join(where)}: {text}" for text, where in texts.items()]


def sweep(name: str, lowered: bool, limited: bool, tell: Callable[[str, object], None]) -> None:
    """One model; tells what it begins and what came of each step, as it may be ended at any time."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tell("begins", "building")
    if limited and (parameters := size_of(name)) > MOST_PARAMETERS:
        return tell("outcome", ("model", Outcome("skipped", f"{parameters / 1e6:.0f} million parameters")))
    model = build(name)
    x, reason = images(model)
    if x is None:
        return tell("outcome", ("model", Outcome("skipped", f"takes none of the image sizes; {reason}")))
    parts = [name for name, _ in model.named_modules() if name] + [type(model).__name__]

    exported: list[fx.GraphModule] | None = [] if lowered else None
    for training in (False, True):
        mode = "train" if training else "eval"

        def timed(step: str, call: Callable[[], Any], mode: str = mode) -> Any:
            tell("begins", f"{step} {mode}")
            start = time.process_time()
            result = call()
            tell("seconds", (f"{step} {mode}", time.process_time() - start))
            return result

        def chain(training: bool = training, timed: Callable[..., Any] = timed) -> str:
            return check_model(model, x, training, exported, timed)

        tell("outcome", (mode, outcome_of(chain, *parts, seconds=SECONDS)))


def in_process(name: str, lowered: bool, limited: bool, pipe: Connection) -> None:
    def tell(*message: object) -> None:
        pipe.send(message)

    try:
        sweep(name, lowered, limited, tell)
    except Exception:
        tell("outcome", ("sweep", Outcome("raw error", traceback.format_exc())))


def judge(name: str, lowered: bool, limited: bool) -> Result:
    """One model in a process of its own, which is ended after `SECONDS`."""
    ours, its = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=in_process, args=(name, lowered, limited, its))
    start = time.monotonic()
    process.start()
    its.close()
    result, step = Result(), "start"
    while ours.poll(max(0.0, start + SECONDS - time.monotonic())):
        try:
            kind, what = ours.recv()
        except EOFError:
            process.join()
            if process.exitcode:
                result.outcomes[step] = Outcome("raw error", f"the process ended with {process.exitcode}")
            break
        if kind == "begins":
            step = what
        elif kind == "outcome":
            result.outcomes[what[0]] = what[1]
        else:
            result.seconds[what[0]] = what[1]
    else:
        process.kill()
        process.join()
        result.outcomes[step] = Outcome("too slow", f"not done after {SECONDS} s")
    result.seconds["all"] = time.monotonic() - start
    return result


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", help="names of models, such as 'timm.resnet*', or families")
    parser.add_argument("--lowered", type=int, metavar="N", help="lower and export every Nth model only")
    given = parser.parse_args(arguments)
    patterns, share = given.patterns, given.lowered or (1 if given.patterns else LOWERED)
    names = list(all_names())
    if patterns:
        known = dict.fromkeys(
            [*names, *FAMILIES, *(f"timm.{name}" for name in ([] if timm is None else timm.list_models()))]
        )
        wanted = [FAMILIES if pattern == "families" else fnmatch.filter(known, pattern) for pattern in patterns]
        names = list(dict.fromkeys(name for found in wanted for name in found))
    for library, module in (("torchvision", torchvision_models), ("timm", timm)):
        if module is None:
            sys.stdout.write(f"skipped: {library} is not installed\n")
            names = [name for name in names if not name.startswith(f"{library}.")]
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    PROCESSES.set_forkserver_preload([f"{Path(__file__).parent.name}.{Path(__file__).stem}"])  # each starts with torch
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(2) as pool:
        running = {
            pool.submit(judge, name, number % share == 0, not patterns): name for number, name in enumerate(names)
        }
        for done in as_completed(running):
            result = done.result()
            counts[result.kind] += 1
            seconds = " ".join(f"{step} {time:.0f}" for step, time in result.seconds.items())
            sys.stdout.write(f"{running[done]:45} {result.kind:10} {seconds}\n")
            sys.stdout.writelines(f"    {detail[:400]}\n" for detail in result.details)
            sys.stdout.flush()
    sys.stdout.write(f"{len(names)} models: {', '.join(f'{number} {kind}' for kind, number in counts.most_common())}\n")
    return int(bool(counts["wrong"] or counts["raw error"] or counts["too slow"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
