"""Activation binarizers: modules that turn a float tensor into +-1 and can observe what they see."""

from typing import cast

import torch
from torch import Tensor, nn

from bnnfx.nn.observer import ChannelStatistics
from bnnfx.nn.sign import Surrogate, sign


class ActivationBinarizer(nn.Module):
    """Base of the activation binarizers: forward is `+1 where x >= threshold(x), else -1`, shape and type kept.

    A subclass gives the pseudo-gradient (`binarize`) and, unless it is 0, the threshold. The two must agree: `lower`
    compares with `threshold` and nothing else.

    Attributes:
        pointwise: whether a bit depends on its own value and channel only. If not, nothing folds into integers.
        statistics: filled while `bnnfx.calibrate` observes, otherwise None.
    """

    pointwise = True
    statistics: ChannelStatistics | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Binarize `x` of any float type and shape `[N, C, ...]`."""
        bits = self.binarize(x)
        if self.statistics is not None:
            self.statistics.update(x, bits)
        return bits

    def binarize(self, x: Tensor) -> Tensor:
        """The binarized `x`, with the scheme's pseudo-gradient."""
        raise NotImplementedError

    def threshold(self, x: Tensor, rank: int) -> Tensor:
        """What `x`, of `rank` axes, is compared with: broadcastable to it, and plain torch, for `lower` traces it."""
        return torch.zeros((1,) * rank)

    def on_epoch(self, progress: float) -> None:
        """Follow the training schedule; `progress` is epoch / epochs in [0, 1)."""


class SignActivation(ActivationBinarizer):
    """sign(x) with a fixed pseudo-gradient.

    Args:
        surrogate: pseudo-gradient, see `bnnfx.numerics.surrogates`.

    >>> from bnnfx.numerics.surrogates import approx_sign
    >>> SignActivation(approx_sign)(torch.tensor([[-2.0, 0.0, 0.5]]))
    tensor([[-1.,  1.,  1.]])
    """

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__()
        self.surrogate = surrogate

    def binarize(self, x: Tensor) -> Tensor:
        """+1 where x >= 0, else -1; the gradient is multiplied by `surrogate(x)`."""
        return sign(x, self.surrogate)

    def extra_repr(self) -> str:
        """The name of the pseudo-gradient."""
        return cast(str, getattr(self.surrogate, "__name__", repr(self.surrogate)))
