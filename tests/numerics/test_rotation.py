"""Bi-rotation: the algebra of rotating, the three updates, and the numbers that random filters give."""

import itertools
import math

import pytest
import torch

from bnnfx.numerics import rotation
from bnnfx.numerics.rotation import (
    alignment,
    factor_fan_in,
    nearest_rotation,
    random_orthogonal,
    rotate,
    standardize,
    update_rotation,
)

EPSILON = torch.finfo(torch.float64).eps


def problem(filters, fan_in, seed):
    """Standardized Gaussian filters and a random pair of rotations, in float64."""
    torch.manual_seed(seed)
    a, b = factor_fan_in(fan_in)
    x = standardize(torch.randn(filters, fan_in, dtype=torch.float64))
    # orthogonal to float64, not only to the float32 it is drawn in
    r1, r2 = (nearest_rotation(random_orthogonal(size).double()) for size in (a, b))
    return x, r1, r2


def cosine(filters, r1, r2):
    """Mean over filters of the cosine between V and sign(V)."""
    v = rotate(filters, r1, r2)
    return (v.abs().sum(1) / (math.sqrt(v.shape[1]) * v.norm(dim=1))).mean().item()


def orthogonality_error(r):
    return (r.T @ r - torch.eye(len(r), dtype=r.dtype)).abs().max().item()


# --- the Kronecker form (identity 8) ---


@pytest.mark.parametrize("fan_in", [1, 2, 7, 12, 18, 144, 288])
def test_rotating_is_a_kronecker_product(fan_in):
    x, r1, r2 = problem(5, fan_in, seed=fan_in)
    expected = x @ torch.kron(r1, r2)  # rows are filters: vec(V)^T = vec(X)^T (R1 kron R2)
    # sums of fan_in products whose factors have norms |x| and 1
    assert (rotate(x, r1, r2) - expected).abs().max() <= 4 * fan_in * EPSILON * x.norm(dim=1).max()
    assert rotate(x, r1, r2).shape == x.shape


@pytest.mark.parametrize("fan_in", [12, 144, 288])
def test_rotating_keeps_norms_and_inner_products(fan_in):
    x, r1, r2 = problem(6, fan_in, seed=fan_in)
    v = rotate(x, r1, r2)
    assert (v @ v.T - x @ x.T).abs().max() <= 8 * fan_in * EPSILON * x.norm(dim=1).max() ** 2
    assert (v - x).abs().max() > 0.1


def test_factors_are_the_nearest_to_a_square():
    for n in range(1, 1500):
        a, b = factor_fan_in(n)
        assert a * b == n
        assert a <= b
        assert a == max(d for d in range(1, n + 1) if n % d == 0 and d * d <= n)


@pytest.mark.parametrize(("n", "factors"), [(144, (12, 12)), (288, (16, 18)), (1152, (32, 36)), (4608, (64, 72))])
def test_factors_of_the_usual_layers(n, factors):
    assert factor_fan_in(n) == factors


# --- the three updates (identity 7) ---


@pytest.mark.parametrize(("filters", "fan_in"), [(1, 12), (4, 18), (16, 144), (3, 7)])
@pytest.mark.parametrize("seed", range(3))
def test_each_step_is_the_maximum_of_its_block(monkeypatch, filters, fan_in, seed):
    """Follow tr(B^T R1^T X R2) through the steps: B gives `alignment`, each rotation gives a nuclear norm."""
    x, r1, r2 = problem(filters, fan_in, seed)
    steps = []

    def recorded(matrix):
        steps.append((matrix, nearest_rotation(matrix)))
        return steps[-1][1]

    monkeypatch.setattr(rotation, "nearest_rotation", recorded)
    rounding = 64 * fan_in * EPSILON * alignment(x, r1, r2).item()
    objective, cycles = [alignment(x, r1, r2)], 3
    maps = x.reshape(filters, len(r1), len(r2))
    for cycle in range(cycles):
        b = torch.where(r1.T @ maps @ r2 >= 0, 1.0, -1.0).double()
        new_r1, new_r2 = update_rotation(x, r1, r2, cycles=1)
        reached = [(b * (new_r1.T @ maps @ r2)).sum(), (b * (new_r1.T @ maps @ new_r2)).sum()]
        assert len(steps) == 2 * (cycle + 1)
        for value, (matrix, _) in zip(reached, steps[-2:], strict=True):
            assert abs(value - torch.linalg.svdvals(matrix).sum()) <= rounding
        objective += [*reached, alignment(x, new_r1, new_r2)]
        r1, r2 = new_r1, new_r2
    for before, after in itertools.pairwise(objective):
        assert after >= before - rounding
    if fan_in > 7:
        assert objective[-1] > 1.01 * objective[0]


def test_cycles_are_repetitions():
    x, r1, r2 = problem(8, 36, seed=1)
    one_by_one = (r1, r2)
    for _ in range(3):
        one_by_one = update_rotation(x, *one_by_one, cycles=1)
    for together, separate in zip(update_rotation(x, r1, r2), one_by_one, strict=True):
        assert torch.equal(together, separate)
    assert all(map(torch.equal, update_rotation(x, r1, r2, cycles=0), (r1, r2)))


