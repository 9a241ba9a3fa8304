"""Pseudo-gradients: each is the derivative it claims to be, with the area it claims to have."""

import math

import pytest
import torch

from bnnfx.numerics.surrogates import (
    annealing,
    approx_sign,
    clipped_identity,
    open_clipped_identity,
    training_aware,
    training_aware_primitive,
)

EPSILON = torch.finfo(torch.float64).eps
SQRT2 = math.sqrt(2)
SCHEDULE = [(0.01, 100.0), (0.056, 17.8), (0.316, 3.16), (1.0, 1.0), (1.78, 1.0), (10.0, 1.0)]
CELLS = 2000


def midpoints(half_width):
    """Midpoints of equal cells over twice the support; the ends of the support and 0 are borders of cells."""
    step = 2 * half_width / CELLS
    return (torch.arange(2 * CELLS, dtype=torch.float64) - CELLS + 0.5) * step, step


def area(factor, half_width):
    """By the midpoint rule, which is exact for a function that is linear in each cell."""
    x, step = midpoints(half_width)
    return (factor(x).sum() * step).item()


def tolerance(size):
    """Rounding of a sum of the cells: at most one relative epsilon per addition."""
    return 2 * CELLS * EPSILON * size


# --- RBNN's training-aware surrogate (identity 5) ---


@pytest.mark.parametrize(("t", "k"), [*SCHEDULE, (0.5, 3.0), (2.0, 0.25)])
def test_training_aware_is_the_slope_of_its_primitive(t, k):
    joint = SQRT2 / t
    h = joint / 1024
    # cells away from 0 and from the joint, where the second derivative jumps: a central difference is exact
    x = torch.linspace(-2 * joint, 2 * joint, 4097, dtype=torch.float64)
    x = x[(x.abs() > 2 * h) & ((x.abs() - joint).abs() > 2 * h)]
    assert (x.abs() < joint).sum() > 1000
    assert (x.abs() > joint).sum() > 1000
    slope = (training_aware_primitive(x + h, t, k) - training_aware_primitive(x - h, t, k)) / (2 * h)
    # the primitive has terms of size up to 4k in a few operations; the difference divides their rounding by 2h
    assert (slope - training_aware(x, t, k)).abs().max() <= 8 * 4 * k * EPSILON / h


@pytest.mark.parametrize(("t", "k"), SCHEDULE)
def test_training_aware_has_area_2k(t, k):
    assert abs(area(lambda x: training_aware(x, t, k), SQRT2 / t) - 2 * k) <= tolerance(2 * k)


@pytest.mark.parametrize(("t", "k"), SCHEDULE)
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_primitive_is_continuous_with_a_continuous_slope_at_the_joint(t, k, side):
    joint = side * SQRT2 / t
    near = torch.tensor([0.999999, 1.000001], dtype=torch.float64) * joint
    value, slope = training_aware_primitive(near, t, k), training_aware(near, t, k)
    gap = 1e-6 * SQRT2 / t
    # a parabola with its top at the joint: it has fallen by k t^2 gap^2 / 2, with slope k t^2 gap
    rounding = 16 * k * EPSILON
    assert value[1] == side * k
    assert (value[0] - side * k).abs() <= k * (t * gap) ** 2 / 2 + rounding
    assert slope[1] == 0
    assert 0 < slope[0] <= k * t * t * gap + rounding * t


def test_primitive_is_odd_and_zero_at_zero():
    x = torch.linspace(0, 5, 101, dtype=torch.float64)
    assert torch.equal(training_aware_primitive(-x, 0.7, 1.5), -training_aware_primitive(x, 0.7, 1.5))
    assert training_aware_primitive(torch.zeros(1), 0.7, 1.5) == 0


def test_approx_sign_is_the_special_case():
    x = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
    assert (training_aware(x, SQRT2, 1.0) - approx_sign(x)).abs().max() <= 8 * EPSILON


def test_training_aware_takes_tensors():
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    t, k = torch.tensor(0.6, dtype=torch.float64), torch.tensor(1.7, dtype=torch.float64)
    assert torch.equal(training_aware(x, t, k), training_aware(x, 0.6, 1.7))


# --- the others ---


@pytest.mark.parametrize("factor", [clipped_identity, open_clipped_identity, approx_sign])
def test_area_is_two(factor):
    assert abs(area(factor, 1.0) - 2) <= tolerance(2)


