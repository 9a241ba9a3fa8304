"""Is a network that was trained with ternary activations and then split better than one that was binary from the start?

    python examples/binaryduo.py --output examples/results/binaryduo.md

BinaryDuo (arXiv 2002.06517) in its two stages, on Fashion-MNIST. The baseline has activations {0, 1} throughout. The
other network is narrower, has activations {0, 1/2, 1} for the first part of the epochs, and is then split into one with
activations {0, 1}, which has no more weights than the baseline, and trained for the rest. Both have 1-bit weights
with one scale per layer, the same optimizer, the same batches and the same total number of epochs.
"""

import argparse
import shlex
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from images import load_images
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, fx, nn
from torch.nn import functional as F

import bnnfx
from bnnfx.nn import HeavisideActivation
from bnnfx.schemes.binaryduo import LayerScaledSign

BASELINE = bnnfx.register_scheme(
    bnnfx.Scheme(
        name="binaryduo-baseline",
        title="The network that BinaryDuo is compared with: activations {0, 1} from the start",
        source="Kim et al. 2020, arXiv 2002.06517",
        activation=lambda options: HeavisideActivation(),
        weight=lambda layer, options: LayerScaledSign(),
    )
)

STAGES = ("baseline binary", "coupled ternary", "right after the split", "split, fine-tuned")


def network(width: int = 32) -> nn.Module:
    """A chain like VGG-7 for 28x28 images: maps of 14, 14, 7 and 7 pixels; its first and its last layer stay float."""

    def block(inputs: int, outputs: int, *, stride: int = 1, pool: bool = False) -> list[nn.Module]:
        layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)]
        if pool:
            layers.append(nn.MaxPool2d(2))
        return [*layers, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(1, width, stride=2),
        *block(width, width),
        *block(width, 2 * width, pool=True),
        *block(2 * width, 2 * width),
        *block(2 * width, 4 * width, pool=True),
        nn.Flatten(),
        nn.Linear(4 * width * 9, 10),
    )


@dataclass
class Run:
    """What one seed gave: test accuracy and number of weights (of all convolutions and linear layers) by stage."""

    accuracy: dict[str, float] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """Training and test images with their labels."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def train(model: fx.GraphModule, data: Data, epochs: int, learning_rate: float, seed: int, progress: Progress) -> None:
    """Adam with a cosine-shaped decay to zero over these epochs; batches follow from the seed alone."""
    images, labels = data.train
    batch = 128
    steps = len(images) // batch
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    task = progress.add_task("train", total=epochs * steps)
    model.train()
    for _ in bnnfx.Schedule(model, epochs):
        for chosen in torch.randperm(len(images), generator=generator)[: steps * batch].split(batch):
            x = images[chosen]
            if torch.rand((), generator=generator) < 0.5:
                x = x.flip(3)
            loss = F.cross_entropy(model(x), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
            progress.advance(task)
    model.eval()
    progress.remove_task(task)


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Share of the test images that are classified rightly."""
    images, labels = data.test
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True))
    return right / len(labels)


