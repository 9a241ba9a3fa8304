"""`max_pool2d`: max-pooling of packed bits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bnnfx.numerics import pooling
from bnnfx.ops import signatures
from bnnfx.ops.checks import require
from bnnfx.ops.packed_op import define
from bnnfx.ops.window import geometry


def _reference(
    x: Tensor,
    and_mask: Tensor,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: int,
) -> Tensor:
    require(
        x.dtype == and_mask.dtype == torch.uint8 and x.ndim == 4 and and_mask.shape == x.shape[3:],
        "max_pool2d",
        "x is uint8[N, H, W, B] and and_mask is uint8[B]",
        x=x,
        and_mask=and_mask,
    )
    window = geometry(strides, pads, dilations)
    kernel = (kernel_shape[0], kernel_shape[1])
    pooled = pooling.max_pool2d(x.cpu().numpy(), and_mask.cpu().numpy(), kernel, window, bool(ceil_mode))
    return torch.from_numpy(pooled).to(x.device)


def _shape(
    x: Tensor,
    and_mask: Tensor,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: int,
) -> Tensor:
    window, kernel = geometry(strides, pads, dilations), (kernel_shape[0], kernel_shape[1])
    rows, columns = window.output_size(int(x.shape[1]), int(x.shape[2]), kernel, bool(ceil_mode))
    return x.new_empty((x.shape[0], rows, columns, x.shape[3]))


MAX_POOL2D = define(signatures.MAX_POOL2D, _reference, _shape)
"""`max_pool2d(x, and_mask, kernel_shape, strides, pads, dilations, ceil_mode)`.

`uint8[N, H, W, B]` to `uint8[N, OH, OW, B]`: OR of the bits of a window; AND where the packed row `and_mask`
`uint8[B]` has a 1, for channels whose bit falls as the pooled value grows. Padding adds no bit.
"""
