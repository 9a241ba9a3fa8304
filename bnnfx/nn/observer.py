"""What a binarizer sees, per channel: running sums that do not depend on how the data is cut into batches."""

import torch
from torch import Tensor


class ChannelStatistics:
    """Sums over everything but the channel axis of the tensors it is shown.

    Args:
        levels: the values that the binarizer can give, ascending.
        axis: which one that is, 1 or -1.

    Attributes:
        count: values seen per channel.
        total: `float64[C]`, sum of the values.
        squares: `float64[C]`, sum of their squares.
        occupied: `int64[L, C]`, how many were given each of the L levels.
        zeros: `int64[C]`, how many were exactly zero.
    """

    def __init__(self, levels: tuple[float, ...] = (-1.0, 1.0), axis: int = 1) -> None:
        self.levels = levels
        self.axis = axis
        self.count = 0
        self.total = self.squares = torch.zeros((), dtype=torch.float64)
        self.occupied = self.zeros = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self, x: Tensor, bits: Tensor) -> None:
        """Add a batch: the input `x` of a binarizer and its output `bits`, of one shape."""
        axes = [axis for axis in range(x.ndim) if axis != self.axis % x.ndim]
        values = x.double()
        self.count += x.numel() // x.shape[self.axis]
        self.total = self.total + values.sum(axes).cpu()
        self.squares = self.squares + values.square().sum(axes).cpu()
        self.occupied = self.occupied + torch.stack([(bits == level).sum(axes) for level in self.levels]).cpu()
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
    def positive(self) -> Tensor:
        """How many were given the highest level, +1, per channel, `int64[C]`."""
        return self.occupied[-1]

    @property
    def share_positive(self) -> Tensor:
        """Share of values given the highest level, +1, per channel, `float64[C]` in [0, 1]."""
        return self.occupancy[-1]

    @property
    def constant(self) -> Tensor:
        """Whether a channel was given one level only, `bool[C]`."""
        return (self.occupied == self.count).any(dim=0)

    @property
    def occupancy(self) -> Tensor:
        """Share of values given each level, per channel, `float64[L, C]`, each in [0, 1]; a column sums to 1."""
        return self.occupied.double() / self.count
