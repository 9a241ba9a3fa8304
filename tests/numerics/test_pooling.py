"""OR and AND of bits against torch's max-pooling of +-1 numbers."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bnnfx.numerics.bits import pack_bits, row_bytes, unpack_bits
from bnnfx.numerics.convolution import Geometry
from bnnfx.numerics.pooling import max_pool2d


def random_bits(shape, seed, share=0.5):
    return np.random.default_rng(seed).random(shape) < share


def float_pool(bits, kernel, geometry, ceil_mode):
    """Largest and smallest +-1 number of each window, as bits `[N, OH, OW, C]`, by torch."""
    x = torch.from_numpy(np.moveaxis(np.where(bits, 1.0, -1.0), -1, 1))
    largest, smallest = (
        sign * F.max_pool2d(sign * x, kernel, geometry.stride, geometry.padding, geometry.dilation, ceil_mode)
        for sign in (1, -1)
    )
    return tuple((pooled > 0).permute(0, 2, 3, 1).numpy() for pooled in (largest, smallest))


@st.composite
def cases(draw):
    """Shape of x, kernel, geometry; padding as torch allows it, and the first window fits."""
    kernel, stride, dilation = (
        (draw(numbers), draw(numbers)) for numbers in (st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
    )
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    fits = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = [draw(st.integers(least, least + 6)) for least in fits]
    channels = draw(st.sampled_from([1, 63, 64, 65]))
    return (draw(st.integers(0, 2)), *size, channels), kernel, Geometry(stride, padding, dilation)


BEYOND_THE_PADDING = ((1, 6, 6, 5), (3, 3), Geometry((2, 2), (0, 0)))  # the last window of ceil_mode hangs over
DROPPED_WINDOW = ((1, 3, 4, 5), (2, 2), Geometry((4, 3), (1, 1)))  # ... and here it would start in the padding
ONLY_PADDING = ((1, 3, 3, 5), (2, 2), Geometry((1, 1), (1, 1), (3, 3)))  # dilated past the map on both sides


@given(case=cases(), ceil_mode=st.booleans(), share=st.sampled_from([0.1, 0.5, 0.9]), seed=st.integers(0, 2**32 - 1))
@example(case=BEYOND_THE_PADDING, ceil_mode=True, share=0.1, seed=0)
@example(case=DROPPED_WINDOW, ceil_mode=True, share=0.5, seed=0)
@example(case=ONLY_PADDING, ceil_mode=True, share=0.5, seed=0)
@settings(max_examples=200, deadline=None)
def test_or_is_max_and_and_is_min(case, ceil_mode, share, seed):
    shape, kernel, geometry = case
    bits, takes_and = random_bits(shape, seed, share), random_bits(shape[-1:], seed + 1)
    largest, smallest = float_pool(bits, kernel, geometry, ceil_mode)
    result = max_pool2d(pack_bits(bits), pack_bits(takes_and), kernel, geometry, ceil_mode)
    assert result.shape == (*largest.shape[:3], row_bytes(shape[-1]))
    assert np.array_equal(unpack_bits(result, shape[-1]), np.where(takes_and, smallest, largest))
    assert np.array_equal(result, pack_bits(unpack_bits(result, shape[-1])))  # the tail stays 0


@given(case=cases(), ceil_mode=st.booleans())
@example(case=DROPPED_WINDOW, ceil_mode=True)
@settings(max_examples=200, deadline=None)
def test_output_size_is_that_of_torch(case, ceil_mode):
    (_, height, width, _), kernel, geometry = case
    x = torch.empty(1, 1, height, width, device="meta")
    pooled = F.max_pool2d(x, kernel, geometry.stride, geometry.padding, geometry.dilation, ceil_mode)
    assert geometry.output_size(height, width, kernel, ceil_mode) == tuple(pooled.shape[2:])


def test_window_larger_than_the_map():
    """Of torch's pooling only that of ceil_mode takes it, if the stride reaches past the end."""
    geometry, size = Geometry((2, 2)), (1, 4)
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(1, 4\)"):
        geometry.output_size(*size, (2, 2))
    assert geometry.output_size(*size, (2, 2), ceil_mode=True) == (1, 2)
    bits = random_bits((1, *size, 3), seed=0)
    largest, _ = float_pool(bits, (2, 2), geometry, ceil_mode=True)
    result = max_pool2d(pack_bits(bits), pack_bits(np.zeros(3, np.bool_)), (2, 2), geometry, ceil_mode=True)
    assert np.array_equal(unpack_bits(result, 3), largest)


def test_some_sizes_depend_on_ceil_mode():
    geometry = Geometry((2, 2))
    assert geometry.output_size(6, 6, (3, 3), ceil_mode=True) == (3, 3)
    assert geometry.output_size(6, 6, (3, 3), ceil_mode=False) == (2, 2)


@pytest.mark.parametrize("bit", [True, False])
def test_padding_never_decides(bit):
    """A map of one value pools to that value, whichever of OR and AND is taken."""
    bits = np.full((1, 4, 4, 2), bit)
    takes_and = pack_bits(np.array([False, True]))
    result = max_pool2d(pack_bits(bits), takes_and, (3, 3), Geometry((2, 2), (1, 1)), ceil_mode=True)
    assert np.array_equal(unpack_bits(result, 2), np.full((1, *result.shape[1:3], 2), bit))


def test_input_is_left_alone():
    x = pack_bits(random_bits((1, 4, 4, 9), seed=2))
    before = x.copy()
    result = max_pool2d(x, pack_bits(np.ones(9, np.bool_)), (1, 1), Geometry())
    assert np.array_equal(x, before)
    assert not np.shares_memory(result, x)
