"""XNOR-Net: the projection of the latent weight, the product rule, the open clip of the activations."""

import pytest
import torch
from helpers.models import Chain, SharedLayer, loss_of

import bnnfx
from bnnfx.nn import BinaryConv2d, BinaryLinear
from bnnfx.schemes.xnor import CentredScaledSign

OUT, IN = 5, 4


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def layer(spread=1.0):
    made = BinaryConv2d(IN, OUT, 3, bias=False, binarizer=CentredScaledSign()).double()
    with torch.no_grad():
        made.weight.copy_(torch.randn(OUT, IN, 3, 3) * spread + 0.3)
    return made


def bits():
    return torch.where(torch.randn(2, IN, 6, 6) >= 0, 1.0, -1.0).double()


def projected(weight):
    """`clamp(W - mean over the input channels, -1, 1)`."""
    return (weight - weight.mean(1, keepdim=True)).clamp(-1, 1)


def test_training_projects_the_latent_weight():
    made = layer()
    latent, pointer = made.weight.detach().clone(), made.weight.data_ptr()
    made.train()(bits())
    assert torch.equal(made.weight, projected(latent))
    assert made.weight.data_ptr() == pointer
    assert (made.weight.abs() == 1).any()


def test_evaluation_computes_with_the_projection_and_keeps_the_latent_weight():
    made, x = layer(), bits()
    latent = made.weight.detach().clone()
    result = made.eval()(x)
    assert torch.equal(made.weight, latent)
    w = projected(latent)
    scale = w.abs().flatten(1).mean(1)
    wanted = torch.nn.functional.conv2d(x, torch.where(w >= 0, 1.0, -1.0).double()) * scale.view(-1, 1, 1)
    assert torch.equal(result, wanted)
    assert not torch.equal(torch.where(w >= 0, 1, -1), torch.where(latent >= 0, 1, -1))


@pytest.mark.parametrize("spread", [0.2, 1.0, 3.0])
def test_weight_gradient_is_the_product_rule(spread):
    """`alpha 1[|W| <= 1] g_i + sign(W_i) / n * sum_j g_j sign(W_j)`, at the projected weight, with g that of W_b."""
    made, x = layer(spread), bits()
    made.train()
    w = projected(made.weight.detach())
    upstream = torch.randn(2, OUT, 4, 4, dtype=torch.float64)
    (made(x) * upstream).sum().backward()
    binary = torch.zeros_like(w, requires_grad=True)
    (torch.nn.functional.conv2d(x, binary) * upstream).sum().backward()
    g, signs = binary.grad.flatten(1), torch.where(w >= 0, 1.0, -1.0).double().flatten(1)
    n = g.shape[1]
    alpha = w.flatten(1).abs().mean(1, keepdim=True)
    inside = (w.flatten(1).abs() <= 1).double()
    wanted = alpha * inside * g + signs / n * (g * signs).sum(1, keepdim=True)
    # torch's |w| has no slope at 0, and no weight is exactly 0 here; sums of some hundred terms in double
    assert (w != 0).all()
    torch.testing.assert_close(made.weight.grad.flatten(1), wanted, rtol=0, atol=1e-12 * float(g.abs().max()) * n)


def test_second_step_projects_again():
    made = layer()
    made.train()(bits())
    with torch.no_grad():
        made.weight.add_(5)
    made(bits())
    assert made.weight.abs().max() <= 1


def test_linear_layer_centres_each_filter():
    made = BinaryLinear(8, 3, binarizer=CentredScaledSign())
    with torch.no_grad():
        made.weight.copy_(torch.rand(3, 8) + 0.5)
    signs, _ = made.eval().binary_weight()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}


def test_projection_is_no_step_of_autograd():
    """A layer that is called twice in one forward projects twice; backward must accept that."""
    model = SharedLayer()
    gm = bnnfx.convert(model, "xnor")
    loss_of(gm, model.inputs()).backward()
    assert gm.conv.weight.grad.isfinite().all()
    assert gm.conv.weight.grad.count_nonzero() > 0


def test_activation_gradient_is_open_at_one():
    gm = bnnfx.convert(Chain(), "xnor")
    x = torch.tensor([[-2.0, -1.0, -0.999, 0.0, 0.999, 1.0, 2.0]], requires_grad=True)
    (gm.conv1_sign(x) * 3).sum().backward()
    assert x.grad.tolist() == [[0, 0, 3, 3, 3, 0, 0]]


def test_conversion_does_not_project():
    model = Chain()
    gm = bnnfx.convert(model, "xnor", example_inputs=model.inputs())
    assert torch.equal(gm.conv1.weight, model.conv1.weight)
    bnnfx.lower(gm, model.inputs())
    assert torch.equal(gm.conv1.weight, model.conv1.weight)
