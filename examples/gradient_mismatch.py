"""Does the straight-through gradient agree better with the loss when activations have three levels instead of two?

    python examples/gradient_mismatch.py --output examples/results/gradient_mismatch.md \\
        --plot examples/results/gradient_mismatch.svg

BinaryDuo (arXiv 2002.06517) says that it does, sharply, and that no refinement of the estimator makes up for it. This
measures it on small networks: three hidden layers with float weights and activations of 2, 3 or 4 levels in [0, 1],
Gaussian inputs, and another random network's outputs as targets. For every seed, `bnnfx.analysis` compares the
straight-through gradient of each hidden layer's weights with the coordinate discrete gradient. Within a seed, all
networks have the same random weights, up to the normalization of each layer, and see the same data. Nothing is trained.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from bnnfx.analysis import gradient_mismatch
from bnnfx.nn import ActivationBinarizer
from bnnfx.nn.sign import sign
from bnnfx.numerics.surrogates import approx_sign, clipped_identity

KINDS = {"binary": 1, "ternary": 2, "2-bit": 3}  # steps: one less than levels
LAYERS = {"layer 1": "0", "layer 2": "2", "layer 3": "4"}

Step = Callable[[Tensor, int], Tensor]
"""Pseudo-gradient of one step from -1 to +1 on [-1, 1], given the argument and the number of steps."""


def swish_sign(x: Tensor, steps: int) -> Tensor:
    """BNN+ (Darabi et al. 2018, arXiv 1812.11800), beta = 5."""
    beta = 5.0
    return beta * (2 - beta * x * torch.tanh(beta * x / 2)) / (1 + torch.cosh(beta * x))


APPROXIMATORS: dict[str, Step] = {
    "identity": lambda x, steps: torch.full_like(x, 1 / steps),
    "clipped identity": lambda x, steps: clipped_identity(x),
    "ApproxSign": lambda x, steps: approx_sign(x),
    "EDE": lambda x, steps: 1 - torch.tanh(x) ** 2,  # IR-Net (arXiv 1909.10788), t = k = 1
    "SwishSign": swish_sign,
}


class UniformActivation(ActivationBinarizer):
    """Rounding to 0, 1/steps, ... 1, as a sum of equal steps at (j - 1/2) / steps.

    Each step is a sign with the pseudo-gradient drawn together to the width of a step. The clipped identity then is
    HardTanh(0, 1) for any number of steps: factor 1 in (0, 1).
    """

    def __init__(self, steps: int, approximator: Step = APPROXIMATORS["clipped identity"]) -> None:
        super().__init__()
        self.steps, self.approximator = steps, approximator
        self.levels = tuple(j / steps for j in range(steps + 1))

    def binarize(self, x: Tensor) -> Tensor:
        def surrogate(u: Tensor) -> Tensor:
            return 2 * self.steps * self.approximator(2 * self.steps * u, self.steps)

        signs = [sign(x - (j + 0.5) / self.steps, surrogate) for j in range(self.steps)]
        return (sum(signs) + self.steps) / (2 * self.steps)


def network(activation: Callable[[], nn.Module], width: int, seed: int, x: Tensor) -> nn.Sequential:
    """Three hidden layers; each unit's values before the activation have mean and spread 0.5 on `x`.

    That is where a batch norm would put them: the levels lie within one standard deviation, as with sign(N(0, 1)).
    """
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    with torch.no_grad():
        for _ in LAYERS:
            linear = nn.Linear(width, width).double()
            values = linear(x)
            spread = values.std(0)
            linear.weight.mul_(0.5 / spread[:, None])
            linear.bias.copy_(0.5 + (linear.bias - values.mean(0)) * 0.5 / spread)
            layers += [linear, activation()]
            x = layers[-1](linear(x))
        return nn.Sequential(*layers, nn.Linear(width, width).double())


Cosines = dict[tuple[str, str, str, float], list[float]]  # approximator, kind, layer, epsilon -> one per seed


def measure(arguments: argparse.Namespace, progress: Progress) -> Cosines:
    found: Cosines = {}
    task = progress.add_task("networks", total=arguments.seeds * len(KINDS))
    for seed in range(arguments.seeds):
        generator = torch.Generator().manual_seed(1000 + seed)
        x = torch.randn(arguments.batch, arguments.width, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            y = network(lambda: nn.Hardtanh(0, 1), arguments.width, 2000 + seed, x)(x)
        for kind, steps in KINDS.items():
            model = network(lambda s=steps: UniformActivation(s), arguments.width, seed, x)
            result = gradient_mismatch(
                model,
                nn.functional.mse_loss,
                [(x, y)],
                layers=list(LAYERS.values()),
                epsilon=arguments.epsilon,
                coordinates=arguments.coordinates,
                seed=seed,
            )
            for name, approximator in APPROXIMATORS.items():
                coarse = straight_through(model, approximator, x, y)
                for layer, place in LAYERS.items():
                    for epsilon in arguments.epsilon:
                        # the discrete gradient knows nothing of the approximator, so one serves all of them
                        row = result[f"{place}.weight", epsilon]
                        row = replace(row, coarse=coarse[layer].flatten()[row.coordinates].unsqueeze(0))
                        found.setdefault((name, kind, layer, epsilon), []).append(row.cosine)
            progress.advance(task)
    return found


def straight_through(model: nn.Module, approximator: Step, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradient of each hidden layer's weight, with this approximator in all activations."""
    for module in model.modules():
        if isinstance(module, UniformActivation):
            module.approximator = approximator
    weights = [model.get_parameter(f"{place}.weight") for place in LAYERS.values()]
    gradients = torch.autograd.grad(nn.functional.mse_loss(model(x), y), weights)
    return dict(zip(LAYERS, gradients, strict=True))


