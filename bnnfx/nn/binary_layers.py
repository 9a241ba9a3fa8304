"""Convolution and linear layers whose weight is binarized in the forward pass; parameter names are torch's."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnfx.nn.weight import ScaledSign, WeightBinarizer
from bnnfx.private_interfaces import convolve


class _BinaryLayer(nn.Module):
    """What both layers share: binarize the weight, accumulate integers, then scale and add the bias."""

    weight: Any  # as torch's layers declare them
    bias: Any
    binarizer: WeightBinarizer

    def binary_weight(self) -> tuple[Tensor, Tensor]:
        """The signs +-1 (shape of the weight) and the scale `float[O]` that the forward pass uses."""
        weight: Tensor = self.weight
        if self.binarizer.projects:
            if self.training:
                # .data: the projection is no step of autograd, and a layer that is called twice projects twice
                self.weight.data.copy_(self.binarizer.prepare(self.weight.detach()))
            else:
                weight = self.binarizer.prepare(weight)
        signs, scale = self.binarizer(weight)
        return signs, scale

    def accumulate(self, x: Tensor, signs: Tensor) -> Tensor:
        """The integer part: `x` and `signs` hold +-1, the result holds integers."""
        raise NotImplementedError

    def rescale(self, accumulator: Tensor, scale: Tensor) -> Tensor:
        """The float part: `accumulator * scale + bias`, in this order."""
        shape = (-1,) + (1,) * (self.weight.ndim - 2)
        scaled = accumulator * scale.view(shape)
        return scaled if self.bias is None else scaled + self.bias.view(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to +-1 activations."""
        signs, scale = self.binary_weight()
        return self.rescale(self.accumulate(x, signs), scale)

    def on_epoch(self, progress: float) -> None:
        """Pass the training schedule on to the weight binarizer."""
        self.binarizer.on_epoch(progress)

    def between_epochs(self) -> None:
        """Let the weight binarizer recompute what it derives from the weight once per epoch."""
        with torch.no_grad():
            self.binarizer.between_epochs(self.weight)


class BinaryConv2d(_BinaryLayer, nn.Conv2d):
    """A `torch.nn.Conv2d` with 1-bit weights; give it +-1 activations.

    Args:
        *args: as for `torch.nn.Conv2d`.
        binarizer: how the weight becomes 1-bit; `ScaledSign` if not given.
        **kwargs: as for `torch.nn.Conv2d`.

    >>> layer = BinaryConv2d(3, 8, 3, padding=1)
    >>> layer(torch.ones(2, 3, 5, 7)).shape
    torch.Size([2, 8, 5, 7])
    """

    def __init__(self, *args: Any, binarizer: WeightBinarizer | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.binarizer = binarizer or ScaledSign()

    @classmethod
    def from_float(cls, layer: nn.Conv2d, binarizer: WeightBinarizer) -> Self:
        """Take over a float layer: the same parameter objects under the same names."""
        binary = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            bias=False,
            device="meta",
            binarizer=binarizer,
        )
        binary.weight, binary.bias = layer.weight, layer.bias
        return binary.train(layer.training)

    def accumulate(self, x: Tensor, signs: Tensor) -> Tensor:
        """`float[N, C, H, W]` to integers `float[N, O, OH, OW]`; zero padding."""
        return convolve(self, x, signs)


class BinaryLinear(_BinaryLayer, nn.Linear):
    """A `torch.nn.Linear` with 1-bit weights; give it +-1 activations.

    Args:
        *args: as for `torch.nn.Linear`.
        binarizer: how the weight becomes 1-bit; `ScaledSign` if not given.
        **kwargs: as for `torch.nn.Linear`.

    >>> BinaryLinear(16, 4)(torch.ones(2, 16)).shape
    torch.Size([2, 4])
    """

    def __init__(self, *args: Any, binarizer: WeightBinarizer | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.binarizer = binarizer or ScaledSign()

    @classmethod
    def from_float(cls, layer: nn.Linear, binarizer: WeightBinarizer) -> Self:
        """Take over a float layer: the same parameter objects under the same names."""
        binary = cls(layer.in_features, layer.out_features, bias=False, device="meta", binarizer=binarizer)
        binary.weight, binary.bias = layer.weight, layer.bias
        return binary.train(layer.training)

    def accumulate(self, x: Tensor, signs: Tensor) -> Tensor:
        """`float[..., C]` to integers `float[..., O]`."""
        return F.linear(x, signs)


BINARY_LAYERS: dict[type[nn.Module], type[BinaryConv2d] | type[BinaryLinear]] = {
    nn.Conv2d: BinaryConv2d,
    nn.Linear: BinaryLinear,
}
"""Which float layer becomes which binary layer."""
