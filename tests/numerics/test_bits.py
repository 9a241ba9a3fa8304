"""The packed layout: what a wrong bit order, a dirty tail or a short row would change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from bnnfx.numerics.bits import WORD_BITS, as_words, pack_bits, row_bytes, unpack_bits

CHANNELS = (1, 7, 8, 63, 64, 65, 300)


def random_bits(shape, seed):
    return np.random.default_rng(seed).integers(0, 2, shape).astype(np.bool_)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("leading", [(), (5,), (2, 3, 4), (0,), (2, 0, 3)], ids=str)
def test_round_trip(channels, leading):
    bits = random_bits((*leading, channels), seed=channels)
    packed = pack_bits(bits)
    assert (packed.dtype, packed.shape) == (np.uint8, (*leading, row_bytes(channels)))
    unpacked = unpack_bits(packed, channels)
    assert (unpacked.dtype, unpacked.shape) == (np.bool_, bits.shape)
    assert np.array_equal(unpacked, bits)


@given(bits=hnp.arrays(np.bool_, hnp.array_shapes(min_dims=1, max_dims=3, max_side=140)))
@settings(max_examples=60, deadline=None)
def test_any_bits_round_trip(bits):
    assert np.array_equal(unpack_bits(pack_bits(bits), bits.shape[-1]), bits)


@pytest.mark.parametrize("channels", CHANNELS)
def test_bytes_are_those_of_little_endian_packbits(channels):
    bits = random_bits((4, channels), seed=channels)
    reference = np.packbits(bits, axis=-1, bitorder="little")
    assert np.array_equal(pack_bits(bits)[..., : reference.shape[-1]], reference)


@pytest.mark.parametrize("channels", CHANNELS)
def test_tail_bits_are_zero(channels):
    packed = pack_bits(np.ones((3, channels), np.bool_))
    assert np.bitwise_count(packed).sum() == 3 * channels  # a popcount sees the tail
    assert not unpack_bits(packed, 8 * row_bytes(channels))[:, channels:].any()


@pytest.mark.parametrize("channel", [0, 1, 7, 8, 63, 64, 299])
def test_channel_is_bit_of_byte_and_of_word(channel):
    packed = pack_bits(np.arange(300) == channel)
    assert packed[channel // 8] == 1 << channel % 8
    words = as_words(packed)
    assert words.shape == (5,)
    assert np.bitwise_count(words)[channel // WORD_BITS] == 1
    assert np.bitwise_count(words).sum() == 1


@pytest.mark.parametrize(("channels", "expected"), [(1, 8), (63, 8), (64, 8), (65, 16), (128, 16), (300, 40)])
def test_row_is_whole_words(channels, expected):
    assert row_bytes(channels) == expected


def test_strided_view_packs_like_its_copy():
    bits = random_bits((6, 130, 3), seed=0)
    view = bits.transpose(2, 0, 1)[:, ::2]
    assert not view.flags.c_contiguous
    assert np.array_equal(pack_bits(view), pack_bits(view.copy()))


def test_words_of_a_strided_view():
    packed = pack_bits(random_bits((4, 6, 65), seed=1))
    view = np.asfortranarray(packed)  # not even the bytes of a row are neighbours
    assert not view.flags.c_contiguous
    assert np.array_equal(np.bitwise_count(as_words(view)).sum(-1), np.bitwise_count(view).sum(-1))