def difference(more: list[float], less: list[float]) -> tuple[float, float, str]:
    """Mean and spread over the seeds of the paired difference, and the verdict: it has to exceed its spread."""
    pairs = [a - b for a, b in zip(more, less, strict=True)]
    mean, spread = statistics.fmean(pairs), statistics.stdev(pairs)
    return mean, spread, "not resolved" if abs(mean) <= spread else "higher" if mean > 0 else "lower"


def readings(cosines: Cosines, epsilons: list[float]) -> list[str]:
    """Sentences that follow from the numbers."""
    lines = []
    for epsilon in epsilons:
        for kind in ("ternary", "2-bit"):
            verdicts = [
                difference(cosines[name, kind, layer, epsilon], cosines[name, "binary", layer, epsilon])[2]
                for name in APPROXIMATORS
                for layer in LAYERS
            ]
            lines.append(f"epsilon {epsilon:g}, {kind} against binary: {tally(verdicts)}.")
        for name in APPROXIMATORS:
            if name != "clipped identity":
                verdicts = [
                    difference(
                        cosines[name, "binary", layer, epsilon], cosines["clipped identity", "binary", layer, epsilon]
                    )[2]
                    for layer in LAYERS
                ]
                lines.append(f"epsilon {epsilon:g}, binary, {name} against clipped identity: {tally(verdicts)}.")
        best = max(
            statistics.fmean(statistics.fmean(cosines[name, "binary", layer, epsilon]) for layer in LAYERS)
            for name in APPROXIMATORS
        )
        plain = statistics.fmean(
            statistics.fmean(cosines["clipped identity", "ternary", layer, epsilon]) for layer in LAYERS
        )
        lines.append(
            f"epsilon {epsilon:g}, mean over layers: the best approximator reaches {best:.3f} with binary activations, "
            f"the clipped identity {plain:.3f} with ternary ones."
        )
    return lines


def tally(verdicts: list[str]) -> str:
    counts = [(verdicts.count(word), word) for word in ("higher", "lower", "not resolved")]
    total = len(verdicts)
    return ", ".join(f"{word} in {'all' if count == total else count} of {total}" for count, word in counts if count)


