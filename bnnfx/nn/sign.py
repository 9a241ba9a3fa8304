"""The sign function with a pseudo-gradient, the one place where training meets a derivative that is zero."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Surrogate = Callable[[Tensor], Tensor]


class _Sign(torch.autograd.Function):
    generate_vmap_rule = True  # torch.func.vmap takes forward and backward as they stand

    @staticmethod
    def forward(x: Tensor, decision: Tensor, surrogate: Surrogate) -> Tensor:
        return torch.where(decision >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, surrogate = inputs
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return gradients[0] * ctx.surrogate(x), None, None


def sign(x: Tensor, surrogate: Surrogate, decision: Tensor | None = None) -> Tensor:
    """Binarize to +-1; zero of either sign gives +1 and NaN -1; backward multiplies by `surrogate(x)`.

    Args:
        x: the argument, any shape.
        surrogate: pseudo-gradient as a function of `x`, see `bnnfx.numerics.surrogates`.
        decision: a tensor of the same shape whose sign is taken instead of that of `x`, where `x` is a scaled copy that
            matters to the gradient only (the scaling could round a small negative number to -0.0).

    >>> from bnnfx.numerics.surrogates import clipped_identity
    >>> sign(torch.tensor([-0.5, -0.0, float("nan")]), clipped_identity)
    tensor([-1.,  1., -1.])
    """
    result: Tensor = _Sign.apply(x, x if decision is None else decision, surrogate)  # type: ignore[no-untyped-call]
    return result
