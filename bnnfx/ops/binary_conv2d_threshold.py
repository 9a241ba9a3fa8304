"""`binary_conv2d_threshold`: packed bits to packed bits; no float number occurs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bnnfx.numerics.bits import pack_bits, row_bytes
from bnnfx.ops.checks import require, require_convolution
from bnnfx.ops.registry import define
from bnnfx.ops.window import accumulators, geometry, output_size


def _reference(
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    flip: Tensor,
    channels: int,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> Tensor:
    require_convolution("binary_conv2d_threshold", x, weight, channels, groups, {"threshold": (threshold, torch.int32)})
    row = row_bytes(weight.shape[0])
    rule = f"flip is uint8[{row}]"
    require(flip.dtype == torch.uint8 and flip.shape == (row,), "binary_conv2d_threshold", rule, flip=flip)
    integers = accumulators(x, weight, channels, geometry(strides, pads, dilations), groups)
    bits = pack_bits(integers >= threshold.cpu().numpy()) ^ flip.cpu().numpy()
    return torch.from_numpy(bits).to(x.device)


def _shape(
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    flip: Tensor,
    channels: int,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> Tensor:
    rows, columns = output_size(x, weight, strides, pads, dilations)
    return x.new_empty((x.shape[0], rows, columns, row_bytes(int(weight.shape[0]))), dtype=torch.uint8)


BINARY_CONV2D_THRESHOLD = define(
    "binary_conv2d_threshold", "BinaryConv2dThreshold", _reference, _shape, outputs=("bits",), bits_in=True
)
"""`binary_conv2d_threshold(x, weight, threshold, flip, channels, strides, pads, dilations, groups)`.

`uint8[N, H, W, row_bytes(channels)]` and `uint8[O, kh, kw, row_bytes(channels / groups)]` to
`uint8[N, OH, OW, row_bytes(O)]`: bit `(accumulator >= threshold[O]) xor flip`, with `threshold` int32 and `flip` one
packed row, `uint8[row_bytes(O)]`, whose tail bits are 0.
"""