def markdown(cosines: Cosines, arguments: argparse.Namespace, command: str) -> str:
    width, batch = arguments.width, arguments.batch
    lines = [
        "# Gradient mismatch by number of activation levels",
        "",
        "Cosine between the straight-through gradient and the coordinate discrete gradient: mean ± standard deviation "
        f"over {arguments.seeds} seeds. Three hidden layers of width {width}, float64, batch {batch}, "
        f"{arguments.coordinates} random coordinates per layer, mean squared error against a random target network, "
        "random weights (not trained).",
        "",
        f"    {command}",
        "",
        "| epsilon | layer | approximator | binary | ternary | 2-bit | ternary - binary | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for epsilon in arguments.epsilon:
        for layer in LAYERS:
            for name in APPROXIMATORS:
                columns = [cosines[name, kind, layer, epsilon] for kind in KINDS]
                cells = [f"{statistics.fmean(c):.3f} ± {statistics.stdev(c):.3f}" for c in columns]
                mean, spread, verdict = difference(columns[1], columns[0])
                row = [f"{epsilon:g}", layer, name, *cells, f"{mean:+.3f} ± {spread:.3f}", verdict]
                lines.append(f"| {' | '.join(row)} |")
    lines += [
        "",
        "A difference is taken seed by seed and counts where its mean exceeds its standard deviation over the seeds. "
        "The discrete gradient is that of the mini-batch: the smaller epsilon, the fewer of its samples a shift moves "
        "over a step, and the noisier it is itself.",
        "",
        *(f"* {line}" for line in readings(cosines, arguments.epsilon)),
    ]
    return "\n".join(lines) + "\n"


def plot(cosines: Cosines, epsilons: list[float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "bnnfx"  # the same file from the same numbers
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(epsilons), len(LAYERS), sharex=True, sharey=True, squeeze=False, figsize=(9, 3 * len(epsilons))
    )
    for row, epsilon in zip(axes, epsilons, strict=True):
        for axis, layer in zip(row, LAYERS, strict=True):
            for i, name in enumerate(APPROXIMATORS):
                columns = [cosines[name, kind, layer, epsilon] for kind in KINDS]
                places = [x + 0.08 * (i - (len(APPROXIMATORS) - 1) / 2) for x in range(len(KINDS))]
                means, spreads = map(statistics.fmean, columns), map(statistics.stdev, columns)
                axis.errorbar(places, list(means), list(spreads), fmt="o-", ms=3, lw=0.8, capsize=2, label=name)
            axis.set_title(f"{layer}, epsilon {epsilon:g}", fontsize=9)
            axis.set_xticks(range(len(KINDS)), KINDS)
            axis.grid(alpha=0.3)
        row[0].set_ylabel("cosine")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12, help="networks of each kind, 2 or more (default %(default)s)")
    parser.add_argument("--width", type=int, default=32, help="of inputs and layers (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1024, help="samples (default %(default)s)")
    parser.add_argument("--coordinates", type=int, default=200, help="per layer (default %(default)s)")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.1, 0.01], help="(default 0.1 0.01)")
    parser.add_argument("--output", type=Path, help="also write the table, as Markdown")
    parser.add_argument("--plot", type=Path, help="also draw it, .svg or .png (needs matplotlib: bnnfx[plot])")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds: a spread takes two or more.")
    for path in (arguments.output, arguments.plot):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"{path}: there is no such folder.")
    if arguments.plot is not None:
        if arguments.plot.suffix not in (".svg", ".png"):
            parser.error(f"--plot {arguments.plot}: the name ends in .svg or .png.")
        if find_spec("matplotlib") is None:
            parser.error("--plot needs matplotlib: pip install 'bnnfx[plot]'.")
    with Progress(console=Console(stderr=True)) as progress:
        cosines = measure(arguments, progress)
    text = markdown(cosines, arguments, shlex.join(["python", "examples/gradient_mismatch.py", *sys.argv[1:]]))
    sys.stdout.write(text)
    if arguments.output is not None:
        arguments.output.write_text(text)
    if arguments.plot is not None:
        plot(cosines, arguments.epsilon, arguments.plot)


if __name__ == "__main__":
    main()
