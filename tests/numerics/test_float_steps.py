"""The float steps behind an accumulator: each result is rounded, and special values keep their meaning."""

import math

import numpy as np
import pytest

from bnnfx.numerics import float_steps

NAN, INF = math.nan, math.inf


def floats(*values: float) -> float_steps.Floats:
    return np.array(values, np.float32)


def assert_bits(given: float_steps.Floats, wanted: float_steps.Floats) -> None:
    """Equal with the signs of zeros; any NaN for a NaN."""
    assert given.dtype == wanted.dtype == np.float32 and given.shape == wanted.shape
    assert [(x, math.copysign(1, x)) if x == x else "NaN" for x in given.ravel().tolist()] == [
        (x, math.copysign(1, x)) if x == x else "NaN" for x in wanted.ravel().tolist()
    ]


def test_scale_rounds_after_the_product_and_after_the_sum() -> None:
    """`3 * (1/3) - 1` is 0 with both roundings, and 2**-25 / 3 or so with one: float32(1/3) is too large."""
    third = floats(1 / 3)
    assert float(np.float64(third[0]) * 3 - 1) != 0
    result = float_steps.scale(np.array([[3], [-3]], np.int32), third, floats(-1))
    assert_bits(result, floats(0, -2).reshape(2, 1))


def test_scale_has_a_value_per_channel_or_one_for_all() -> None:
    z = np.array([[1, -2, 3], [0, 5, -7]], np.int32)
    assert_bits(
        float_steps.scale(z, floats(2, 3, -1), floats(0.5)), floats(2.5, -5.5, -2.5, 0.5, 15.5, 7.5).reshape(2, 3)
    )


def test_scale_of_large_accumulators_is_of_their_float32() -> None:
    """2**24 + 1 has no float32: it is rounded before it is multiplied, to the even neighbor."""
    assert_bits(float_steps.scale(np.array([2**24 + 1], np.int32), floats(1), floats(0)), floats(2**24))


@pytest.mark.parametrize(
    ("x", "low", "high", "expected"),
    [
        (-1.0, 0.0, 6.0, 0.0),
        (7.0, 0.0, 6.0, 6.0),
        (0.5, 0.0, 6.0, 0.5),
        (-0.0, 0.0, 6.0, -0.0),
        (0.0, -0.0, 6.0, 0.0),
        (-3.0, -0.0, 6.0, -0.0),
        (NAN, 0.0, 6.0, NAN),
        (INF, 0.0, INF, INF),
        (-INF, -INF, 1.0, -INF),
        (INF, -1.0, 1.0, 1.0),
        (6.0, 0.0, 6.0, 6.0),
    ],
)
def test_clamp(x: float, low: float, high: float, expected: float) -> None:
    assert_bits(float_steps.clamp(floats(x), floats(low), floats(high)), floats(expected))


@pytest.mark.parametrize(
    ("x", "slope", "expected"),
    [
        (2.0, 0.25, 2.0),
        (-2.0, 0.25, -0.5),
        (-2.0, -1.0, 2.0),
        (-2.0, 0.0, -0.0),
        (0.0, -1.0, -0.0),
        (-0.0, 0.25, -0.0),
        (-0.0, -0.25, 0.0),
        (NAN, 0.25, NAN),
        (-INF, 0.0, NAN),
        (INF, 0.0, INF),
        (-1.0, 1 / 3, -1 / 3),
    ],
)
def test_prelu(x: float, slope: float, expected: float) -> None:
    assert_bits(float_steps.prelu(floats(x), floats(slope)), floats(expected))


def test_prelu_and_clamp_have_a_value_per_channel() -> None:
    x = floats(-4, -4, 4, 4).reshape(2, 2)
    assert_bits(float_steps.prelu(x, floats(0.5, 2)), floats(-2, -8, 4, 4).reshape(2, 2))
    assert_bits(float_steps.clamp(x, floats(-1, -2), floats(1, 2)), floats(-1, -2, 1, 2).reshape(2, 2))


def test_the_comparison_of_bits_can_fail() -> None:
    assert_bits(floats(NAN, -0.0), floats(-NAN, -0.0))
    for wrong in (floats(NAN, 0.0), floats(0.0, -0.0), floats(NAN, -1e-45), floats(NAN)):
        with pytest.raises(AssertionError):
            assert_bits(wrong, floats(NAN, -0.0))
