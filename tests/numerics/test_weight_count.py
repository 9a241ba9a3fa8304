"""Counting weights as a function of widths, and the widths nearest to a budget, against brute force."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnnfx.numerics.weight_count import Affine, LayerWeights, WeightCount, fit_widths, scaled

GROUPS = 2


@st.composite
def networks(draw):
    """Layers between K widths, every width a multiple of its step; each side a sum of some widths and a constant."""
    k = draw(st.integers(1, 4))
    steps = np.array(draw(st.lists(st.integers(1, 2), min_size=k, max_size=k)), np.int64) * GROUPS
    widths = steps * np.array(draw(st.lists(st.integers(1, 9), min_size=k, max_size=k)), np.int64)
    side = st.builds(
        Affine,
        st.integers(0, 3).map(lambda n: n * GROUPS),
        st.dictionaries(st.integers(0, k - 1), st.integers(1, 3), max_size=k),
    )
    kernel = st.sampled_from([Fraction(1), Fraction(18), Fraction(9, GROUPS)])
    layers = draw(st.lists(st.builds(LayerWeights, kernel, side, side), min_size=1, max_size=5))
    free = draw(st.sets(st.integers(0, k - 1)))
    return layers, widths, steps, sorted(free)


def by_hand(layers, widths):
    def size(side):
        return side.constant + sum(coefficient * int(widths[i]) for i, coefficient in side.coefficients.items())

    return sum(layer.factor * size(layer.inputs) * size(layer.outputs) for layer in layers)


@given(networks())
def test_count_and_changes_are_exact(network):
    layers, widths, steps, _ = network
    count = WeightCount(layers, len(widths))
    assert count(widths) == by_hand(layers, widths)
    changes = count.changes(widths, steps)
    assert changes.shape == (len(widths), len(widths) + 1)
    for i in range(len(widths)):
        for j in range(len(widths) + 1):
            moved = widths.copy()
            if i != j:
                moved[i] += steps[i]
            if j < len(widths) and i != j:
                moved[j] -= steps[j]
            assert changes[i, j] == by_hand(layers, moved) - by_hand(layers, widths)


@settings(deadline=None)
@given(networks(), st.fractions(0, 1))
def test_no_step_of_one_or_two_widths_comes_nearer(network, share):
    layers, widths, steps, free = network
    count = WeightCount(layers, len(widths))
    budget = int(count(widths) * share)
    fitted = fit_widths(count, widths, steps, free, budget)
    assert np.array_equal(fitted, fit_widths(count, widths, steps, free, budget))
    fixed = [i for i in range(len(widths)) if i not in free]
    assert np.array_equal(fitted[fixed], widths[fixed])
    assert (fitted % steps == 0).all() and (fitted >= steps).all() and (fitted <= widths).all()
    least = widths.copy()
    least[free] = steps[free]
    if count(least) > budget:
        assert np.array_equal(fitted, least)
        return
    assert count(fitted) <= budget
    for up in free:
        for down in (None, *(i for i in free if i != up)):
            moved = fitted.copy()
            moved[up] += steps[up]
            if down is not None:
                moved[down] -= steps[down]
            if (moved <= widths).all() and (moved >= steps).all():
                assert not count(fitted) < count(moved) <= budget


def test_common_factor_then_single_steps():
    """2 * a * b weights of a <= 10, b <= 10: 7 and 7 have 98, and one step more in one of them 112."""
    first, second = Affine(0, {0: 1}), Affine(0, {1: 1})
    count = WeightCount([LayerWeights(Fraction(2), first, second)], 2)
    arguments = np.array([10, 10]), np.array([1, 1]), [0, 1]
    assert fit_widths(count, *arguments, 100).tolist() == [7, 7]
    assert fit_widths(count, *arguments, 112).tolist() == [8, 7]
    assert fit_widths(count, *arguments, 1000).tolist() == [10, 10]


@pytest.mark.parametrize(
    ("width", "factor", "step", "result"),
    [
        *((256, 0.5**0.5, 1, 181), (128, 0.5**0.5, 1, 90), (100, 0.29, 1, 29), (3, 0.1, 1, 1), (64, 0.5**0.5, 32, 32)),
        *((9, Fraction(1, 3), 1, 3), (7, 1, 1, 7)),
    ],
)
def test_scaled_rounds_down(width, factor, step, result):
    assert scaled(width, factor, step) == result
