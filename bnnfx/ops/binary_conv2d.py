"""`binary_conv2d`: packed bits to a float map in the layout of the trainable graph, before anything is fused."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bnnfx.ops import signatures
from bnnfx.ops.checks import require_convolution
from bnnfx.ops.epilogue import Epilogue
from bnnfx.ops.packed_op import define
from bnnfx.ops.window import accumulators, geometry, output_size


def _reference(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    channels: int,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    low: int,
    copies: int,
) -> Tensor:
    constants = {"scale": (scale, torch.float32), "bias": (bias, torch.float32)}
    require_convolution("binary_conv2d", x, weight, channels, groups, low, constants, copies=copies)
    integers = accumulators(x, weight, channels, geometry(strides, pads, dilations), groups, low, copies=copies)
    stream = Epilogue().apply(np, integers.astype(np.float32), scale.cpu().numpy(), bias.cpu().numpy())
    return torch.from_numpy(np.ascontiguousarray(stream.transpose(0, 3, 1, 2))).to(x.device)


def _shape(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    channels: int,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    low: int,
    copies: int,
) -> Tensor:
    rows, columns = output_size(x, weight, strides, pads, dilations)
    return x.new_empty((x.shape[0], copies * weight.shape[0], rows, columns), dtype=torch.float32)


BINARY_CONV2D = define(signatures.BINARY_CONV2D, _reference, _shape)
"""`binary_conv2d(x, weight, scale, bias, channels, strides, pads, dilations, groups, low, copies)`.

`uint8[N, H, W, row_bytes(channels)]` and `uint8[O, kh, kw, row_bytes(channels / groups)]` to
`float32[N, P, OH, OW] = float32(accumulator) * scale[P] + bias[P]`, rounded after the product and after the sum, with
P = copies * O: copies of the O accumulators side by side. A 1 bit of x is +1, a 0 bit is `low`, -1 or 0; padding adds
nothing. A linear layer is the convolution of a map of size 1x1.

`lower` puts it in the place of a binary layer, folds what it can into integers, and leaves none: see `fused_conv2d`.
"""
