"""Convolution of packed activations, +-1 or {0, 1}, with packed +-1 weights: exact integers by popcount.

The arithmetic for activations +-1, in numbered steps:

1. For vectors of n values +-1 held as bits, `x . w = n - 2 * popcount(x xor w)`. Tail bits that are 0 in both operands
   add nothing, so `n` stays the true length.
2. The trained network pads with the value 0, which is neither +1 nor -1. A window that hangs over the border is
   computed as if the padding held bit 0, that is the value -1.
3. Each padded tap then contributed `-w` per channel where it should contribute 0, so the sum of the weights under the
   padded taps is added back (`border_correction`). It depends on weights and geometry only and is 0 in the interior.

And for activations {0, 1}: a bit that is set adds +1 or -1, the others add nothing, so
`x . w = 2 * popcount(x and w) - popcount(x)`. Neither tail bits nor padding, which are 0 bits, need a correction.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bnnfx.numerics.bits import as_words, pack_bits, unpack_bits

_CHUNK_WORDS = 1 << 22  # words of temporary storage per step: bounds memory, changes no result


@dataclass(frozen=True)
class Geometry:
    """Stride, zero padding and dilation of a 2-D window, each as (rows, columns)."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output_size(self, height: int, width: int, kernel: tuple[int, int], ceil_mode: bool = False) -> tuple[int, int]:
        """Rows and columns of the output map; `ceil_mode` as in torch's pooling (no window starts in the padding).

        >>> Geometry(stride=(2, 2), padding=(1, 1)).output_size(7, 6, (3, 3))
        (4, 3)
        """
        sizes = []
        for size, k, s, p, d in zip((height, width), kernel, self.stride, self.padding, self.dilation, strict=True):
            room = size + 2 * p - d * (k - 1) - 1
            count = (-(-room // s) if ceil_mode else room // s) + 1
            if ceil_mode and (count - 1) * s >= size + p:
                count -= 1
            if count < 1:
                raise ValueError(f"a window of {kernel} does not fit into a map of {(height, width)} with {self}")
            sizes.append(count)
        return sizes[0], sizes[1]


def valid_taps(geometry: Geometry, size: tuple[int, int], kernel: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which taps of each window lie inside the map: `bool[OH, OW, kh, kw]`."""
    out = geometry.output_size(*size, kernel)
    inside = []
    for axis in (0, 1):
        start = np.arange(out[axis])[:, None] * geometry.stride[axis] - geometry.padding[axis]
        position = start + np.arange(kernel[axis])[None, :] * geometry.dilation[axis]
        inside.append((position >= 0) & (position < size[axis]))
    return inside[0][:, None, :, None] & inside[1][None, :, None, :]


def border_correction(
    weight: npt.NDArray[np.uint8], channels: int, geometry: Geometry, size: tuple[int, int]
) -> npt.NDArray[np.int32]:
    """Sum of the +-1 weights under the padded taps of every window.

    Args:
        weight: packed weights `uint8[O, kh, kw, row_bytes(channels)]`.
        channels: input channels of one filter.
        geometry: stride, padding, dilation.
        size: rows and columns of the input map.

    Returns:
        `int32[OH, OW, O]`, zero where no tap is padded.
    """
    tap_sums = 2 * np.bitwise_count(weight).sum(axis=-1, dtype=np.int32) - channels  # [O, kh, kw]
    padded = ~valid_taps(geometry, size, (weight.shape[1], weight.shape[2]))
    correction: npt.NDArray[np.int32] = np.einsum("yxij,oij->yxo", padded.astype(np.int32), tap_sums)
    return correction


def binary_conv2d(
    x: npt.NDArray[np.uint8],
    weight: npt.NDArray[np.uint8],
    channels: int,
    geometry: Geometry,
    groups: int = 1,
    low: int = -1,
) -> npt.NDArray[np.int32]:
    """Accumulators of a 2-D convolution of two-valued activations with +-1 weights, zero padding included exactly.

    Args:
        x: packed activations `uint8[N, H, W, row_bytes(channels)]`.
        weight: packed weights `uint8[O, kh, kw, row_bytes(channels // groups)]`.
        channels: input channels of the whole layer.
        geometry: stride, padding, dilation.
        groups: as in `torch.nn.Conv2d`.
        low: the value of an activation whose bit is 0, -1 or 0; that of the others is 1.

    Returns:
        `int32[N, OH, OW, O]`.
    """
    if groups == 1:
        return _accumulate(x, weight, channels, geometry, low)
    rows = channels // groups
    per_group = pack_bits(unpack_bits(x, channels).reshape(*x.shape[:-1], groups, rows))
    filters = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    parts = [_accumulate(per_group[..., g, :], filters[g], rows, geometry, low) for g in range(groups)]
    return np.concatenate(parts, axis=-1)


def _accumulate(
    x: npt.NDArray[np.uint8], weight: npt.NDArray[np.uint8], channels: int, geometry: Geometry, low: int
) -> npt.NDArray[np.int32]:
    batch, height, width = x.shape[:3]
    out_channels, kernel = weight.shape[0], (weight.shape[1], weight.shape[2])
    rows, columns = geometry.output_size(height, width, kernel)
    taps = as_words(weight)
    (ph, pw), (sh, sw), (dh, dw) = geometry.padding, geometry.stride, geometry.dilation
    out = np.empty((batch, rows, columns, out_channels), np.int32)
    step = max(1, _CHUNK_WORDS // max(1, rows * columns * out_channels))
    for start in range(0, batch, step):
        padded = as_words(np.pad(x[start : start + step], [(0, 0), (ph, ph), (pw, pw), (0, 0)]))
        both = np.zeros((padded.shape[0], rows, columns, out_channels), np.int32)
        alone = np.zeros((*both.shape[:3], 1), np.int32)
        words = np.empty(both.shape, np.uint64)
        for i, j, word in np.ndindex(*kernel, taps.shape[-1]):  # of one word at a time: sums along short axes are slow
            window = padded[:, i * dh :: sh, j * dw :: sw][:, :rows, :columns, word, None]
            if low == 0:
                both += np.bitwise_count(np.bitwise_and(window, taps[:, i, j, word], out=words))
                alone += np.bitwise_count(window)
            else:
                both += np.bitwise_count(np.bitwise_xor(window, taps[:, i, j, word], out=words))
        out[start : start + step] = 2 * both - alone if low == 0 else channels * kernel[0] * kernel[1] - 2 * both
    if low != 0 and geometry.padding != (0, 0):
        out += border_correction(weight, channels, geometry, (height, width))
    return out