def weight_count(model: nn.Module) -> int:
    """Entries of the weights of all convolutions and linear layers."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def run(seed: int, data: Data, epochs: int, coupled_epochs: int, learning_rate: float, progress: Progress) -> Run:
    """Train both networks; every stage is tested."""
    result = Run()

    def record(stage: str, model: nn.Module) -> None:
        result.accuracy[stage] = accuracy(model, data)
        result.weights[stage] = weight_count(model)

    torch.manual_seed(seed)
    model = network()
    example = (data.test[0][:2],)
    baseline = bnnfx.convert(model, BASELINE.name, example_inputs=example)
    train(baseline, data, epochs, learning_rate, seed, progress)
    record(STAGES[0], baseline)

    config = bnnfx.Config(options={"parity": "exact"})
    coupled = bnnfx.convert(model, "binaryduo", example_inputs=example, config=config)
    train(coupled, data, coupled_epochs, learning_rate, seed, progress)
    record(STAGES[1], coupled)
    split = bnnfx.split(coupled)
    record(STAGES[2], split)
    train(split, data, epochs - coupled_epochs, learning_rate / 10, seed + 1000, progress)
    record(STAGES[3], split)
    return result


def difference(runs: list[Run], first: str, second: str) -> str:
    """`second` minus `first`, seed by seed: mean, spread and what that means."""
    pairs = [100 * (r.accuracy[second] - r.accuracy[first]) for r in runs]
    mean = statistics.fmean(pairs)
    spread = statistics.stdev(pairs) if len(pairs) > 1 else float("inf")
    verdict = "not resolved" if abs(mean) <= spread else "higher" if mean > 0 else "lower"
    return f"{mean:+.2f} ± {spread:.2f} percentage points: {verdict}"


def report(runs: list[Run], arguments: argparse.Namespace, name: str, command: str) -> str:
    """The results as a Markdown page; every figure and every reading comes from `runs`."""
    seeds = len(runs)
    epochs = {
        STAGES[0]: f"{arguments.epochs}",
        STAGES[1]: f"{arguments.coupled_epochs}",
        STAGES[2]: f"{arguments.coupled_epochs}",
        STAGES[3]: f"{arguments.coupled_epochs} + {arguments.epochs - arguments.coupled_epochs}",
    }
    lines = [
        "# BinaryDuo on Fashion-MNIST",
        "",
        f"{name}: {arguments.train_images:,} training and {arguments.test_images:,} test images. Test accuracy in "
        f"percent: mean ± standard deviation over {seeds} seeds. Weights are those of all convolutions and linear "
        "layers.",
        "",
        f"    {command}",
        "",
        "| stage | activations | epochs | weights | test accuracy | seeds |",
        "|---|---|---|---|---|---|",
    ]
    levels = ("{0, 1}", "{0, 1/2, 1}", "{0, 1}", "{0, 1}")
    for stage, values in zip(STAGES, levels, strict=True):
        found = [100 * r.accuracy[stage] for r in runs]
        spread = f" ± {statistics.stdev(found):.2f}" if seeds > 1 else ""
        each = ", ".join(f"{value:.2f}" for value in found)
        lines.append(
            f"| {stage} | {values} | {epochs[stage]} | {runs[0].weights[stage]:,} | "
            f"{statistics.fmean(found):.2f}{spread} | {each} |"
        )
    changed = max(abs(r.accuracy[STAGES[2]] - r.accuracy[STAGES[1]]) for r in runs)
    lines += [
        "",
        "Differences are taken seed by seed, and count where the mean exceeds the standard deviation over the seeds.",
        "",
        f"* Split, fine-tuned against baseline: {difference(runs, STAGES[0], STAGES[3])}.",
        f"* Coupled ternary against baseline: {difference(runs, STAGES[0], STAGES[1])}.",
        f"* Fine-tuning after the split: {difference(runs, STAGES[2], STAGES[3])}.",
        f"* The split itself changes the accuracy by at most {100 * changed:.2f} percentage points.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the experiment, print its page, and write it where `--output` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12, help="of each network in total (default %(default)s)")
    parser.add_argument("--coupled-epochs", type=int, default=8, help="of these before the split (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="a tenth of it after the split")
    parser.add_argument("--limit", type=int, default=None, help="use only so many images of each set")
    parser.add_argument("--output", type=Path, default=None, help="write the page there as well")
    arguments = parser.parse_args()
    if not 0 < arguments.coupled_epochs < arguments.epochs:
        parser.error("--coupled-epochs is at least 1 and less than --epochs")
    console = Console()
    images = load_images()
    limit = slice(arguments.limit)
    data = Data(*((x[limit], y[limit]) for x, y in (images.train, images.test)))
    arguments.train_images, arguments.test_images = len(data.train[1]), len(data.test[1])
    with Progress(console=console) as progress:
        task = progress.add_task("seeds", total=arguments.seeds)
        runs = []
        for seed in range(arguments.seeds):
            runs.append(run(seed, data, arguments.epochs, arguments.coupled_epochs, arguments.learning_rate, progress))
            progress.advance(task)
    page = report(runs, arguments, images.name, shlex.join(["python", "examples/binaryduo.py", *sys.argv[1:]]))
    console.print(page, markup=False, highlight=False, soft_wrap=True)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = arguments.output.with_suffix(".part")
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(arguments.output)


if __name__ == "__main__":
    main()
