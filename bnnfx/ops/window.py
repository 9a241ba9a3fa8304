"""What the windowed operators share: attributes to `Geometry`, and tensors to accumulators."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bnnfx.numerics.convolution import Geometry, binary_conv2d


def geometry(strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]) -> Geometry:
    """Attributes as the operators take them, pairs of (rows, columns), to a `Geometry`."""
    if not len(strides) == len(pads) == len(dilations) == 2:
        raise ValueError(f"strides, pads and dilations are pairs (rows, columns); got {strides}, {pads}, {dilations}")
    return Geometry((strides[0], strides[1]), (pads[0], pads[1]), (dilations[0], dilations[1]))


def accumulators(
    x: Tensor, weight: Tensor, channels: int, window: Geometry, groups: int, low: int, *, copies: int = 1
) -> npt.NDArray[np.int32]:
    """Integers of a packed convolution, `int32[N, OH, OW, copies * O]`, from tensors on any device."""
    integers = binary_conv2d(x.cpu().numpy(), weight.cpu().numpy(), channels, window, groups, low)
    return np.concatenate([integers] * copies, axis=-1)


def output_size(
    x: Tensor, weight: Tensor, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> tuple[int, int]:
    """Rows and columns that a convolution of packed `x` gives."""
    return geometry(strides, pads, dilations).output_size(
        int(x.shape[1]), int(x.shape[2]), (int(weight.shape[1]), int(weight.shape[2]))
    )
