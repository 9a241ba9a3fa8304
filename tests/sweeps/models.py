"""Public classifiers with random weights through the whole chain: `make sweep-models`, or `models.py PATTERN ...`.

Every model of torchvision and timm that has at most `MOST_PARAMETERS`, on two small images: converted in both modes,
the float graph compared by value, whether the bits vary, and every eighth model lowered and verified.
"""

import fnmatch
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.outcomes import (
    Outcome,
    canonical_graphs,
    check_bits_vary,
    check_canonical,
    check_lowered,
    outcome_of,
    refusals,
    run,
    worst,
)

import bnnfx
from bnnfx._torchvision import import_torchvision

MOST_PARAMETERS = 30_000_000
LOWERED = 8  # every eighth
SIZES = (64, 96, 128, 224, 299)  # the smallest that a model takes

Entry = tuple[str, int]


def torchvision_models() -> Iterator[str]:
    import_torchvision()
    from torchvision import models

    yield from (f"torchvision.{name}" for name in models.list_models(module=models))


def timm_models() -> Iterator[str]:
    """One of each architecture: the names in timm are mostly of the same ones with other widths."""
    import_torchvision()
    import timm

    for module in timm.list_modules():
        names = timm.list_models(module=module)
        yield from (f"timm.{name}" for name in names[:: max(1, len(names) // 3)])


def build(name: str) -> nn.Module:
    library, _, model = name.partition(".")
    import_torchvision()
    torch.manual_seed(0)
    if library == "timm":
        import timm

        return timm.create_model(model)
    from torchvision import models

    kwargs = {"init_weights": True} if model in ("googlenet", "inception_v3") else {}
    return models.get_model(model, weights=None, **kwargs)


def image(model: nn.Module) -> Tensor | None:
    """Two images of the smallest size that the model takes."""
    for size in SIZES:
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        try:
            for training in (False, True):
                run(model, x, training)
            return x
        except Exception:
            continue
    return None


def size_of(name: str) -> int:
    """How many parameters a model has, without the memory for them."""
    library, _, model = name.partition(".")
    import_torchvision()
    if library == "torchvision":
        from torchvision import models

        return int(models.get_model_weights(model).DEFAULT.meta["num_params"])
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in build(name).parameters())
    except (NotImplementedError, RuntimeError):  # its constructor computes with them
        return sum(p.numel() for p in build(name).parameters())


def sweep(entry: Entry) -> tuple[str, Outcome, float]:
    """One model in both modes; the worse outcome, and the seconds that it took."""
    name, number = entry
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.monotonic()
    parameters = size_of(name)
    if parameters > MOST_PARAMETERS:
        return name, Outcome("skipped", f"{parameters / 1e6:.0f} million parameters"), time.monotonic() - start
    model = build(name)
    x = image(model)
    if x is None:
        return name, Outcome("skipped", "takes none of the image sizes"), time.monotonic() - start
    lowered = number % LOWERED == 0

    def chain(training: bool) -> str:
        with canonical_graphs() as canonical:
            gm = bnnfx.convert(model.train(training), "xnor", example_inputs=(x,))
        # converted in eval(), a graph has one side of each `if self.training`: that is no fault of the operators
        check_canonical(canonical[0], model, x, (False, True) if training else (False,))
        check_bits_vary(gm, x)
        if lowered and not training:
            check_lowered(gm, x)
        return refusals(gm)

    names = [name for name, _ in model.named_modules() if name] + [type(model).__name__]
    outcomes = [outcome_of(lambda mode=mode: chain(mode), *names, seconds=600) for mode in (False, True)]
    return name, worst(outcomes), time.monotonic() - start


def main(patterns: list[str]) -> int:
    names: list[str] = []
    for library in (torchvision_models, timm_models):
        try:
            names += library()
        except ImportError as missing:
            sys.stdout.write(f"skipped: {missing}\n")
    names = [n for n in names if not patterns or any(fnmatch.fnmatch(n, pattern) for pattern in patterns)]
    counts: Counter[str] = Counter()
    with ProcessPoolExecutor(2) as pool:
        for done in as_completed(pool.submit(sweep, (name, i)) for i, name in enumerate(names)):
            name, outcome, seconds = done.result()
            counts[outcome.kind] += 1
            detail = " ".join(outcome.detail.split())[:160]
            sys.stdout.write(f"{name:45} {outcome.kind:10} {seconds:6.1f} s  {detail}\n")
            sys.stdout.flush()
    sys.stdout.write(", ".join(f"{number} {kind}" for kind, number in counts.most_common()) + "\n")
    return int(bool(counts["wrong"] or counts["raw error"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
