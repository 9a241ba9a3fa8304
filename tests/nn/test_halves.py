import pytest
import torch

from bnnfx.nn.comparison import compare
from bnnfx.nn.halves import halves_by_group, mean_of_halves, shift_halves

MAPS = [(2, 6), (2, 6, 3, 5), (0, 6, 3, 5), (1, 2, 1, 1)]


def pair(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-9, 9, shape, generator=generator).to(dtype), shape[1] // 2


@pytest.mark.parametrize("shape", MAPS)
def test_shift(shape):
    x, half = pair(shape)
    assert torch.equal(shift_halves(x, 0.25), torch.cat([x[:, :half] - 0.25, x[:, half:] + 0.25], 1))


@pytest.mark.parametrize("shape", MAPS)
def test_mean(shape):
    x, half = pair(shape)
    assert torch.equal(mean_of_halves(x), (x[:, :half] + x[:, half:]) / 2)


@pytest.mark.parametrize("shape", MAPS)
def test_mean_of_shifted_copies_is_the_map(shape):
    x, _ = pair(shape)
    assert torch.equal(mean_of_halves(shift_halves(torch.cat([x, x], 1), 0.25)), x)


def test_channels_last():
    x, _ = pair((2, 6, 3, 5))
    last = x.permute(0, 2, 3, 1)
    for function in (mean_of_halves, lambda y, axis=1: shift_halves(y, 0.5, axis=axis)):
        assert torch.equal(function(last, axis=3), function(x).permute(0, 2, 3, 1))


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (4, 2), (4, 4), (6, 3)])
def test_groups(channels, groups):
    """Group g of the result holds the g-th part of both halves."""
    x, _ = pair((2, 2 * channels, 3, 1))
    parts = [half.chunk(groups, 1)[g] for g in range(groups) for half in x.chunk(2, 1)]
    assert torch.equal(halves_by_group(x, groups), torch.cat(parts, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_type_is_kept(dtype):
    x, _ = pair((2, 4, 3, 3), dtype)
    assert {y.dtype for y in (shift_halves(x, 0.25), mean_of_halves(x), halves_by_group(x, 2))} == {dtype}


def test_comparison():
    x = torch.tensor([[-1.0, 0.5, float("nan"), 0.25, -0.0]])
    assert compare(x, torch.tensor([[0.5, 0.5, 0.0, 0.5, 0.0]]), -1.0, 1.0).tolist() == [[-1, 1, -1, -1, 1]]


def test_halves_of_the_last_axis():
    x = torch.randn(2, 3, 5, 8)
    moved = x.movedim(-1, 1)
    assert torch.equal(shift_halves(x, 0.25, axis=-1), shift_halves(moved, 0.25).movedim(1, -1))
    assert torch.equal(mean_of_halves(x, axis=-1), mean_of_halves(moved).movedim(1, -1))
