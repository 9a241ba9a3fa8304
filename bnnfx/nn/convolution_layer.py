"""The binary convolutions."""

from typing import cast

from torch import Tensor, nn

from bnnfx.nn.binary_layer import BinaryLayer, MapConvolution, MapShape, register_layer
from bnnfx.numerics.convolution import Geometry
from bnnfx.private_interfaces import convolve


class _Convolution(BinaryLayer):
    """What convolutions of one and of two axes have in common; the first is that of a map of one row."""

    in_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def accumulate(self, x: Tensor, signs: Tensor) -> Tensor:
        """`float[N, C, ...]` to integers `float[N, O, ...]`; zero padding."""
        return convolve(self, x, signs)

    def convolution(self, of: MapShape) -> MapConvolution:
        """The layer itself, over one row if it has one axis."""
        padding = (0,) * len(self.kernel_size) if isinstance(self.padding, str) else self.padding
        if self.padding == "same":
            padding = tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        window = Geometry(_pair(self.stride, 1), _pair(padding, 0), _pair(self.dilation, 1))
        return MapConvolution(self.in_channels, _pair(self.kernel_size, 1), window, self.groups)


def _pair(values: tuple[int, ...], row: int) -> tuple[int, int]:
    """Of rows and columns, whatever one axis has."""
    return cast(tuple[int, int], (row, *values)[-2:])


@register_layer(nn.Conv1d)
class BinaryConv1d(_Convolution, nn.Conv1d):
    """A `torch.nn.Conv1d` with 1-bit weights; give it +-1 activations.

    Args:
        *args: as for `torch.nn.Conv1d`.
        binarizer: how the weight becomes 1-bit; `ScaledSign` if not given.
        **kwargs: as for `torch.nn.Conv1d`.

    >>> import torch
    >>> BinaryConv1d(3, 8, 5, padding=2)(torch.ones(2, 3, 7)).shape
    torch.Size([2, 8, 7])
    """

    axes = 3
    layout = "(N, C, L)"
    batch_norm = nn.BatchNorm1d

    def as_map(self, sizes: tuple[int, ...]) -> MapShape:
        """One row."""
        channels, length = sizes
        return channels, 1, length


@register_layer(nn.Conv2d)
class BinaryConv2d(_Convolution, nn.Conv2d):
    """A `torch.nn.Conv2d` with 1-bit weights; give it +-1 activations.

    Args:
        *args: as for `torch.nn.Conv2d`.
        binarizer: how the weight becomes 1-bit; `ScaledSign` if not given.
        **kwargs: as for `torch.nn.Conv2d`.

    >>> import torch
    >>> layer = BinaryConv2d(3, 8, 3, padding=1)
    >>> layer(torch.ones(2, 3, 5, 7)).shape
    torch.Size([2, 8, 5, 7])
    """

    axes = 4
    layout = "(N, C, H, W)"
    batch_norm = nn.BatchNorm2d

    def as_map(self, sizes: tuple[int, ...]) -> MapShape:
        """The map itself."""
        return cast(MapShape, sizes)
