"""The binary linear layer."""

from torch import Tensor, nn
from torch.nn import functional as F

from bnnfx.nn.binary_layer import BinaryLayer, MapConvolution, MapShape, register_layer


@register_layer(nn.Linear)
class BinaryLinear(BinaryLayer, nn.Linear):
    """A `torch.nn.Linear` with 1-bit weights; give it +-1 activations.

    Args:
        *args: as for `torch.nn.Linear`.
        binarizer: how the weight becomes 1-bit; `ScaledSign` if not given.
        **kwargs: as for `torch.nn.Linear`.

    >>> import torch
    >>> BinaryLinear(16, 4)(torch.ones(2, 16)).shape
    torch.Size([2, 4])
    """

    axes = 2
    layout = "(N, C)"
    channel_axis = -1
    width_names = ("in_features", "out_features")
    batch_norm = nn.BatchNorm1d

    def accumulate(self, x: Tensor, signs: Tensor) -> Tensor:
        """`float[..., C]` to integers `float[..., O]`."""
        return F.linear(x, signs)

    def as_map(self, sizes: tuple[int, ...]) -> MapShape:
        """One pixel."""
        return self.in_features, 1, 1

    def convolution(self, of: MapShape) -> MapConvolution:
        """With a kernel as large as the map, so that the bits of a map need not be reordered."""
        channels, rows, columns = of
        return MapConvolution(channels, (rows, columns))
