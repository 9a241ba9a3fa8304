"""Weight binarizers: from a float weight to signs +-1 and one scale per filter."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnnfx.nn.sign import sign
from bnnfx.numerics.surrogates import clipped_identity


@dataclass(frozen=True)
class Rotation:
    """What a weight binarizer that rotates filters makes of a weight; all are `[O, N]`.

    Attributes:
        before: the filters that are rotated.
        after: the rotated ones.
        used: those whose signs are the bits.
        at_random: gives `before` under a random rotation of the same structure, another one each time: what any
            rotation would do.
    """

    before: Tensor
    after: Tensor
    used: Tensor
    at_random: Callable[[], Tensor]


class WeightBinarizer(nn.Module):
    """Base of the weight binarizers of the binary layers.

    The layer computes `convolution(x, signs) * scale`: the scale comes after the integers, never into them.

    Attributes:
        projects: whether the scheme writes `prepare(weight)` back into the latent weight before every training step.
        homogeneous: whether `[c W, c W]` with c > 0, side by side on the axis of the inputs, is binarized to the signs
            `[S, S]` and the scale `c alpha`, where W gives S and alpha.
    """

    projects = False
    homogeneous = False

    def prepare(self, weight: Tensor) -> Tensor:
        """What is binarized instead of the latent weight; in training it replaces the latent weight (`projects`)."""
        return weight

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Binarize a prepared weight.

        Args:
            weight: `float[O, ...]`.

        Returns:
            signs +-1 of the same shape, and the scale `float[O]`.
        """
        raise NotImplementedError

    def rotation(self, weight: Tensor) -> Rotation | None:
        """How a prepared weight `[O, ...]` is rotated, in its type and on its device; None if it is not."""
        return None

    def on_epoch(self, progress: float) -> None:
        """Follow the training schedule; `progress` is epoch / epochs in [0, 1)."""

    def between_epochs(self, weight: Tensor) -> None:
        """What the scheme recomputes from the weight alone once per epoch, in place and without gradient."""


class ScaledSign(WeightBinarizer):
    """`alpha * sign(W)` with alpha the mean of |W| over each filter, both differentiable.

    The gradient of `alpha * sign(W)` by the product rule, with the clipped straight-through estimator for sign, is
    `alpha 1[|W| <= 1] g_i + sign(W_i) / n * sum_j g_j sign(W_j)`. Source: XNOR-Net (arXiv 1603.05279), with the sum
    over j that the PyTorch port added.

    >>> signs, scale = ScaledSign()(torch.tensor([[0.5, -1.5]]))
    >>> signs, scale
    (tensor([[ 1., -1.]]), tensor([1.]))
    """

    homogeneous = True

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Signs of `weight` `[O, ...]` and the mean of its magnitudes `[O]`."""
        return sign(weight, clipped_identity), weight.abs().flatten(1).mean(dim=1)


def exact_zeros(weight: Tensor) -> int:
    """How many weights are exactly zero: they are binarized to +1 by convention, not by their sign."""
    return int(torch.count_nonzero(weight == 0))