@pytest.mark.parametrize(
    ("factor", "distance", "curvature"),
    [(clipped_identity, 1, 0), (approx_sign, 2 / 3, 4)],
    ids=["clip", "approx_sign"],
)
def test_distance_from_sign(factor, distance, curvature):
    """The area between sign and a primitive that reaches +-1 is the first absolute moment of the derivative."""
    x, step = midpoints(1.0)
    moment = (x.abs() * factor(x)).sum() * step
    # the midpoint rule's error for a second derivative `curvature` over a support of length 2
    assert abs(moment.item() - distance) <= curvature * step**2 / 24 * 2 + tolerance(distance)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (clipped_identity, [0, 1, 1, 1, 1, 1, 0]),
        (open_clipped_identity, [0, 0, 1, 1, 1, 0, 0]),
        (approx_sign, [0, 0, 1, 2, 1, 0, 0]),
    ],
)
def test_ends_of_the_support(factor, expected):
    x = torch.tensor([-1.0000001, -1.0, -0.5, 0.0, 0.5, 1.0, 1.0000001], dtype=torch.float64)
    assert factor(x).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_type_is_kept(dtype):
    x = torch.linspace(-2, 2, 9, dtype=dtype)
    for factor in (clipped_identity, open_clipped_identity, approx_sign, lambda x: training_aware(x, 0.5, 2.0)):
        assert factor(x).dtype == dtype


# --- the schedule (identity 6) ---


@pytest.mark.parametrize(
    ("progress", "t", "k", "weight", "activation"),
    [
        (0, (0.010, 5e-4), (100, 0.5), ((1.414, 5e-4), (141, 0.5)), ((1.414, 5e-4), (1.414, 5e-4))),
        (0.25, (0.056, 5e-4), (17.8, 0.05), ((1.414, 5e-4), (25.1, 0.06)), ((1.414, 5e-4), (1.414, 5e-4))),
        (0.5, (0.316, 5e-4), (3.16, 5e-3), ((1.414, 5e-4), (4.47, 5e-3)), ((1.414, 5e-4), (1.414, 5e-4))),
        (2 / 3, (1, 1e-9), (1, 1e-9), ((1.414, 5e-4), (1.414, 5e-4)), ((1.414, 5e-4), (1.414, 5e-4))),
        (0.75, (1.78, 5e-3), (1, 0), ((2.51, 5e-3), (0.795, 5e-4)), ((2.51, 5e-3), (0.795, 5e-4))),
        (1, (10, 1e-9), (1, 0), ((14.1, 0.05), (0.141, 5e-4)), ((14.1, 0.05), (0.141, 5e-4))),
    ],
)
def test_table_of_the_schedule(progress, t, k, weight, activation):
    """(number, half of its last printed digit) for t, k, and for (slope at 0, half-width) of both surrogates."""
    t_now, k_now = annealing(progress)
    assert abs(t_now - t[0]) <= t[1]
    assert abs(k_now - k[0]) <= k[1]
    for (slope, width), t_used, k_used in ((weight, t_now, k_now), (activation, max(t_now, 1.0), 1.0)):
        at_zero = training_aware(torch.zeros((), dtype=torch.float64), t_used, k_used).item()
        assert abs(at_zero - slope[0]) <= slope[1]
        edges = torch.tensor([width[0] - width[1], width[0] + width[1]], dtype=torch.float64)
        inside, outside = training_aware(edges, t_used, k_used).tolist()
        assert inside > 0
        assert outside == 0


@pytest.mark.parametrize("epochs", [3, 12, 120, 1000])
def test_slope_stays_sqrt2_and_activations_do_not_change_for_two_thirds(epochs):
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    # 10**(-2 + 3p) and its inverse: the exponent's rounding is at most a few epsilon * 2, times ln 10, in t
    relative = 16 * EPSILON
    early = [epoch for epoch in range(epochs) if 3 * epoch <= 2 * epochs]
    assert len(early) > epochs // 2
    for epoch in early:
        t, k = annealing(epoch / epochs)
        slope = training_aware(torch.zeros((), dtype=torch.float64), t, k).item()
        assert abs(slope - SQRT2) <= SQRT2 * relative
        # t may pass 1 by rounding at exactly 2/3
        change = training_aware(x, max(t, 1.0), 1.0) - training_aware(x, 1.0, 1.0)
        assert change.abs().max() <= 8 * relative
    late = [annealing(epoch / epochs) for epoch in range(epochs) if 3 * epoch > 2 * epochs]
    assert [k for _, k in late] == [1.0] * len(late)
    assert all(t > 1 for t, _ in late)


def test_sharpness_grows_every_epoch():
    sharpness = [annealing(epoch / 50)[0] for epoch in range(50)]
    assert sharpness == sorted(set(sharpness))
    assert sharpness[-1] < 10


def test_other_ends_of_the_schedule():
    assert annealing(0.0, t_min=0.1, t_max=100.0) == pytest.approx((0.1, 10.0), rel=16 * EPSILON, abs=0)
    assert annealing(1.0, t_min=0.1, t_max=100.0) == pytest.approx((100.0, 1.0), rel=16 * EPSILON, abs=0)
