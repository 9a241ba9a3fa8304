"""The packed layout: bit 1 means +1, channels last, little-endian, rows padded with 0 bits to whole 64-bit words.

A 0 bit means -1, or 0 where activations are {0, 1}; the convolution that reads it says which.
"""

import numpy as np
import numpy.typing as npt

WORD_BITS = 64
WORD_BYTES = WORD_BITS // 8


def row_bytes(channels: int) -> int:
    """Bytes that hold one row of `channels` bits, `8 * ceil(channels / 64)`.

    >>> [row_bytes(c) for c in (1, 64, 65)]
    [8, 8, 16]
    """
    return WORD_BYTES * -(-channels // WORD_BITS)


def pack_bits(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Pack the last axis: `bool[..., C]` to `uint8[..., row_bytes(C)]`, tail bits 0.

    >>> pack_bits(np.array([True, False, False, True]))
    array([9, 0, 0, 0, 0, 0, 0, 0], dtype=uint8)
    """
    packed = np.packbits(bits, axis=-1, bitorder="little")
    tail = row_bytes(bits.shape[-1]) - packed.shape[-1]
    return np.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, tail)])


def unpack_bits(packed: npt.NDArray[np.uint8], channels: int) -> npt.NDArray[np.bool_]:
    """Inverse of `pack_bits`: `uint8[..., row_bytes(channels)]` to `bool[..., channels]`."""
    return np.unpackbits(packed, axis=-1, count=channels, bitorder="little").view(np.bool_)


def as_words(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """View packed rows `uint8[..., 8 * W]` as 64-bit words `uint64[..., W]`; popcount does not mind their order."""
    return np.ascontiguousarray(packed).view(np.uint64)
