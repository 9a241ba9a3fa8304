"""Integer thresholds: the table of a float expression, against the closed form and against the table itself."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bnnfx.numerics.thresholds import accumulator_values, from_table, selected_sums


def apply(rule, values):
    """Bits that an integer threshold gives, `bool[V, O]`."""
    return (values[:, None] >= rule.threshold) ^ rule.flip


def closed_form(values, slope, offset, tau):
    """Section 1.4 of the derivation: `slope * z + offset >= tau` per channel, decided in rational numbers."""
    columns = []
    for a, c in zip(map(Fraction, slope.tolist()), map(Fraction, offset.tolist()), strict=True):
        if a > 0:
            columns.append(values >= math.ceil((Fraction(tau) - c) / a))
        elif a < 0:
            columns.append(values <= math.floor((Fraction(tau) - c) / a))
        else:
            columns.append(np.full(values.shape, c >= tau))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("zero_padded", [False, True])
@pytest.mark.parametrize("tau", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_closed_form_of_batch_norm(seed, tau, zero_padded):
    channels, fan_in = 60, 27
    random = np.random.default_rng(seed)
    gamma, scale = random.normal(size=channels), random.uniform(0.01, 0.3, channels)
    gamma[:6] = 0
    mean, beta = random.normal(scale=2, size=channels), random.normal(size=channels)
    deviation = np.sqrt(random.uniform(0.1, 4, channels) + 1e-5)

    values = accumulator_values(fan_in, zero_padded)
    bits = gamma * (scale * values[:, None] - mean) / deviation + beta >= tau
    rule = from_table(values, bits)
    assert rule is not None
    assert (rule.threshold.dtype, rule.flip.dtype) == (np.int32, np.bool_)
    assert np.array_equal(apply(rule, values), bits)

    expected = closed_form(values, gamma * scale / deviation, beta - gamma * mean / deviation, tau)
    assert np.array_equal(bits, expected)
    varies = bits.any(axis=0) & ~bits.all(axis=0)
    for sign in (gamma > 0, gamma < 0):
        assert (varies & sign).sum() > 5
    assert np.array_equal(rule.flip[varies], gamma[varies] < 0)
    assert not varies[:6].any()  # gamma = 0


@pytest.mark.parametrize("zero_padded", [False, True])
def test_values_exactly_on_the_threshold(zero_padded):
    """Slopes and offsets in eighths, so that float64 is exact and many thresholds are reached exactly."""
    pairs = np.array(list(itertools.product(range(-16, 17), repeat=2)))
    slope, offset = pairs[:, 0] / 8, pairs[:, 1] / 8
    values = accumulator_values(9, zero_padded)
    results = slope * values[:, None] + offset
    on_threshold = (results == 0.5).any(axis=0)
    assert (on_threshold & (slope > 0)).sum() > 40
    assert (on_threshold & (slope < 0)).sum() > 40
    assert (on_threshold & (slope == 0)).sum() > 0
    rule = from_table(values, results >= 0.5)
    assert rule is not None
    assert np.array_equal(apply(rule, values), results >= 0.5)
    assert np.array_equal(apply(rule, values), closed_form(values, slope, offset, 0.5))


def test_float32_expression_counts_not_the_real_numbers():
    """0.1f * 3 rounds up in float32: the model finds 0 >= 0 where real numbers are below."""
    values = accumulator_values(9, zero_padded=True)
    slope = np.full(1, 0.1, np.float32)
    offset = -(slope * np.float32(3))
    bits = values[:, None].astype(np.float32) * slope + offset >= 0
    rule = from_table(values, bits)
    assert rule is not None
    assert rule.threshold.tolist() == [3]
    assert values[(bits != closed_form(values, slope, offset, 0))[:, 0]].tolist() == [3]


@given(
    bits=hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 5))),
    zero_padded=st.booleans(),
)
@example(bits=np.array([[True], [False], [True]]), zero_padded=False)
@example(bits=np.array([[False], [True], [False]]), zero_padded=True)
@settings(max_examples=300, deadline=None)
def test_table_is_reproduced_or_refused(bits, zero_padded):
    step = 1 if zero_padded else 2
    values = (np.arange(len(bits)) * step - len(bits) + 1).astype(np.int32)
    changes = (bits[1:] != bits[:-1]).sum(axis=0)
    rule = from_table(values, bits)
    assert (rule is None) == bool((changes > 1).any())
    if rule is not None:
        assert np.array_equal(apply(rule, values), bits)


@given(
    starts=hnp.arrays(np.bool_, 4),
    at=st.tuples(*[st.integers(0, 12)] * 4),
    zero_padded=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_one_change_per_channel_is_never_refused(starts, at, zero_padded):
    values = accumulator_values(6 if zero_padded else 12, zero_padded)
    bits = starts ^ (np.arange(len(values))[:, None] >= np.array(at))
    rule = from_table(values, bits)
    assert rule is not None
    assert np.array_equal(apply(rule, values), bits)


@pytest.mark.parametrize("bit", [True, False])
def test_constant_bit_needs_no_flip(bit):
    values = accumulator_values(4, zero_padded=False)
    rule = from_table(values, np.full((5, 3), bit))
    assert rule is not None
    assert not rule.flip.any()
    assert np.array_equal(apply(rule, values), np.full((5, 3), bit))


def test_one_bad_channel_refuses_the_layer():
    good, bad = [False, True, True, True], [False, True, False, True]
    values = accumulator_values(3, zero_padded=False)
    assert from_table(values, np.array([good, good]).T) is not None
    assert from_table(values, np.array([good, bad]).T) is None


@pytest.mark.parametrize(("negative", "positive"), [*itertools.product(range(4), repeat=2)])
def test_selected_sums_are_exactly_the_reachable_ones(negative, positive):
    weights = [-1] * negative + [1] * positive
    chosen = itertools.product((0, 1), repeat=len(weights))
    reachable = sorted({sum(w for w, bit in zip(weights, bits, strict=True) if bit) for bits in chosen})
    values = selected_sums(negative, positive)
    assert values.dtype == np.int32
    assert values.tolist() == reachable


@pytest.mark.parametrize(("zero_padded", "factors"), [(False, (-1, 1)), (True, (-1, 0, 1))])
@pytest.mark.parametrize("fan_in", range(1, 8))
def test_values_are_exactly_the_reachable_sums(fan_in, zero_padded, factors):
    reachable = sorted({sum(terms) for terms in itertools.product(factors, repeat=fan_in)})
    values = accumulator_values(fan_in, zero_padded)
    assert values.dtype == np.int32
    assert values.tolist() == reachable
