"""What a binarizer sees, per channel: running sums that do not depend on how the data is cut into batches."""

import torch
from torch import Tensor


class ChannelStatistics:
    """Sums over everything but the channel axis (axis 1) of the tensors it is shown.

    Attributes:
        count: values seen per channel.
        total: `float64[C]`, sum of the values.
        squares: `float64[C]`, sum of their squares.
        positive: `int64[C]`, how many were binarized to +1.
        zeros: `int64[C]`, how many were exactly zero.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = torch.zeros((), dtype=torch.float64)
        self.positive = self.zeros = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self, x: Tensor, bits: Tensor) -> None:
        """Add a batch: the input `x` of a binarizer and its output `bits` (+-1), both `[N, C, ...]`."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        values = x.double()
        self.count += x.numel() // x.shape[1]
        self.total = self.total + values.sum(axes).cpu()
        self.squares = self.squares + values.square().sum(axes).cpu()
        self.positive = self.positive + (bits > 0).sum(axes).cpu()
        self.zeros = self.zeros + (x == 0).sum(axes).cpu()

    @property
    def mean(self) -> Tensor:
        """Mean per channel, `float64[C]`."""
        return self.total / self.count

    @property
    def spread(self) -> Tensor:
        """Standard deviation per channel (population form), `float64[C]`."""
        return (self.squares / self.count - self.mean.square()).clamp_min(0).sqrt()

    @property
    def share_positive(self) -> Tensor:
        """Share of values binarized to +1 per channel, `float64[C]` in [0, 1]."""
        return self.positive.double() / self.count
