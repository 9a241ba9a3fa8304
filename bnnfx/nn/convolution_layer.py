"""The binary 2-D convolution."""

from typing import cast

from torch import Tensor, nn

from bnnfx.errors import Refusal
from bnnfx.nn.binary_layer import BinaryLayer, MapConvolution, MapShape, register_layer
from bnnfx.numerics.convolution import Geometry
from bnnfx.private_interfaces import convolve


@register_layer(nn.Conv2d)
class BinaryConv2d(BinaryLayer, nn.Conv2d):
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

    @classmethod
    def refuses(cls, layer: nn.Module) -> Refusal | None:
        """Padding that is not zeros, or differs between two sides."""
        assert isinstance(layer, nn.Conv2d)
        if layer.padding_mode != "zeros":
            return Refusal(
                f"padding_mode={layer.padding_mode!r} is not supported",
                "padding_mode='zeros', or an nn.ReflectionPad2d or its like in front and padding=0",
            )
        sizes = zip(layer.dilation, layer.kernel_size, strict=True)
        if layer.padding == "same" and any(d * (k - 1) % 2 for d, k in sizes):
            return Refusal(
                "padding='same' pads its two sides differently for this kernel", "use an odd kernel, or numbers"
            )
        return None

    def accumulate(self, x: Tensor, signs: Tensor) -> Tensor:
        """`float[N, C, H, W]` to integers `float[N, O, OH, OW]`; zero padding."""
        return convolve(self, x, signs)

    def as_map(self, sizes: tuple[int, ...]) -> MapShape:
        """The map itself."""
        return cast(MapShape, sizes)

    def convolution(self, of: MapShape) -> MapConvolution:
        """The layer itself."""
        if self.padding == "same":
            rows, columns = (d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        else:
            rows, columns = (0, 0) if isinstance(self.padding, str) else self.padding
        kernel, strides, dilations = (cast(tuple[int, int], v) for v in (self.kernel_size, self.stride, self.dilation))
        return MapConvolution(self.in_channels, kernel, Geometry(strides, (rows, columns), dilations), self.groups)
