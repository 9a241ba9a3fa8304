"""`pack`: compare a float map with a threshold and store the outcome as bits, channels last; from both layouts."""

import torch
from torch import Tensor

from bnnfx.numerics.bits import pack_bits, row_bytes
from bnnfx.ops import signatures
from bnnfx.ops.checks import require
from bnnfx.ops.packed_op import define


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _check(op: str, axes: str, x: Tensor, threshold: Tensor) -> None:
    require(x.ndim == 4 and x.is_floating_point(), op, f"x is float[{axes}]", x=x)
    sizes = zip(threshold.shape[::-1], x.shape[::-1], strict=False)
    fits = threshold.ndim <= x.ndim and all(t in (1, n) for t, n in sizes)
    require(fits, op, "threshold broadcasts to the shape of x", x=x, threshold=threshold)


def _bits(channels_last: Tensor) -> Tensor:
    return torch.from_numpy(pack_bits(channels_last.cpu().numpy())).to(channels_last.device)


def _rows(x: Tensor, batch: int, height: int, width: int, channels: int) -> Tensor:
    return x.new_empty((batch, height, width, row_bytes(int(channels))), dtype=torch.uint8)


def _pack(x: Tensor, threshold: Tensor) -> Tensor:
    _check("pack", "N, C, H, W", x, threshold)
    return _bits(_nhwc(x >= threshold))


def _pack_shape(x: Tensor, threshold: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return _rows(x, batch, height, width, channels)


def _pack_nhwc(x: Tensor, threshold: Tensor) -> Tensor:
    _check("pack_nhwc", "N, H, W, C", x, threshold)
    return _bits((x >= threshold).contiguous())


def _pack_nhwc_shape(x: Tensor, threshold: Tensor) -> Tensor:
    return _rows(x, *x.shape)


PACK = define(signatures.PACK, _pack, _pack_shape, compared=lambda x, threshold: _nhwc(x - threshold))
"""`pack(x, threshold)`: `float[N, C, H, W]` and a threshold that broadcasts to it, to `uint8[N, H, W, row_bytes(C)]`.

Bit 1 where `x >= threshold`; NaN gives 0.
"""

PACK_NHWC = define(signatures.PACK_NHWC, _pack_nhwc, _pack_nhwc_shape, compared=lambda x, threshold: x - threshold)
"""`pack_nhwc(x, threshold)`: the same of `float[N, H, W, C]` and a threshold that broadcasts to that."""
