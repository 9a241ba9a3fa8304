"""RBNN: the formulas of the weight and the activation path, and the rotation between epochs."""

import math
import warnings
from itertools import pairwise

import pytest
import torch
from helpers.models import Chain, loss_of
from torch import nn

import bnnfx
from bnnfx import Config
from bnnfx.nn import BinaryConv2d
from bnnfx.numerics.rotation import alignment, standardize
from bnnfx.numerics.surrogates import annealing, training_aware
from bnnfx.schemes.rbnn import RotatedSign, TrainingAwareSign

SHAPE = (6, 4, 3, 3)  # fan-in 36 = 6 * 6
WIDE = (5, 8, 3, 3)  # fan-in 72 = 8 * 9


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def binarizer(shape=SHAPE, dtype=torch.float64, **options):
    weight = torch.randn(shape, dtype=dtype, requires_grad=True)
    return RotatedSign(weight, **options), weight


def rotation_matrix(b):
    """`R1 kron R2`, which acts on a filter written row by row."""
    return torch.kron(b.r1, b.r2)


@pytest.mark.parametrize("gradient", ["code", "full"])
@pytest.mark.parametrize("shape", [SHAPE, WIDE, (7, 12)])
def test_forward_is_the_formula(shape, gradient):
    """w3 = w2 + A (V - w2) with V = (R1 kron R2)^T w2: the two small rotations act as one big one."""
    b, weight = binarizer(shape, weight_gradient=gradient, initial_share=0.7)
    signs, scale = b(weight)
    flat = weight.detach().flatten(1)
    w2 = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)
    share = b.beta.detach().sin().abs()[:, None]
    w3 = (1 - share) * w2 + share * (w2 @ rotation_matrix(b))
    # both sum about fan-in products of numbers near 1
    assert w3.abs().min() > 1e-12 * flat.shape[1]
    assert torch.equal(signs.flatten(1), torch.where(w3 >= 0, 1.0, -1.0).double())
    assert torch.equal(scale, b.alpha)
    assert torch.equal(b.alpha.detach(), flat.abs().mean(1))
    unrotated = torch.where(w2 >= 0, 1.0, -1.0).double()
    assert not torch.equal(signs.detach().flatten(1), unrotated)


def test_rotations_are_orthogonal():
    b, _ = binarizer(WIDE)
    for r, size in ((b.r1, 8), (b.r2, 9)):
        # entries of r r^T are sums of `size` products rounded once each, of a matrix made in float32
        identity = torch.eye(size, dtype=torch.float64)
        torch.testing.assert_close(r @ r.T, identity, rtol=0, atol=size * 8 * torch.finfo(torch.float32).eps)


def gradients(b, weight, upstream):
    signs, scale = b(weight)
    (signs * upstream + 0 * scale.sum()).sum().backward()
    return weight.grad


def expected_gradient(b, weight, upstream, share, rotated):
    """The latent weight's gradient, with the surrogate at w3 and the standardization by autograd."""
    w = weight.detach().clone().requires_grad_()
    w2 = standardize(w)
    with torch.no_grad():
        v = w2 @ rotation_matrix(b)
        g3 = upstream.flatten(1) * training_aware(w2 + share * (v - w2), b.t, b.k)
        g2 = (1 - share) * g3
        if rotated:
            g2 = g2 + share * (g3 @ rotation_matrix(b).T)  # A R1 G R2^T
    w2.backward(g2)
    return w.grad


@pytest.mark.parametrize("gradient", ["code", "full"])
@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("progress", [0.0, 0.6, 0.9])
def test_weight_gradient(gradient, share, progress):
    """`code`: (1 - A) G; `full`: (1 - A) G + A R1 G R2^T."""
    b, weight = binarizer(weight_gradient=gradient, initial_share=share)
    b.on_epoch(progress)
    upstream = torch.randn(SHAPE, dtype=torch.float64)
    given = gradients(b, weight, upstream)
    actual_share = b.beta.detach().sin().abs()[:, None]
    wanted = expected_gradient(b, weight, upstream, actual_share, rotated=gradient == "full")
    # t and k are float32 in both; 1e-10 of the largest is far above double rounding over 36 terms, far below the terms
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-10 * (float(wanted.abs().max()) + 1e-3))
    if gradient == "full":
        assert given.count_nonzero() == given.numel()


def test_the_two_gradients_differ():
    upstream = torch.randn(SHAPE, dtype=torch.float64)
    b, weight = binarizer(initial_share=0.5)
    code = gradients(b, weight, upstream).clone()
    weight.grad = None
    b.weight_gradient = "full"
    full = gradients(b, weight, upstream)
    assert (code - full).abs().max() > 0.1 * code.abs().max()