@pytest.mark.parametrize(("filters", "fan_in"), [(1, 12), (16, 144), (2, 7), (3, 1)])
def test_updated_rotations_are_orthogonal(filters, fan_in):
    """Also where the sums have rank 1 (one filter), and for a fan-in without factors."""
    x, r1, r2 = problem(filters, fan_in, seed=2)
    for r in update_rotation(x, r1, r2):
        assert orthogonality_error(r) <= 32 * len(r) * EPSILON


def test_inputs_are_left_alone():
    x, r1, r2 = problem(4, 12, seed=3)
    before = [tensor.clone() for tensor in (x, r1, r2)]
    update_rotation(x, r1, r2)
    assert all(map(torch.equal, (x, r1, r2), before))


@pytest.mark.parametrize("seed", range(3))
def test_nearest_rotation_beats_others(seed):
    torch.manual_seed(seed)
    matrix = torch.randn(5, 5, dtype=torch.float64)
    best = (nearest_rotation(matrix) * matrix).sum()
    rounding = 5 * 32 * EPSILON * matrix.norm()
    assert abs(best - torch.linalg.svdvals(matrix).sum()) <= rounding
    others = [(random_orthogonal(5).double() * matrix).sum() for _ in range(200)]
    assert max(others) < best


# --- random filters and random rotations ---


@pytest.mark.parametrize(
    ("filters", "fan_in", "learned"), [(16, 144, 0.833), (32, 288, 0.821), (64, 576, 0.811)], ids=["16", "32", "64"]
)
def test_cosine_of_gaussian_filters(filters, fan_in, learned):
    """Means over 12 draws; the spread of a mean over draws is 0.603 / sqrt(12 * filters * fan_in) < 0.004."""
    unrotated, randomly, after = [], [], []
    for seed in range(12):
        x, r1, r2 = problem(filters, fan_in, seed)
        unrotated.append(cosine(x, torch.eye(len(r1)).double(), torch.eye(len(r2)).double()))
        randomly.append(cosine(x, r1, r2))
        after.append(cosine(x, *update_rotation(x, r1, r2)))
    unrotated, randomly, after = (sum(values) / len(values) for values in (unrotated, randomly, after))
    assert abs(unrotated - math.sqrt(2 / math.pi)) <= 0.01
    assert abs(randomly - math.sqrt(2 / math.pi)) <= 0.01
    assert abs(after - learned) <= 0.01
    assert after > randomly + 0.01  # the learned part is more than what a random rotation gives


@pytest.mark.parametrize("seed", range(3))
def test_random_rotation_flips_half_of_the_signs(seed):
    x, r1, r2 = problem(64, 576, seed)
    flips = ((rotate(x, r1, r2) >= 0) != (x >= 0)).double().mean().item()
    assert abs(flips - 0.5) <= 5 * 0.5 / math.sqrt(x.numel())


@pytest.mark.parametrize("size", [1, 2, 12, 64])
def test_random_orthogonal_is_orthogonal(size):
    torch.manual_seed(size)
    r = random_orthogonal(size)
    assert r.shape == (size, size)
    assert orthogonality_error(r) <= 8 * size * torch.finfo(torch.float32).eps


def test_random_orthogonal_is_haar():
    """Haar: traces have mean 0 and variance 1, reflections are as likely as rotations. Plain QR has neither."""
    torch.manual_seed(0)
    draws, size = 3000, 3
    matrices = torch.stack([random_orthogonal(size) for _ in range(draws)])
    traces = matrices.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(traces.mean().item()) <= 5 / math.sqrt(draws)
    assert abs(traces.square().mean().item() - 1) <= 5 * math.sqrt(2 / draws)
    share = (torch.linalg.det(matrices) > 0).double().mean().item()
    assert abs(share - 0.5) <= 5 * 0.5 / math.sqrt(draws)


# --- standardizing ---


def test_standardized_filters_have_mean_0_and_unbiased_deviation_1():
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64) * 3 + 2
    result = standardize(weight)
    assert result.shape == (6, 36)
    rounding = 36 * EPSILON * weight.abs().max().item()
    assert result.mean(1).abs().max() <= rounding
    assert (result.std(1) - 1).abs().max() <= rounding
    assert (result * weight.flatten(1).std(1, keepdim=True) + weight.flatten(1).mean(1, keepdim=True)).sub(
        weight.flatten(1)
    ).abs().max() <= 4 * rounding


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, 0.1, -0.3, 1e-30, 1234.567])
@pytest.mark.parametrize("fan_in", [2, 9, 144, 577])
def test_constant_filter_is_only_centred(value, fan_in):
    """Its mean can be off by a rounding, which must not be blown up to a deviation of 1."""
    torch.manual_seed(0)
    weight = torch.randn(3, fan_in)
    weight[1] = value
    weight.requires_grad_()
    result = standardize(weight)
    rounding = fan_in * torch.finfo(torch.float32).eps
    assert result[1].abs().max() <= rounding * abs(value)
    (result * torch.randn(3, fan_in)).sum().backward()
    assert weight.grad.isfinite().all()
    assert weight.grad[1].abs().max() < 10
    assert (result[[0, 2]].std(1) - 1).abs().max() <= rounding  # its neighbours do not notice


def test_one_element_filters():
    weight = torch.tensor([[0.5], [-2.0]], requires_grad=True)
    result = standardize(weight)
    assert result.tolist() == [[0.0], [0.0]]
    result.sum().backward()
    assert weight.grad.tolist() == [[0.0], [0.0]]


def test_gradient_of_standardize():
    torch.manual_seed(1)
    weight = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardize, (weight,))
