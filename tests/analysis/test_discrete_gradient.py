"""The coordinate discrete gradient is the derivative of the smoothed loss, exactly, also where the loss jumps."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnnfx.analysis import discrete_gradient
from bnnfx.errors import AnalysisError

DOUBLE = torch.finfo(torch.float64).eps


class Staircase:
    """A piecewise constant function: `values[k]` between the k-th and the next of its ascending jumps."""

    def __init__(self, jumps, values):
        self.jumps = torch.tensor(jumps, dtype=torch.float64)
        self.values = torch.tensor(values, dtype=torch.float64)

    def __call__(self, x):
        return self.values[(x >= self.jumps.view(-1, *(1,) * x.ndim)).sum(0)]

    def integral(self, low, high):
        """Exact but for the rounding of as many products and sums as there are pieces."""
        inside = [float(j) for j in self.jumps if low < j < high]
        edges = [low, *inside, high]
        middles = torch.tensor([(a + b) / 2 for a, b in pairwise(edges)], dtype=torch.float64)
        widths = torch.tensor([b - a for a, b in pairwise(edges)], dtype=torch.float64)
        return float((self(middles) * widths).sum())

    def smoothed(self, x, epsilon):
        """The mean over [x - epsilon, x + epsilon]."""
        return self.integral(x - epsilon, x + epsilon) / (2 * epsilon)


def dyadic(low, high, denominator=64):
    """Numbers that float64 adds and subtracts without rounding."""
    return st.integers(low * denominator, high * denominator).map(lambda n: n / denominator)


@settings(deadline=None, max_examples=60)
@given(
    jumps=st.lists(dyadic(-3, 3), min_size=1, max_size=6, unique=True).map(sorted),
    values=st.lists(st.integers(-5, 5), min_size=7, max_size=7),
    x=dyadic(-2, 2),
    epsilon=st.sampled_from([0.25, 0.125, 1.0]),
)
def test_it_is_the_derivative_of_the_smoothed_staircase(jumps, values, x, epsilon):
    """The smoothed function is piecewise linear: between its kinks a difference quotient is its derivative."""
    # 1/128 beside a multiple of 1/64, so that neither end of the interval is at a jump, nor reaches one within h
    x, h = x + 2.0**-7, 2.0**-8
    stairs = Staircase(jumps, values[: len(jumps) + 1])
    derivative = (stairs.smoothed(x + h, epsilon) - stairs.smoothed(x - h, epsilon)) / (2 * h)
    found = discrete_gradient(lambda t: stairs(t).sum(), torch.tensor([x], dtype=torch.float64), epsilon)
    # everything above is dyadic and short: no rounding anywhere
    assert found.tolist() == [derivative]
    assert found.dtype == torch.float64


def test_known_analytically():
    """Heaviside smoothed over [-e, e] is the ramp clamp((x + e) / 2e, 0, 1): slope 1/2e within e of 0, else 0."""
    x = torch.tensor([-0.75, -0.25, 0.0, 0.25, 0.75], dtype=torch.float64)
    found = discrete_gradient(lambda t: (t >= 0).double().sum(), x, 0.5)
    assert found.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_each_coordinate_is_smoothed_on_its_own():
    """L = H(x) H(y): along x, the jump counts where y lets it."""
    x = torch.tensor([0.0, 0.25, -0.25], dtype=torch.float64)
    loss = lambda t: (t[0] >= 0).double() * (t[1] >= 0).double() + 3 * (t[2] >= 0).double()  # noqa: E731
    assert discrete_gradient(loss, x, 0.125).tolist() == [4.0, 0.0, 0.0]
    assert discrete_gradient(loss, x, 0.5).tolist() == [1.0, 1.0, 3.0]


def test_smooth_functions_get_their_gradient():
    """Of a quadratic the central difference is the derivative, for any epsilon."""
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = discrete_gradient(lambda t: t.square().sum(), x, 0.1)
    # the difference of two sums of 12 numbers below 10, divided by 0.2
    torch.testing.assert_close(found, 2 * x.detach().flatten(), rtol=0, atol=2 * 12 * 10 * DOUBLE / 0.2)
    assert x.grad is None


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 12, 100])
def test_chunks_and_coordinates(chunk_size):
    x = torch.arange(12, dtype=torch.float64).view(3, 4)
    chosen = torch.tensor([11, 0, 5])
    weights = torch.arange(1.0, 13.0, dtype=torch.float64).view(3, 4)
    loss = lambda t: (t >= x).double().mul(weights).sum()  # noqa: E731
    done = []
    found = discrete_gradient(loss, x, 0.5, coordinates=chosen, chunk_size=chunk_size, advance=done.append)
    assert found.tolist() == [12.0, 1.0, 6.0]
    assert sum(done) == 3 and max(done) <= chunk_size
    assert discrete_gradient(loss, x, 0.5, chunk_size=chunk_size).tolist() == weights.flatten().tolist()


def test_no_coordinate():
    assert discrete_gradient(torch.sum, torch.zeros(0), 0.5).shape == (0,)
    assert discrete_gradient(torch.sum, torch.zeros(3), 0.5, coordinates=torch.zeros(0, dtype=torch.int64)).shape == (
        0,
    )


def test_the_distance_is_the_one_after_rounding():
    """In bfloat16 near 1 the steps are 2**-7 above and 2**-8 below: 0.01 becomes 2**-7 and 3 * 2**-8."""
    x = torch.tensor([1.0], dtype=torch.bfloat16)
    found = discrete_gradient(lambda t: t.double().sum(), x, 0.01)
    assert found.tolist() == [1.0]


def test_epsilon_below_the_rounding():
    with pytest.raises(ValueError, match=r"lost in the rounding of torch\.float32"):
        discrete_gradient(torch.sum, torch.tensor([1.0, 1e6]), 1e-3)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_epsilon_is_positive(epsilon):
    with pytest.raises(ValueError, match="epsilon is a positive number"):
        discrete_gradient(torch.sum, torch.zeros(2), epsilon)


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_value_is_a_scalar(chunk_size):
    with pytest.raises(ValueError, match=r"scalar; got a tensor of shape \(2,\)"):
        discrete_gradient(lambda t: t, torch.zeros(2), 0.1, chunk_size=chunk_size)


def test_what_vmap_cannot_do():
    branching = lambda t: t.sum() if t.sum() > 0 else t.sum() * 2  # noqa: E731
    with pytest.raises(AnalysisError, match="chunk_size=1 evaluates them one by one"):
        discrete_gradient(branching, torch.zeros(3), 0.5)
    assert discrete_gradient(branching, torch.zeros(3), 0.5, chunk_size=1).tolist() == [1.5] * 3
