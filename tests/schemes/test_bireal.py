"""Bi-Real Net: the two weight gradients, ApproxSign, and a constant scale."""

import pytest
import torch
from helpers.models import Chain
from torch.nn import functional as F

import bnnfx
from bnnfx import Config
from bnnfx.nn import BinaryConv2d
from bnnfx.schemes.bireal import MagnitudeAwareSign

OUT, IN = 5, 4


def gradient(how):
    """The latent weight's gradient, that of the plain convolution with W_b = alpha sign(W), the weight, and alpha."""
    torch.manual_seed(0)
    layer = BinaryConv2d(IN, OUT, 3, bias=False, binarizer=MagnitudeAwareSign(how)).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(OUT, IN, 3, 3))
        layer.weight[0, 0, 0, 0] = 1.0
    x = torch.where(torch.randn(2, IN, 6, 6) >= 0, 1.0, -1.0).double()
    upstream = torch.randn(2, OUT, 4, 4, dtype=torch.float64)
    (layer(x) * upstream).sum().backward()
    binary = torch.zeros_like(layer.weight, requires_grad=True)
    (F.conv2d(x, binary) * upstream).sum().backward()
    weight = layer.weight.detach()
    alpha = weight.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    return layer.weight.grad, binary.grad, weight, alpha


def close(given, wanted):
    # sums of 32 products and one scaling, in double
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-13 * 32 * float(wanted.abs().max()))


def test_code_gradient_has_no_alpha():
    given, g, weight, _ = gradient("code")
    close(given, g * (weight.abs() <= 1))
    assert given[0, 0, 0, 0] != 0  # |W| = 1 counts as inside
    assert (given == 0).any()


def test_paper_gradient_has_alpha():
    given, g, weight, alpha = gradient("paper")
    close(given, alpha * g * (weight.abs() <= 1))


def test_the_two_differ_by_alpha():
    code, *_, alpha = gradient("code")
    paper, *_ = gradient("paper")
    close(paper, code * alpha)
    assert not torch.allclose(paper, code, rtol=1e-2)


def test_same_forward():
    weight = torch.randn(3, 4, 2, 2)
    code, paper = (MagnitudeAwareSign(how)(weight) for how in ("code", "paper"))
    assert torch.equal(code[0], paper[0])
    assert torch.equal(code[0], torch.where(weight >= 0, 1.0, -1.0))
    assert torch.equal(code[1], paper[1])
    assert torch.equal(code[1], weight.abs().flatten(1).mean(1))


def test_scale_is_constant_in_backward():
    weight = torch.randn(3, 4, 2, 2, requires_grad=True)
    _, scale = MagnitudeAwareSign()(weight)
    assert not scale.requires_grad


@pytest.mark.parametrize("how", ["code", "paper"])
def test_filter_of_zeros_is_finite(how):
    weight = torch.zeros(2, 4, requires_grad=True)
    signs, scale = MagnitudeAwareSign(how)(weight)
    (signs * scale[:, None]).sum().backward()
    assert (signs == 1).all()
    assert weight.grad.isfinite().all()


def test_activation_gradient():
    gm = bnnfx.convert(Chain(), "bireal")
    x = torch.tensor([[-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0]], requires_grad=True)
    (gm.conv1_sign(x) * 3).sum().backward()
    assert x.grad.tolist() == [[0, 0, 3, 6, 4.5, 0, 0]]


@pytest.mark.parametrize("how", ["code", "paper"])
def test_option_reaches_the_layer(how):
    gm = bnnfx.convert(Chain(), "bireal", config=Config(options={"weight_gradient": how}))
    assert gm.conv1.binarizer.weight_gradient == gm.fc1.binarizer.weight_gradient == how
