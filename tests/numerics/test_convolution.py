"""Popcounts against the convolution of numbers in float64, which is exact; the border correction apart."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bnnfx.numerics import convolution
from bnnfx.numerics.bits import as_words, pack_bits, row_bytes
from bnnfx.numerics.convolution import Geometry, binary_conv2d, border_correction, valid_taps


def random_bits(shape, seed):
    return np.random.default_rng(seed).integers(0, 2, shape).astype(np.bool_)


def as_float(bits, low=-1):
    """Channels-last bits to `low` and 1 in float64, channels second."""
    return torch.from_numpy(np.moveaxis(np.where(bits, 1.0, float(low)), -1, 1))


def float_conv2d(x, weight, geometry, groups=1):
    """The same convolution of numbers, to `float64[N, OH, OW, O]`; sums of +-1 are exact."""
    window = {"stride": geometry.stride, "padding": geometry.padding, "dilation": geometry.dilation}
    return F.conv2d(x, weight, groups=groups, **window).permute(0, 2, 3, 1).numpy()


def run_both(x_bits, weight_bits, geometry, groups=1, low=-1):
    result = binary_conv2d(pack_bits(x_bits), pack_bits(weight_bits), x_bits.shape[-1], geometry, groups, low)
    return result, float_conv2d(as_float(x_bits, low), as_float(weight_bits), geometry, groups)


@st.composite
def cases(draw):
    """Shape of x, shape of the weight, geometry, groups; every window fits into the padded map."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    rows = draw(st.sampled_from([1, 2, 63, 64, 65, 130]))
    kernel, stride, padding, dilation = (
        (draw(numbers), draw(numbers))
        for numbers in (st.integers(1, 4), st.integers(1, 3), st.integers(0, 4), st.integers(1, 3))
    )
    fits = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = [draw(st.integers(least, least + 5)) for least in fits]
    x_shape = (draw(st.integers(0, 2)), *size, rows * groups)
    weight_shape = (groups * draw(st.integers(1, 3)), *kernel, rows)
    return x_shape, weight_shape, Geometry(stride, padding, dilation), groups


POINT = ((1, 1, 1, 65), (2, 1, 1, 65), Geometry(), 1)
STRIDED_GROUPS = ((2, 5, 7, 130), (6, 3, 2, 65), Geometry((2, 1), (1, 2), (1, 2)), 2)
ALL_PADDING_CORNER = ((1, 1, 1, 3), (2, 2, 2, 3), Geometry((1, 1), (3, 3)), 1)
EMPTY_BATCH_IN_GROUPS = ((0, 4, 4, 6), (4, 3, 3, 3), Geometry((1, 1), (1, 1)), 2)


@given(case=cases(), seed=st.integers(0, 2**32 - 1), low=st.sampled_from([-1, 0]))
@example(case=POINT, seed=0, low=-1)
@example(case=STRIDED_GROUPS, seed=0, low=-1)
@example(case=STRIDED_GROUPS, seed=0, low=0)
@example(case=ALL_PADDING_CORNER, seed=0, low=-1)
@example(case=ALL_PADDING_CORNER, seed=0, low=0)
@example(case=EMPTY_BATCH_IN_GROUPS, seed=0, low=0)
@settings(max_examples=200, deadline=None)
def test_equals_float_convolution(case, seed, low):
    x_shape, weight_shape, geometry, groups = case
    result, expected = run_both(random_bits(x_shape, seed), random_bits(weight_shape, seed + 1), geometry, groups, low)
    assert result.dtype == np.int32
    assert result.shape == expected.shape
    assert np.array_equal(result, expected)


@pytest.mark.parametrize(("stride", "padding", "dilation"), [*itertools.product([1, 2, 3], [0, 1, 2, 3], [1, 2])])
def test_every_stride_padding_and_dilation(stride, padding, dilation):
    geometry = Geometry((stride, stride), (padding, padding), (dilation, dilation))
    result, expected = run_both(random_bits((2, 7, 6, 70), seed=3), random_bits((5, 3, 3, 70), seed=4), geometry)
    assert result.size > 0
    assert np.array_equal(result, expected)


