"""Step functions with a pseudo-gradient, the one place where training meets a derivative that is zero."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Surrogate = Callable[[Tensor], Tensor]


class _Steps(torch.autograd.Function):
    generate_vmap_rule = True  # torch.func.vmap takes forward and backward as they stand

    @staticmethod
    def forward(
        x: Tensor,
        decision: Tensor,
        levels: tuple[float, ...],
        thresholds: tuple[float, ...],
        surrogate: Surrogate,
    ) -> Tensor:
        value: Tensor | float = levels[0]
        for level, threshold in zip(levels[1:], thresholds, strict=True):
            value = torch.where(decision >= threshold, level, value)
        assert isinstance(value, Tensor)
        return value.to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.surrogate = inputs[-1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return gradients[0] * ctx.surrogate(x), None, None, None, None


def steps(
    x: Tensor,
    levels: tuple[float, ...],
    thresholds: tuple[float, ...],
    surrogate: Surrogate,
    decision: Tensor | None = None,
) -> Tensor:
    """Quantize by comparisons: the first level, the second where x >= the first threshold, and so on; NaN the first.

    Comparisons and not `torch.round`, which rounds a tie to even: a value on a threshold always takes the upper level.

    Args:
        x: the argument, any shape.
        levels: the values of the result, ascending.
        thresholds: what separates neighbouring levels, ascending, one fewer than levels.
        surrogate: pseudo-gradient as a function of `x`, see `bnnfx.numerics.surrogates`.
        decision: a tensor of the same shape that is compared instead of `x`, where `x` is a scaled copy that matters to
            the gradient only (the scaling could round a small negative number to -0.0).

    >>> from bnnfx.numerics.surrogates import unit_identity
    >>> steps(torch.tensor([-1.0, 0.25, 0.5, 0.75]), (0.0, 0.5, 1.0), (0.25, 0.75), unit_identity)
    tensor([0.0000, 0.5000, 0.5000, 1.0000])
    """
    result: Tensor = _Steps.apply(  # type: ignore[no-untyped-call]
        x, x if decision is None else decision, levels, thresholds, surrogate
    )
    return result


def sign(x: Tensor, surrogate: Surrogate, decision: Tensor | None = None) -> Tensor:
    """Binarize to +-1; zero of either sign gives +1 and NaN -1; backward multiplies by `surrogate(x)`.

    Args:
        x: the argument, any shape.
        surrogate: as for `steps`.
        decision: as for `steps`.

    >>> from bnnfx.numerics.surrogates import clipped_identity
    >>> sign(torch.tensor([-0.5, -0.0, float("nan")]), clipped_identity)
    tensor([-1.,  1., -1.])
    """
    return steps(x, (-1.0, 1.0), (0.0,), surrogate, decision)
