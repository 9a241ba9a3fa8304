"""Gradient mismatch: how well the straight-through gradient agrees with that of the quantized network's own loss."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call

from bnnfx.analysis.discrete_gradient import discrete_gradient, require_positive
from bnnfx.analysis.measured_parameters import named_parameters, weights_before_binarizers
from bnnfx.analysis.replica import replica, same_every_time
from bnnfx.arguments import require_flag, require_function, require_instance, require_whole, shown
from bnnfx.errors import AnalysisError, BnnfxError, first_line
from bnnfx.tables import as_text

CHUNK_BYTES = 2**25  # of activations held for shifted copies: small enough for caches, and many copies at once
Loss = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class LayerMismatch:
    """One parameter at one epsilon.

    Attributes:
        name: of the parameter.
        epsilon: half the width of the smoothing, in units of the weight.
        size: how many coordinates the parameter has.
        coordinates: `int64[K]`, the measured positions in the flattened parameter.
        discrete: `float64[batches, K]`, the coordinate discrete gradient.
        coarse: `float64[batches, K]`, the straight-through gradient of the same mini-batch.
    """

    name: str
    epsilon: float
    size: int
    coordinates: Tensor
    discrete: Tensor
    coarse: Tensor

    @property
    def cosines(self) -> list[float]:
        """Cosine between the two gradients, per batch; NaN where one of them is zero."""
        product = (self.discrete * self.coarse).sum(1)
        cosines: list[float] = (product / (self.discrete.norm(dim=1) * self.coarse.norm(dim=1))).tolist()
        return cosines

    @property
    def cosine(self) -> float:
        """Mean of the cosines over the batches."""
        return statistics.fmean(self.cosines)

    @property
    def spread(self) -> float:
        """Standard deviation of the cosines over the batches; NaN for a single one."""
        return float(torch.tensor(self.cosines, dtype=torch.float64).std()) if len(self.cosines) > 1 else math.nan

    @property
    def discrete_norm(self) -> float:
        """Euclidean norm of the discrete gradient over the measured coordinates, mean over the batches."""
        return float(self.discrete.norm(dim=1).mean())

    @property
    def coarse_norm(self) -> float:
        """Euclidean norm of the straight-through gradient over the measured coordinates, mean over the batches."""
        return float(self.coarse.norm(dim=1).mean())

    @property
    def still(self) -> float:
        """Share of coordinates whose shift left the loss as it was: where it nears 1, epsilon is too small."""
        return float((self.discrete == 0).double().mean())

    def to_dict(self) -> dict[str, Any]:
        """Plain figures, without the gradients themselves; undefined ones are None."""
        figures: dict[str, float] = {
            name: getattr(self, name) for name in ("cosine", "spread", "discrete_norm", "coarse_norm", "still")
        }
        return {
            "name": self.name,
            "epsilon": self.epsilon,
            "size": self.size,
            "coordinates": len(self.coordinates),
            "cosines": [_defined(cosine) for cosine in self.cosines],
            **{name: _defined(figure) for name, figure in figures.items()},
        }


@dataclass(frozen=True, eq=False)
class GradientMismatch:
    """What `gradient_mismatch` found; prints as a table.

    Attributes:
        rows: one per parameter and epsilon, in the order of the model.
        skipped: parameters that were left out, with the reason.
    """

    rows: tuple[LayerMismatch, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, key: tuple[str, float]) -> LayerMismatch:
        """The row of a parameter at an epsilon."""
        for row in self.rows:
            if (row.name, row.epsilon) == key:
                return row
        raise KeyError(key)

    def __str__(self) -> str:
        """One row per parameter and epsilon."""
        table = Table("parameter", "epsilon", "coordinates", "batches", "cosine", "|discrete|", "|coarse|", "still")
        for row in self.rows:
            cosine = f"{row.cosine:+.3f}" + ("" if math.isnan(row.spread) else f" ± {row.spread:.3f}")
            table.add_row(
                row.name,
                f"{row.epsilon:g}",
                f"{len(row.coordinates)} of {row.size}",
                str(len(row.discrete)),
                "undefined" if math.isnan(row.cosine) else cosine,
                f"{row.discrete_norm:.2e}",
                f"{row.coarse_norm:.2e}",
                f"{row.still:.0%}",
            )
        names: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            names.setdefault(reason, []).append(name)
        return as_text(table, *(f"left out: {', '.join(left)}: {reason}." for reason, left in names.items()))

    def to_dict(self) -> dict[str, Any]:
        """Plain figures for JSON."""
        return {"rows": [row.to_dict() for row in self.rows], "skipped": dict(self.skipped)}


def gradient_mismatch(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Sequence[Any]],
    *,
    layers: Sequence[str] | None = None,
    epsilon: float | Sequence[float] = (0.1, 0.01),
    coordinates: int | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    progress: bool = False,
) -> GradientMismatch:
    """Compare the straight-through gradient with the coordinate discrete gradient (CDG), parameter by parameter.

    The CDG of a coordinate is `(L(theta + eps e_i) - L(theta - eps e_i)) / (2 eps)`, with the quantized forward pass
    and the same mini-batch: exactly the gradient of the loss smoothed over [-eps, eps] in that coordinate, see
    `bnnfx.analysis.discrete_gradient`. It costs two forward passes per coordinate, which `torch.func.vmap` evaluates
    many at a time. A cosine near 1 says that the straight-through gradient points where the loss falls.

    The model, its modes, gradients and buffers, and the random state stay as they are: all of it happens on a copy.
    Batch norms behave as in the mode the model is in, on statistics of the batch in training mode.

    Args:
        model: a module with activation binarizers and float weights: of your own, or a trainable graph.
        loss: called as `loss(outputs, *targets)`, returns a scalar.
        batches: each `(inputs, *targets)`, inputs being a tensor, or a tuple of the arguments of forward. The gradients
            are compared batch by batch.
        layers: qualified names of layers (their `weight`) or parameters; if not given, the float weights that
            activation binarizers depend on.
        epsilon: one or several, in units of the weights.
        coordinates: how many coordinates of each parameter are measured, drawn at random; all if not given.
        seed: of that draw. It has its own generator.
        chunk_size: how many coordinates are evaluated at a time. If not given, as many as keep about 32 MiB of
            activations. 1 does without vmap, for a model that vmap cannot evaluate (it is then much slower).
        progress: show a progress bar, on standard error.

    Returns:
        Cosines, norms and the gradients themselves per parameter and epsilon.

    Raises:
        ValueError: no batch, no positive epsilon or number of coordinates, an unknown name, or the latent weight of a
            binary layer, for which the CDG says nothing: its shift has no effect unless a sign flips.
        AnalysisError: nothing to measure, a forward pass that is random or changes buffers, or vmap cannot evaluate it.

    Source: BinaryDuo (Kim et al. 2020, arXiv 2002.06517), the estimator CDG.

    >>> from bnnfx.numerics.surrogates import clipped_identity
    >>> from bnnfx.nn import SignActivation
    >>> mlp = nn.Sequential(nn.Linear(8, 16), SignActivation(clipped_identity), nn.Linear(16, 1))
    >>> batch = torch.randn(64, 8), torch.randn(64, 1)
    >>> result = gradient_mismatch(mlp, nn.functional.mse_loss, [batch], epsilon=0.1, coordinates=50)
    >>> [(row.name, len(row.coordinates), row.size) for row in result.rows]
    [('0.weight', 50, 128)]
    """
    require_instance("model", model, nn.Module, "a torch.nn.Module")
    require_function("loss", loss)
    require_flag("progress", progress)
    require_whole("seed", seed)
    given_epsilons = tuple(epsilon) if isinstance(epsilon, Sequence) and not isinstance(epsilon, str) else (epsilon,)
    require_positive("epsilon", *given_epsilons)
    epsilons = [float(e) for e in given_epsilons]
    given = _listed(batches)
    _check(given, layers, coordinates, chunk_size)
    copied = replica(model)
    arguments = [(x if isinstance(x, tuple | list) else (x,), targets) for x, *targets in given]

    def first() -> Tensor:
        return _value_of(copied, loss, *arguments[0])

    skipped: dict[str, str] = {}
    with same_every_time(copied):
        if layers is None:
            parameters, skipped = weights_before_binarizers(copied, first)
        else:
            parameters = named_parameters(copied, layers)
            first()
    if chunk_size is None:
        held = _saved_bytes(first)
    positions = {name: _draw(parameter.numel(), coordinates, seed) for name, parameter in parameters.items()}
    coarse: dict[str, list[Tensor]] = {name: [] for name in parameters}
    discrete: dict[tuple[str, float], list[Tensor]] = {(n, e): [] for n in parameters for e in epsilons}
    with _bar(progress, len(given) * len(epsilons) * sum(map(len, positions.values()))) as advance:
        for inputs, targets in arguments:
            with torch.enable_grad():
                value = _value_of(copied, loss, inputs, targets)
                gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                full = torch.zeros_like(parameter) if gradient is None else gradient
                coarse[name].append(full.cpu().double().flatten()[positions[name]])
                size = parameter.numel() * parameter.element_size()
                chunk = chunk_size or max(1, CHUNK_BYTES // (held + size))
                for e in epsilons:
                    smoothed = discrete_gradient(
                        _loss_of(copied, name, loss, inputs, targets),
                        parameter,
                        e,
                        coordinates=positions[name],
                        chunk_size=chunk,
                        advance=advance,
                    )
                    discrete[name, e].append(smoothed)
    rows = (
        LayerMismatch(
            name, e, parameter.numel(), positions[name], torch.stack(discrete[name, e]), torch.stack(coarse[name])
        )
        for name, parameter in parameters.items()
        for e in epsilons
    )
    return GradientMismatch(tuple(rows), skipped)


def _listed(batches: object) -> list[Any]:
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | str | Mapping):
        raise ValueError(f"batches is a list of batches (inputs, *targets); got {shown(batches)}.")
    return list(batches)


def _value_of(model: nn.Module, loss: Loss, inputs: Sequence[Any], targets: Sequence[Any]) -> Tensor:
    """The loss on a batch.

    Raises:
        ValueError: it is no scalar that has a gradient.
        AnalysisError: the model or the loss cannot be called with it.
    """
    function = "The model"
    try:
        outputs = model(*inputs)
        function = "loss(outputs, *targets)"
        value = loss(outputs, *targets)
    except BnnfxError:
        raise
    except Exception as error:
        raise AnalysisError(
            f"{function} cannot be called with a batch as it is given: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(value, Tensor) or value.ndim:
        raise ValueError(f"The loss is a scalar tensor; got {shown(value)}.")
    if torch.is_grad_enabled() and not value.requires_grad:
        raise ValueError("The loss has no gradient: it does not depend on the model's parameters, or was detached.")
    return value


def _check(batches: list[Any], layers: object, coordinates: int | None, chunk_size: int | None) -> None:
    for name, number in (("coordinates", coordinates), ("chunk_size", chunk_size)):
        if number is not None:
            require_whole(name, number, least=1)
    names = layers is None or (isinstance(layers, list | tuple) and all(isinstance(name, str) for name in layers))
    if not names or layers in ((), []):
        raise ValueError(f"layers is a list of names, or None; got {shown(layers)}.")
    if not batches:
        raise ValueError("gradient_mismatch needs at least one batch; the iterable given holds none.")
    for batch in batches:
        if not isinstance(batch, tuple | list) or not batch:
            raise ValueError(f"A batch is a tuple (inputs, *targets); got {shown(batch)}.")


def _draw(size: int, coordinates: int | None, seed: int) -> Tensor:
    """Positions in ascending order."""
    if coordinates is None or coordinates >= size:
        return torch.arange(size)
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:coordinates].sort().values


def _loss_of(
    model: nn.Module, name: str, loss: Loss, inputs: Sequence[Any], targets: Sequence[Any]
) -> Callable[[Tensor], Tensor]:
    return lambda theta: loss(functional_call(model, {name: theta}, tuple(inputs)), *targets)


def _saved_bytes(run: Callable[[], object]) -> int:
    """What autograd would keep of a forward pass: about the size of its activations."""
    sizes = []

    def note(x: Tensor) -> Tensor:
        sizes.append(x.numel() * x.element_size())
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        run()
    return sum(sizes)


@contextmanager
def _bar(shown: bool, total: int) -> Iterator[Callable[[int], object]]:
    with Progress(console=Console(stderr=True), disable=not shown, transient=True) as progress:
        task = progress.add_task("coordinates", total=total)
        yield lambda count: progress.advance(task, count)


def _defined(figure: float) -> float | None:
    return None if math.isnan(figure) else figure
