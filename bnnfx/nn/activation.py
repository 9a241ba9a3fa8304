"""Activation binarizers: modules that turn a float tensor into a few levels, mostly +-1, and observe what they see."""

from typing import cast

import torch
from torch import Tensor, fx, nn

from bnnfx.errors import ConversionError
from bnnfx.nn.observer import ChannelStatistics
from bnnfx.nn.sign import Surrogate, sign, steps
from bnnfx.numerics.surrogates import unit_identity


class ActivationBinarizer(nn.Module):
    """Base of the activation binarizers: forward is `+1 where x >= threshold(x), else -1`, shape and type kept.

    A subclass gives the pseudo-gradient (`binarize`) and, unless it is 0, the threshold. The two must agree: `lower`
    compares with `threshold` and nothing else. Other `levels` than +-1 are given in the same way, and where there are
    more than two, `thresholds` separates them; `lower` takes two.

    Attributes:
        levels: the values that the result can have, ascending.
        pointwise: whether a bit depends on its own value and channel only. If not, nothing folds into integers.
        statistics: filled while `bnnfx.calibrate` observes, otherwise None.
    """

    levels: tuple[float, ...] = (-1.0, 1.0)
    pointwise = True
    statistics: ChannelStatistics | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Binarize `x` of any float type and shape `[N, C, ...]`.

        Raises:
            ConversionError: a tracer of another package looks inside.
        """
        if isinstance(x, fx.Proxy):
            raise ConversionError(
                f"torch.fx traces into a {type(self).__name__} here, which would lose what bnnfx knows of the graph. "
                "Rewrite the float model (with create_feature_extractor, say) and convert the result. What stays float "
                "in a converted graph is not prepared for quantization; quantize those layers in the exported file."
            )
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

    def constant_threshold(self, rank: int) -> Tensor:
        """The threshold of a `pointwise` binarizer, `float32`, without any x."""
        return self.threshold(torch.empty(0), rank).detach().float()

    def thresholds(self, x: Tensor, rank: int) -> tuple[Tensor, ...]:
        """What separates neighbouring `levels`, ascending, each as `threshold` gives it."""
        return (self.threshold(x, rank),)

    def split(self) -> "ActivationBinarizer | None":
        """A new binarizer b of two levels such that this one gives `(b(x - 1/4) + b(x + 1/4)) / 2`, or None.

        `bnnfx.split` puts it in the place of this one.
        """
        return None

    @property
    def absorbs_relu(self) -> bool:
        """Whether no level is negative: all x < 0 give the lowest level, and a ReLU in front would change nothing."""
        return self.levels[0] >= 0

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


class TernaryActivation(ActivationBinarizer):
    """0 where x < 0.25, 1/2 where 0.25 <= x < 0.75, 1 from 0.75 on; the gradient is multiplied by 1 where 0 < x < 1.

    It is half the sum of two comparisons, `(H(x - 0.25) + H(x - 0.75)) / 2` with H(0) = 1, which is what
    `bnnfx.split` makes of it; the clip to [0, 1] of the paper is inside. A layer behind it cannot be lowered before.

    Source: BinaryDuo (arXiv 2002.06517) and the authors' code; rounding half up, as Torch7 does.

    >>> TernaryActivation()(torch.tensor([[-2.0, 0.25, 0.5, 0.75, 3.0]]))
    tensor([[0.0000, 0.5000, 0.5000, 1.0000, 1.0000]])
    """

    levels = (0.0, 0.5, 1.0)

    def binarize(self, x: Tensor) -> Tensor:
        """The level of `x`; the gradient of the clip to [0, 1]."""
        return steps(x, self.levels, (0.25, 0.75), unit_identity)

    def threshold(self, x: Tensor, rank: int) -> Tensor:
        """There is no single one.

        Raises:
            TypeError: always; the message says what to do.
        """
        raise TypeError(
            "TernaryActivation has three levels and two thresholds; bnnfx.split makes two activations of it."
        )

    def thresholds(self, x: Tensor, rank: int) -> tuple[Tensor, ...]:
        """0.25 and 0.75."""
        return torch.full((1,) * rank, 0.25), torch.full((1,) * rank, 0.75)

    def split(self) -> ActivationBinarizer:
        """H(x - 0.5)."""
        return HeavisideActivation()


class HeavisideActivation(ActivationBinarizer):
    """1 where x >= 0.5, else 0; the gradient is multiplied by 1 where 0 < x < 1.

    Source: BinaryDuo (arXiv 2002.06517) and the authors' code: the clip to [0, 1], then rounding half up.

    >>> HeavisideActivation()(torch.tensor([[-2.0, 0.25, 0.5, 3.0]]))
    tensor([[0., 0., 1., 1.]])
    """

    levels = (0.0, 1.0)

    def binarize(self, x: Tensor) -> Tensor:
        """The level of `x`; the gradient of the clip to [0, 1]."""
        return steps(x, self.levels, (0.5,), unit_identity)

    def threshold(self, x: Tensor, rank: int) -> Tensor:
        """0.5."""
        return torch.full((1,) * rank, 0.5)
