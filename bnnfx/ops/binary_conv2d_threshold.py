"""`binary_conv2d_threshold`: packed bits to packed bits; no float number occurs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bnnfx.numerics.bits import pack_bits, row_bytes
from bnnfx.ops import signatures
from bnnfx.ops.checks import require, require_convolution
from bnnfx.ops.packed_op import PackedOp, define
from bnnfx.ops.window import accumulators, geometry, output_size


def _reference(name: str, copies: int) -> Callable[..., Tensor]:
    def reference(
        x: Tensor,
        weight: Tensor,
        threshold: Tensor,
        flip: Tensor,
        channels: int,
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int],
        groups: int,
        low: int,
    ) -> Tensor:
        per_output = {"threshold": (threshold, torch.int32)}
        require_convolution(name, x, weight, channels, groups, low, per_output, copies=copies)
        row = row_bytes(copies * weight.shape[0])
        require(flip.dtype == torch.uint8 and flip.shape == (row,), name, f"flip is uint8[{row}]", flip=flip)
        integers = accumulators(x, weight, channels, geometry(strides, pads, dilations), groups, low, copies=copies)
        bits = pack_bits(integers >= threshold.cpu().numpy()) ^ flip.cpu().numpy()
        return torch.from_numpy(bits).to(x.device)

    return reference


def _shape(copies: int) -> Callable[..., Tensor]:
    def shape(
        x: Tensor,
        weight: Tensor,
        threshold: Tensor,
        flip: Tensor,
        channels: int,
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int],
        groups: int,
        low: int,
    ) -> Tensor:
        rows, columns = output_size(x, weight, strides, pads, dilations)
        return x.new_empty((x.shape[0], rows, columns, row_bytes(copies * int(weight.shape[0]))), dtype=torch.uint8)

    return shape


BINARY_CONV2D_THRESHOLD: dict[int, PackedOp] = {
    copies: define(signature, _reference(signature.name, copies), _shape(copies))
    for copies, signature in signatures.BINARY_CONV2D_THRESHOLD.items()
}
"""`binary_conv2d_threshold(x, weight, threshold, flip, channels, strides, pads, dilations, groups, low)`.

By the number of copies of the accumulators: P = O, or with `binary_conv2d_twice_threshold` 2 * O, where each
accumulator is compared with two thresholds.

`uint8[N, H, W, row_bytes(channels)]` and `uint8[O, kh, kw, row_bytes(channels / groups)]` to
`uint8[N, OH, OW, row_bytes(P)]`: bit `(accumulator >= threshold[P]) xor flip`, with `threshold` int32 and `flip` one
packed row, `uint8[row_bytes(P)]`, whose tail bits are 0. A 0 bit of x is `low`, -1 or 0.
"""
