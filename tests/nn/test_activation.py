"""Ternary and Heaviside activations: the levels at ties, the identity that `bnnfx.split` rests on, the gradients."""

import copy
import pickle

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from bnnfx.nn import HeavisideActivation, TernaryActivation
from bnnfx.nn.observer import ChannelStatistics

NAN, INFINITY = float("nan"), float("inf")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def below(value, dtype):
    return torch.nextafter(torch.tensor(value, dtype=dtype), torch.tensor(-1.0, dtype=dtype)).item()


@pytest.mark.parametrize("dtype", DTYPES)
def test_ternary_at_the_hazards(dtype):
    values = [below(0.25, dtype), 0.25, below(0.75, dtype), 0.75, 0.0, -0.0, NAN, INFINITY, -INFINITY]
    x = torch.tensor(values, dtype=dtype)
    result = TernaryActivation()(x[None])
    assert result.dtype == dtype
    assert result.tolist() == [[0, 0.5, 0.5, 1, 0, 0, 0, 1, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_heaviside_at_the_hazards(dtype):
    x = torch.tensor([below(0.5, dtype), 0.5, 0.0, -0.0, NAN, INFINITY, -INFINITY], dtype=dtype)
    result = HeavisideActivation()(x[None])
    assert result.dtype == dtype
    assert result.tolist() == [[0, 1, 0, 0, 0, 1, 0]]


def half_sum(x):
    """The two binary activations that a ternary one is split into; float32 shifted by 1/4 is exact in double."""
    wide, heaviside = x.double(), HeavisideActivation()
    return (heaviside(wide - 0.25) + heaviside(wide + 0.25)) / 2


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
@example([0.25, 0.75, 0.0, -0.0, 0.5])
@example([below(0.25, torch.float32), below(0.75, torch.float32)])
def test_ternary_is_half_the_sum_of_two_binary_ones(values):
    x = torch.tensor([values], dtype=torch.float32)
    assert torch.equal(TernaryActivation()(x).double(), half_sum(x))


def test_round_half_to_even_would_break_the_identity():
    x = torch.tensor([[0.25, 0.75]])
    rounded = torch.round(2 * x.clamp(0, 1)) / 2
    assert rounded.tolist() == [[0, 1]]
    assert half_sum(x).tolist() == TernaryActivation()(x).tolist() == [[0.5, 1]]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_relu_in_front_changes_nothing(values):
    x = torch.tensor([values], dtype=torch.float32)
    for activation in (TernaryActivation(), HeavisideActivation()):
        assert activation.absorbs_relu
        assert torch.equal(activation(x.relu()), activation(x))


@pytest.mark.parametrize("kind", [TernaryActivation, HeavisideActivation])
def test_gradient_is_that_of_the_clip(kind):
    x = torch.tensor([[-1.0, 0.0, 1e-30, 0.25, 0.5, 0.75, below(1.0, torch.float32), 1.0, 2.0]], requires_grad=True)
    kind()(x).backward(torch.arange(1.0, 10)[None])
    assert x.grad.tolist() == [[0, 0, 3, 4, 5, 6, 7, 0, 0]]


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_thresholds_are_those_of_the_forward(rank):
    x = torch.randn((3, 4, 5, 2)[:rank])
    low, high = TernaryActivation().thresholds(x, rank)
    assert low.ndim == high.ndim == rank
    assert torch.equal(TernaryActivation()(x), ((x >= low).float() + (x >= high).float()) / 2)
    threshold = HeavisideActivation().threshold(x, rank)
    assert HeavisideActivation().thresholds(x, rank) == (threshold,)
    assert torch.equal(HeavisideActivation()(x), (x >= threshold).float())


def test_ternary_has_no_single_threshold():
    with pytest.raises(TypeError, match=r"bnnfx\.split"):
        TernaryActivation().threshold(torch.zeros(1, 1), 2)


def test_statistics_count_every_level():
    activation = TernaryActivation()
    activation.statistics = ChannelStatistics(activation.levels)
    activation(torch.tensor([[-1.0, 0.5], [0.3, 0.6], [0.8, 0.0], [0.1, 0.74]]))
    seen = activation.statistics
    assert seen.occupied.tolist() == [[2, 1], [1, 3], [1, 0]]
    assert seen.occupancy.tolist() == [[0.5, 0.25], [0.25, 0.75], [0.25, 0]]
    assert seen.share_positive.tolist() == [0.25, 0]
    assert seen.positive.tolist() == [1, 0]
    assert seen.zeros.tolist() == [0, 1]


@pytest.mark.parametrize("kind", [TernaryActivation, HeavisideActivation])
def test_copies_and_epochs(kind):
    activation, x = kind(), torch.rand(4, 3)
    activation.on_epoch(0.5)
    for other in (copy.deepcopy(activation), pickle.loads(pickle.dumps(activation))):
        assert torch.equal(other(x), activation(x))
        assert (other.levels, other.state_dict()) == (kind.levels, {})


@pytest.mark.parametrize("kind", [TernaryActivation, HeavisideActivation])
def test_bfloat16_autocast(kind):
    layer, activation = torch.nn.Linear(6, 4), kind()
    with torch.autocast("cpu", torch.bfloat16):
        bits = activation(layer(torch.randn(8, 6)))
    assert bits.dtype is torch.bfloat16
    assert set(bits.unique().tolist()) <= set(kind.levels)
    bits.sum().backward()
    assert layer.weight.grad.isfinite().all()
