"""The coordinate discrete gradient (CDG): the gradient of a loss that has been smoothed, one coordinate at a time.

`CDG_i = (L(theta + eps e_i) - L(theta - eps e_i)) / (2 eps)` is exactly the derivative in theta_i of the mean of
`L(theta + u e_i)`, u uniform on [-eps, eps], also where L jumps. It is no approximation that wants a small eps: where
activations are steps, L is constant almost everywhere and the limit is 0.

Source: BinaryDuo (Kim et al. 2020, arXiv 2002.06517), which names it CDG.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bnnfx.arguments import is_number, require_function, require_whole, shown
from bnnfx.errors import AnalysisError, first_line


@torch.no_grad()
def discrete_gradient(
    function: Callable[[Tensor], Tensor],
    theta: Tensor,
    epsilon: float,
    *,
    coordinates: Tensor | None = None,
    chunk_size: int = 64,
    advance: Callable[[int], object] | None = None,
) -> Tensor:
    """The CDG of a function at `theta`.

    Differences are taken in float64 between values in the function's own type, so a value near 1 computed in float32
    leaves an error of about 6e-8 / eps in each coordinate. They are divided by the distance of the two points as
    rounded to the type of `theta`.

    Args:
        function: from a tensor of the shape of `theta` to a scalar. `torch.func.vmap` evaluates it.
        theta: where, any float type and shape; not changed.
        epsilon: half the distance of the two points, in units of `theta`.
        coordinates: `int64[K]`, positions in the flattened `theta`; all if not given.
        chunk_size: how many shifted copies of `theta` are evaluated together; 1 does without vmap.
        advance: called with the number of coordinates done since the last call.

    Returns:
        `float64[K]` on the CPU.

    Raises:
        ValueError: `epsilon` or `chunk_size` is not positive, `epsilon` is lost in the rounding of `theta`, or the
            function's value is not a scalar; or an argument is something else.
        AnalysisError: vmap cannot evaluate the function.

    >>> step = lambda x: (x >= 0.1).float().sum()
    >>> discrete_gradient(step, torch.tensor([0.0, 2.0]), 0.25)
    tensor([2., 0.], dtype=torch.float64)
    """
    require_function("function", function)
    require_positive("epsilon", epsilon)
    require_whole("chunk_size", chunk_size, least=1)
    if not isinstance(theta, Tensor) or not theta.is_floating_point():
        raise ValueError(f"theta is a float tensor; got {shown(theta)}.")
    theta = theta.detach()
    if coordinates is None:
        coordinates = torch.arange(theta.numel())
    whole = isinstance(coordinates, Tensor) and coordinates.dtype is torch.int64 and coordinates.ndim == 1
    if not whole or not bool(((coordinates >= 0) & (coordinates < theta.numel())).all()):
        raise ValueError(
            f"coordinates is a tensor int64[K] of positions from 0 to {theta.numel() - 1}; got {shown(coordinates)}."
        )
    parts = [torch.zeros(0, dtype=torch.float64)]
    for start in range(0, len(coordinates), chunk_size):
        chosen = coordinates[start : start + chunk_size].to(theta.device)
        points, values = zip(*(_shifted(function, theta, chosen, step) for step in (epsilon, -epsilon)), strict=True)
        distance = points[0] - points[1]
        if not distance.all():
            raise ValueError(
                f"epsilon={epsilon} is lost in the rounding of {theta.dtype}: the two points are the same."
            )
        parts.append((values[0] - values[1]) / distance)
        if advance is not None:
            advance(len(chosen))
    return torch.cat(parts)


def require_positive(name: str, *values: object) -> None:
    """Refuse what is no positive number.

    Raises:
        ValueError: one of the values is none, or there are none.
    """
    if not values or not all(is_number(value) and value > 0 and math.isfinite(value) for value in values):  # type: ignore[operator, arg-type]
        raise ValueError(f"{name} is a positive number; got {', '.join(map(shown, values)) or 'none'}.")


def _shifted(function: Callable[[Tensor], Tensor], theta: Tensor, chosen: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """The chosen coordinates after the step, and the values of the function there: each `float64[len(chosen)]`."""
    copies = theta.flatten().repeat(len(chosen), 1)
    rows = torch.arange(len(chosen), device=theta.device)
    copies[rows, chosen] += step
    points = copies[rows, chosen]
    shaped = copies.view(len(chosen), *theta.shape)

    def value(x: Tensor) -> Tensor:
        found = function(x)
        if not isinstance(found, Tensor):
            raise ValueError(f"The function must return a scalar tensor; got {shown(found)}.")
        return found

    if len(chosen) == 1:
        values = value(shaped[0]).unsqueeze(0)
    else:
        try:
            values = torch.func.vmap(value)(shaped)
        except RuntimeError as error:
            raise AnalysisError(
                f"torch.func.vmap cannot evaluate {len(chosen)} shifted copies together: {first_line(error)} "
                "chunk_size=1 evaluates them one by one."
            ) from error
    if values.shape != (len(chosen),):
        raise ValueError(f"The function must return a scalar; got a tensor of shape {tuple(values.shape[1:])}.")
    return points.cpu().double(), values.cpu().double()