@pytest.mark.parametrize(("kernel", "dilation"), [((6, 1), 1), ((1, 7), 1), ((3, 3), 3)])
def test_window_larger_than_the_map_is_an_error(kernel, dilation):
    x, weight = pack_bits(random_bits((1, 5, 6, 3), seed=0)), pack_bits(random_bits((2, *kernel, 3), seed=1))
    with pytest.raises(ValueError, match=r"does not fit into a map of \(5, 6\)"):
        binary_conv2d(x, weight, 3, Geometry(dilation=(dilation, dilation)))


@pytest.mark.parametrize("low", [-1, 0])
@pytest.mark.parametrize("channels", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("agree", [True, False])
def test_extreme_sums_do_not_wrap(channels, agree, low):
    x, weight = np.ones((1, 3, 3, channels), np.bool_), np.full((2, 3, 3, channels), agree)
    result, expected = run_both(x, weight, Geometry(), low=low)
    assert np.array_equal(result, np.full((1, 1, 1, 2), 9 * channels if agree else -9 * channels))
    assert np.array_equal(result, expected)


@given(case=cases(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_parity_and_range_follow_the_taps_inside(case, seed):
    x_shape, weight_shape, geometry, groups = case
    x, weight = pack_bits(random_bits(x_shape, seed)), pack_bits(random_bits(weight_shape, seed + 1))
    result = binary_conv2d(x, weight, x_shape[-1], geometry, groups)
    ones = (torch.ones(1, weight_shape[-1], *size, dtype=torch.float64) for size in (x_shape[1:3], weight_shape[1:3]))
    factors = float_conv2d(*ones, geometry)
    if geometry.padding == (0, 0):
        assert (factors == np.prod(weight_shape[1:])).all()  # parity is that of the fan-in everywhere
    assert np.all((result - factors) % 2 == 0)
    assert np.all(np.abs(result) <= factors)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 300])
def test_dot_product_by_xor_and_by_xnor(n):
    x, w = random_bits((50, n), seed=n), random_bits((50, n), seed=n + 1)
    dot = (np.where(x, 1, -1) * np.where(w, 1, -1)).sum(-1)
    x_words, w_words = as_words(pack_bits(x)), as_words(pack_bits(w))
    differ = np.bitwise_count(x_words ^ w_words).sum(-1, dtype=np.int64)
    assert np.array_equal(n - 2 * differ, dot)
    assert np.array_equal(2 * (~(x ^ w)).sum(-1) - n, dot)
    # the xnor form of whole words counts the tail as matches
    tail = 8 * row_bytes(n) - n
    assert np.array_equal(2 * np.bitwise_count(~(x_words ^ w_words)).sum(-1, dtype=np.int64) - n, dot + 2 * tail)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 300])
def test_dot_product_with_zeros_and_ones_by_and(n):
    """Of the true length without a mask: tail bits are 0, and add nothing."""
    x, w = random_bits((50, n), seed=n), random_bits((50, n), seed=n + 1)
    x_words, w_words = as_words(pack_bits(x)), as_words(pack_bits(w))
    both, ones = (np.bitwise_count(words).sum(-1, dtype=np.int64) for words in (x_words & w_words, x_words))
    assert np.array_equal(2 * both - ones, (x * np.where(w, 1, -1)).sum(-1))