def test_beta_gradient():
    """dL/dbeta = sgn(sin beta) cos(beta) <g3, V - w2> per filter."""
    b, weight = binarizer(initial_share=0.4)
    with torch.no_grad():
        b.beta[0] = -0.8
    upstream = torch.randn(SHAPE, dtype=torch.float64)
    gradients(b, weight, upstream)
    beta, w2 = b.beta.detach(), standardize(weight.detach())
    v = w2 @ rotation_matrix(b)
    g3 = upstream.flatten(1) * training_aware(w2 + beta.sin().abs()[:, None] * (v - w2), b.t, b.k)
    wanted = beta.sin().sign() * beta.cos() * (g3 * (v - w2)).sum(1)
    torch.testing.assert_close(b.beta.grad, wanted, rtol=0, atol=1e-10 * float(wanted.abs().max()))
    assert b.beta.grad[0] != 0


# --- the zero-gradient trap ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_reference_gives_the_latent_weight_exactly_no_gradient(progress):
    """beta is the float32 nearest to pi/2, whose sine is 1 in float32: 1 - A is 0, and so is every gradient."""
    gm = bnnfx.convert(Chain(), "rbnn", config=Config(options={"initial_share": 1.0, "weight_gradient": "code"}))
    bnnfx.Schedule(gm, 2).step(progress * 2)
    for layer in (gm.conv1, gm.conv2, gm.fc1):
        assert torch.equal(layer.binarizer.beta, torch.full_like(layer.binarizer.beta, math.pi / 2))
        assert (layer.binarizer.beta.sin() == 1).all()
    loss_of(gm, Chain().inputs()).backward()
    for layer in (gm.conv1, gm.conv2, gm.fc1):
        assert layer.weight.grad.count_nonzero() == 0
        assert layer.binarizer.alpha.grad.count_nonzero() > 0
    assert gm.stem.weight.grad.count_nonzero() > 0


@pytest.mark.parametrize("options", [{}, {"initial_share": 1.0, "weight_gradient": "full"}, {"initial_share": 0.999}])
def test_no_trap_otherwise(options):
    gm = bnnfx.convert(Chain(), "rbnn", config=Config(options=options))
    loss_of(gm, Chain().inputs()).backward()
    for layer in (gm.conv1, gm.conv2, gm.fc1):
        assert layer.weight.grad.count_nonzero() > layer.weight.numel() / 2


def test_weight_decay_on_beta_springs_the_trap_open():
    gm = bnnfx.convert(Chain(), "rbnn", config=Config(options={"initial_share": 1.0}))
    with torch.no_grad():
        gm.conv1.binarizer.beta.mul_(0.99)
    loss_of(gm, Chain().inputs()).backward()
    assert gm.conv1.weight.grad.count_nonzero() > 0
    assert gm.conv2.weight.grad.count_nonzero() == 0


# --- between epochs --------------------------------------------------------------------------------------------------


def objective(b, weight):
    return float(alignment(standardize(weight.detach().double()), b.r1.double(), b.r2.double()))


def test_rotation_is_updated_in_place_and_does_not_fall():
    layer = BinaryConv2d(4, 6, 3, binarizer=RotatedSign(torch.randn(SHAPE)))
    b = layer.binarizer
    pointers, before = (b.r1.data_ptr(), b.r2.data_ptr()), (b.r1.clone(), b.r2.clone())
    values = [objective(b, layer.weight)]
    for _ in range(4):
        layer.between_epochs()
        values.append(objective(b, layer.weight))
    assert (b.r1.data_ptr(), b.r2.data_ptr()) == pointers
    assert not (torch.equal(b.r1, before[0]) or torch.equal(b.r2, before[1]))
    assert not (b.r1.requires_grad or b.r2.requires_grad)
    # R is stored in float32: an orthogonal matrix that is off by eps moves the sum of 216 terms by 216 * 12 * eps
    slack = 216 * 12 * torch.finfo(torch.float32).eps
    assert all(later >= earlier - slack for earlier, later in pairwise(values))
    assert values[-1] > values[0] + 1


def test_update_leaves_no_gradient_and_needs_none():
    layer = BinaryConv2d(4, 6, 3, binarizer=RotatedSign(torch.randn(SHAPE)))
    seen = []
    original = layer.binarizer.between_epochs
    layer.binarizer.between_epochs = lambda weight: (seen.append(torch.is_grad_enabled()), original(weight))
    layer.between_epochs()
    assert seen == [False]
    assert layer.weight.grad is None


