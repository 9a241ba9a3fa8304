"""`pack`: compare a float map with a threshold and store the outcome as bits, channels last."""

import torch
from torch import Tensor

from bnnfx.numerics.bits import pack_bits, row_bytes
from bnnfx.ops.checks import require
from bnnfx.ops.registry import define


def _reference(x: Tensor, threshold: Tensor) -> Tensor:
    require(x.ndim == 4 and x.is_floating_point(), "pack", "x is float[N, C, H, W]", x=x)
    sizes = zip(threshold.shape[::-1], x.shape[::-1], strict=False)
    fits = threshold.ndim <= x.ndim and all(t in (1, n) for t, n in sizes)
    require(fits, "pack", "threshold broadcasts to the shape of x", x=x, threshold=threshold)
    bits = (x >= threshold).permute(0, 2, 3, 1).contiguous()
    return torch.from_numpy(pack_bits(bits.cpu().numpy())).to(x.device)


def _shape(x: Tensor, threshold: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty((batch, height, width, row_bytes(int(channels))), dtype=torch.uint8)


PACK = define("pack", "Pack", _reference, _shape, bits_in=False, bits_out=True)
"""`pack(x, threshold)`: `float[N, C, H, W]` and a threshold that broadcasts to it, to `uint8[N, H, W, row_bytes(C)]`.

Bit 1 where `x >= threshold`; NaN gives 0.
"""