@given(case=cases(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_sums_of_zeros_and_ones_stay_between_the_weights(case, seed):
    x_shape, weight_shape, geometry, groups = case
    weight = random_bits(weight_shape, seed + 1)
    result = binary_conv2d(
        pack_bits(random_bits(x_shape, seed)), pack_bits(weight), x_shape[-1], geometry, groups, low=0
    )
    positive = weight.sum((1, 2, 3))
    assert np.all(result <= positive)
    assert np.all(result >= positive - weight[0].size)


# --- zero padding ---


def naive_correction(weight_bits, geometry, size):
    """Sum of the +-1 weights under taps outside the map, window by window, tap by tap."""
    numbers = np.where(weight_bits, 1, -1)
    out_channels, rows, columns, _ = numbers.shape
    out = geometry.output_size(*size, (rows, columns))
    result = np.zeros((*out, out_channels), np.int64)
    for y, x, i, j in itertools.product(range(out[0]), range(out[1]), range(rows), range(columns)):
        row = y * geometry.stride[0] - geometry.padding[0] + i * geometry.dilation[0]
        column = x * geometry.stride[1] - geometry.padding[1] + j * geometry.dilation[1]
        if not (0 <= row < size[0] and 0 <= column < size[1]):
            result[y, x] += numbers[:, i, j].sum(-1)
    return result


@pytest.mark.parametrize(
    ("geometry", "size", "kernel"),
    [
        (Geometry((1, 1), (1, 1)), (5, 4), (3, 3)),
        (Geometry((2, 2), (1, 1)), (6, 7), (3, 3)),
        (Geometry((2, 1), (2, 0)), (5, 5), (3, 2)),
        (Geometry((1, 1), (0, 3)), (4, 2), (1, 4)),
        (Geometry((1, 2), (2, 2), (2, 2)), (3, 5), (3, 3)),
        (Geometry((1, 1), (2, 2)), (1, 1), (2, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 65])
def test_correction_is_the_sum_over_padded_taps(geometry, size, kernel, channels):
    weight = random_bits((3, *kernel, channels), seed=channels)
    result = border_correction(pack_bits(weight), channels, geometry, size)
    expected = naive_correction(weight, geometry, size)
    assert expected.any()
    assert np.array_equal(result, expected)


@pytest.mark.parametrize(("stride", "interior"), [((1, 1), np.s_[1:-1, 1:-1]), ((2, 2), np.s_[1:, 1:])])
def test_correction_is_zero_in_the_interior_only(stride, interior):
    geometry, weight = Geometry(stride, (1, 1)), np.ones((2, 3, 3, 3), np.bool_)
    result = border_correction(pack_bits(weight), 3, geometry, (6, 8))
    inside = np.zeros(result.shape, np.bool_)
    inside[interior] = True
    assert inside.any()
    assert np.array_equal(result == 0, inside)


def test_correction_without_padding_is_zero():
    weight = pack_bits(random_bits((2, 3, 3, 5), seed=0))
    assert not border_correction(weight, 5, Geometry(stride=(2, 2)), (6, 6)).any()


def test_border_is_wrong_without_the_correction(monkeypatch):
    monkeypatch.setattr(convolution, "border_correction", lambda *_: np.int32(0))
    weight, geometry = random_bits((4, 3, 3, 9), seed=6), Geometry((1, 1), (1, 1))
    result, expected = run_both(random_bits((2, 6, 5, 9), seed=5), weight, geometry)
    correction = naive_correction(weight, geometry, (6, 5))
    assert correction.any()
    assert np.array_equal(expected - result, np.broadcast_to(correction, result.shape))


def test_valid_taps_are_those_that_see_the_map():
    geometry, size, kernel = Geometry((2, 1), (1, 2), (1, 2)), (4, 5), (3, 2)
    taps = valid_taps(geometry, size, kernel)
    assert taps.shape == (*geometry.output_size(*size, kernel), *kernel)
    for i, j in itertools.product(*map(range, kernel)):
        one_tap = torch.zeros(1, 1, *kernel, dtype=torch.float64)
        one_tap[0, 0, i, j] = 1
        seen = float_conv2d(torch.ones(1, 1, *size, dtype=torch.float64), one_tap, geometry)
        assert np.array_equal(taps[:, :, i, j], seen[0, :, :, 0] == 1)


# --- memory ---


@pytest.mark.parametrize(("samples", "chunks"), [(0.5, 5), (1, 5), (2, 3), (9, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_chunks_change_no_result(monkeypatch, samples, chunks, groups):
    """A chunk may hold less than a sample, some samples with a rest, or more than there are."""
    x, geometry = random_bits((5, 5, 4, 260), seed=8), Geometry((1, 1), (1, 1))
    weight = random_bits((6 * groups, 3, 3, 260 // groups), seed=9)
    views = []

    def counted(packed):
        views.append(packed.shape[0])
        return as_words(packed)

    words_per_sample = 5 * 4 * 6
    monkeypatch.setattr(convolution, "_CHUNK_WORDS", int(samples * words_per_sample))
    monkeypatch.setattr(convolution, "as_words", counted)
    result, expected = run_both(x, weight, geometry, groups)
    assert len(views) == groups * (1 + chunks)  # in each group the weight, then each chunk
    assert np.array_equal(result, expected)