def rotations(gm):
    return [b.clone() for name, b in gm.named_buffers() if name.endswith((".r1", ".r2"))]


def test_whole_epochs_rotate_and_fractions_anneal():
    gm = bnnfx.convert(Chain(), "rbnn")
    schedule = bnnfx.Schedule(gm, 4)
    start = rotations(gm)
    assert len(start) == 6
    schedule.step(2.5)
    assert all(torch.equal(a, b) for a, b in zip(start, rotations(gm), strict=True))
    t, k = annealing(2.5 / 4)
    assert gm.conv1.binarizer.t == torch.tensor(t)
    assert gm.conv1.binarizer.k == torch.tensor(k)
    schedule.step(3)
    assert not any(torch.equal(a, b) for a, b in zip(start, rotations(gm), strict=True))
    assert gm.conv1.binarizer.t == torch.tensor(annealing(0.75)[0])


def test_evaluation_does_not_rotate():
    gm = bnnfx.convert(Chain(), "rbnn")
    start = rotations(gm)
    for training in (True, False):
        gm.train(training)
        gm(*Chain().inputs())
    assert all(torch.equal(a, b) for a, b in zip(start, rotations(gm), strict=True))


def test_annealing_of_the_activations():
    """k stays 1 and t is at least 1: nothing changes in the first two thirds."""
    gm = bnnfx.convert(Chain(), "rbnn")
    for progress, t in ((0.0, 1.0), (0.5, 1.0), (0.75, annealing(0.75)[0]), (1.0, 10.0)):
        bnnfx.Schedule(gm, 4).step(progress * 4)
        assert gm.conv1_sign.t == torch.tensor(t)


def test_activation_gradient():
    b = TrainingAwareSign().double()
    b.on_epoch(0.9)
    x = torch.linspace(-2, 2, 81, dtype=torch.float64)[None].requires_grad_()
    upstream = torch.randn(1, 81, dtype=torch.float64)
    (b(x) * upstream).sum().backward()
    t = b.t.item()
    wanted = upstream * (math.sqrt(2) * t - t * t * x.detach().abs()).clamp_min(0)
    torch.testing.assert_close(x.grad, wanted, rtol=0, atol=1e-14 * t * t * 81)
    assert 0 < x.grad.count_nonzero() < 81


# --- centring --------------------------------------------------------------------------------------------------------


def test_centring_subtracts_the_mean_of_each_sample():
    b = TrainingAwareSign(centre=True)
    x = torch.randn(5, 3, 4, 7) + torch.tensor([3.0, -3.0, 0.5, 0.0, 100.0])[:, None, None, None]
    mean = x.double().mean((1, 2, 3), keepdim=True)
    far = (x.double() - mean).abs() > 1e-4  # 84 values below 110, summed in float32
    assert far.float().mean() > 0.99
    assert torch.equal(b(x)[far], torch.where(x >= mean, 1.0, -1.0)[far])
    assert torch.equal(b(x), torch.where(x >= b.threshold(x, 4), 1.0, -1.0))
    assert b.threshold(x, 4).shape == (5, 1, 1, 1)
    assert not torch.equal(b(x), TrainingAwareSign()(x))
    assert (b.pointwise, TrainingAwareSign().pointwise) == (False, True)


def test_centring_gradient_is_that_of_the_standardized_value():
    b = TrainingAwareSign(centre=True).double()
    x = (torch.randn(3, 2, 4, 4, dtype=torch.float64) * 2 + 1).requires_grad_()
    upstream = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    (b(x) * upstream).sum().backward()
    y = x.detach().clone().requires_grad_()
    a2 = (y - y.mean((1, 2, 3), keepdim=True)) / y.std((1, 2, 3), keepdim=True)
    a2.backward(upstream * training_aware(a2.detach(), b.t, 1.0))
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_centring_a_constant_map(value):
    b = TrainingAwareSign(centre=True)
    x = torch.full((2, 3, 4, 4), value, requires_grad=True)
    bits = b(x)
    bits.sum().backward()
    assert (bits == 1).all()
    assert x.grad.isfinite().all()


def test_prime_fan_in_warns():
    with pytest.warns(UserWarning, match="fan-in of 7 is prime: its rotation is one 7 x 7 matrix"):
        RotatedSign(torch.randn(3, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RotatedSign(torch.randn(3, 8))
    with pytest.warns(UserWarning, match="prime"):
        bnnfx.convert(nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 7), nn.Linear(7, 4)), "rbnn")
