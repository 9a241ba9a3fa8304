"""The binary linear layer."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from bnnfx.nn.binary_layer import BinaryLayer, MapConvolution, MapShape, register_layer


@register_layer(nn.Linear)
class BinaryLinear(BinaryLayer, nn.Linear):
    """A `torch.nn.Linear` with 1-bit weights; give it +-1 activations, `[N, C]` or `[N, ..., C]`.

    Args:
        *args: as for `torch.nn.Linear`.
        binarizer: how the weight becomes 1-bit; `ScaledSign` if not given.
        **kwargs: as for `torch.nn.Linear`.

    >>> import torch
    >>> BinaryLinear(16, 4)(torch.ones(2, 16)).shape
    torch.Size([2, 4])
    """

    axes = 2
    layout = "(N, ..., C)"
    channel_axis = -1
    width_names = ("in_features", "out_features")
    batch_norm = nn.BatchNorm1d

    @classmethod
    def takes(cls, axes: int) -> bool:
        """A batch, and any number of axes between it and the channels."""
        return axes >= cls.axes

    def accumulate(self, x: Tensor, signs: Tensor) -> Tensor:
        """`float[..., C]` to integers `float[..., O]`."""
        return F.linear(x, signs)

    def as_map(self, sizes: tuple[int, ...]) -> MapShape:
        """A pixel for every position; one of `[N, C]`."""
        *positions, columns = (1, *sizes[:-1]) if len(sizes) > 1 else (1, 1)
        return self.in_features, math.prod(positions), columns

    def convolution(self, of: MapShape) -> MapConvolution:
        """At every pixel; of a map that was flattened, with a kernel as large as that: its bits stay in their order."""
        channels, rows, columns = of
        return MapConvolution(channels, (1, 1) if channels == self.in_features else (rows, columns))
