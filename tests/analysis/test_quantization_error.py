"""Quantization error: formulas worked out by hand, the Gaussian figures, and the rotation's share."""

import json
import math

import pytest
import torch
from helpers.models import Chain, SharedLayer
from torch import nn

import bnnfx
from bnnfx.analysis import quantization_error
from bnnfx.analysis.quantization_error import GAUSSIAN_COSINE, alignment
from bnnfx.analysis.weight_histogram import histograms
from bnnfx.nn import BinaryConv2d, BinaryLinear
from bnnfx.numerics.rotation import rotate, standardize
from bnnfx.schemes.rbnn import RotatedSign

DOUBLE = torch.finfo(torch.float64).eps


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def linear(weight, **options):
    layer = BinaryLinear(weight.shape[1], weight.shape[0], bias=False, **options)
    layer.weight = nn.Parameter(weight)
    return layer


def rotated_layer(weight, cycles=0, share=1.0):
    layer = linear(weight, binarizer=RotatedSign(weight, initial_share=share))
    for _ in range(cycles):
        layer.between_epochs()
    return layer


def test_worked_out_by_hand():
    """(3, -1): cosine 4 / (sqrt(2) sqrt(10)), best scale 2, which is the mean magnitude, error 2/10."""
    layer = quantization_error(linear(torch.tensor([[3.0, -1.0]])))[""]
    assert layer.weight.cosine == pytest.approx(4 / math.sqrt(20), abs=8 * DOUBLE)
    assert layer.weight.error == pytest.approx(0.2, abs=8 * DOUBLE)
    assert layer.own_scale_error == pytest.approx(0.2, abs=8 * DOUBLE)
    assert layer.weight.angle == pytest.approx(math.degrees(math.acos(4 / math.sqrt(20))))
    assert layer.used == layer.weight
    assert (layer.filters, layer.fan_in, layer.random, layer.rotated) == (1, 2, None, None)


def test_several_filters():
    """Errors add up over the layer, the cosine is a mean over filters: a large filter weighs more in the error."""
    weight = torch.tensor([[10.0, 0.0], [1.0, 1.0]])
    layer = quantization_error(linear(weight))[""]
    assert layer.weight.cosine == pytest.approx((1 / math.sqrt(2) + 1) / 2, abs=8 * DOUBLE)
    assert layer.weight.error == pytest.approx(50 / 102, abs=8 * DOUBLE)


@pytest.mark.parametrize("bits", [torch.tensor([[1.0, -1.0, 1.0]]), torch.tensor([[-1.0, -1.0, -1.0]])])
def test_error_is_the_least_over_all_scales(bits):
    w = torch.tensor([[0.5, -2.0, 1.0]], dtype=torch.float64)
    found = alignment(w, bits.double())
    scales = torch.linspace(-2, 2, 4001, dtype=torch.float64)[:, None]
    errors = (w - scales * bits).square().sum(1) / w.square().sum()
    assert found.error == pytest.approx(float(errors.min()), abs=1e-6)  # the scales are 1e-3 apart; the error is flat
    assert found.error == pytest.approx(1 - found.cosine**2, abs=8 * DOUBLE)


def test_vertex_and_zero():
    exact = alignment(torch.tensor([[0.5, -0.5, 0.5]]).double(), torch.tensor([[1.0, -1.0, 1.0]]).double())
    assert exact.cosine == pytest.approx(1, abs=8 * DOUBLE) and exact.error == pytest.approx(0, abs=8 * DOUBLE)
    assert math.isfinite(exact.angle)
    zero = quantization_error(linear(torch.zeros(2, 3)))[""]
    assert (zero.weight.cosine, zero.weight.error, zero.own_scale_error) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("filters", "fan_in", "after"), [(16, 144, 0.833), (32, 288, 0.821), (64, 576, 0.811)], ids=str
)
def test_gaussian_filters(filters, fan_in, after):
    """Three cycles from a random rotation lift 0.798 by 0.01 to 0.03; a random one lifts nothing."""
    layer = quantization_error(rotated_layer(torch.randn(filters, fan_in), cycles=1))[""]
    assert layer.weight.cosine == pytest.approx(GAUSSIAN_COSINE, abs=0.01)
    assert layer.weight.error == pytest.approx(1 - GAUSSIAN_COSINE**2, abs=0.015)
    assert layer.random.cosine == pytest.approx(GAUSSIAN_COSINE, abs=0.01)
    assert layer.rotated.cosine == pytest.approx(after, abs=0.01)
    assert layer.rotated.cosine > max(layer.random.cosine, layer.weight.cosine) + 0.005
    assert layer.used.cosine == pytest.approx(layer.rotated.cosine, abs=1e-6)  # share A = 1, sin(pi/2) in float32


def test_heavy_tails_are_lifted_by_any_rotation():
    uniform = torch.rand(32, 288) - 0.5
    laplacian = uniform.sign() * torch.log1p(-2 * uniform.abs())
    layer = quantization_error(rotated_layer(laplacian, cycles=1))[""]
    assert layer.weight.cosine < 0.73  # 1/sqrt(2) for Laplacian weights
    assert layer.random.cosine == pytest.approx(GAUSSIAN_COSINE, abs=0.015)
    assert layer.random.cosine < layer.rotated.cosine < layer.random.cosine + 0.05


def test_rbnn_against_its_own_forward_pass():
    """`used` is what the layer binarizes: its signs are the layer's, at a share A between weight and rotated copy."""
    layer = rotated_layer(torch.randn(8, 36, dtype=torch.float64), cycles=1, share=0.6)
    found = quantization_error(layer)[""]
    w2 = standardize(layer.weight.detach())
    rotated = rotate(w2, layer.binarizer.r1.double(), layer.binarizer.r2.double())
    used = w2 + layer.binarizer.beta.detach().sin().abs()[:, None] * (rotated - w2)
    bits = layer.binary_weight()[0].detach()
    assert torch.equal(used >= 0, bits > 0)
    cosines = (used * bits).sum(1) / (used.norm(dim=1) * math.sqrt(36))
    assert found.used.cosine == pytest.approx(float(cosines.mean()), abs=36 * DOUBLE)
    assert found.used.cosine != found.rotated.cosine
    assert found.own_scale_error is None
    assert list(found.histograms) == ["weight", "rotated", "used"]


def test_own_scale_is_never_better_than_the_best():
    bnn = bnnfx.convert(Chain(), "bireal")
    error = quantization_error(bnn)
    assert list(error.layers) == ["conv1", "conv2", "fc1"]
    for layer in error.layers.values():
        # the mean magnitude is the best scale; it was rounded to float32
        assert layer.own_scale_error == pytest.approx(layer.weight.error, abs=1e-6)
        assert layer.own_scale_error >= layer.weight.error - 1e-12


def test_prepared_weights_of_xnor():
    """The centred weight is what is measured, in both modes, and the latent weight stays as it is."""
    bnn = bnnfx.convert(Chain(), "xnor")
    with torch.no_grad():
        bnn.conv1.weight += 0.3  # centring takes it off again
    before = bnn.conv1.weight.detach().clone()
    version = bnn.conv1.weight._version
    training, evaluating = quantization_error(bnn.train()), quantization_error(bnn.eval())
    assert training.to_dict() == evaluating.to_dict()
    assert torch.equal(bnn.conv1.weight, before) and bnn.conv1.weight._version == version
    centred = (before - before.mean(1, keepdim=True)).clamp(-1, 1).double().flatten(1)
    assert training["conv1"].weight == alignment(centred, torch.where(centred >= 0, 1.0, -1.0).double())


def test_conv_layers_and_shapes():
    layer = BinaryConv2d(6, 10, (3, 5), groups=2)
    found = quantization_error(nn.Sequential(layer))["0"]
    assert (found.filters, found.fan_in) == (10, 3 * 15)
    shared = quantization_error(bnnfx.convert(SharedLayer(), "rbnn"))
    assert list(shared.layers) == ["conv"]  # called twice, measured once


def test_random_state_and_repetition():
    layer = rotated_layer(torch.randn(4, 36))
    before = torch.get_rng_state()
    first, again, other = quantization_error(layer), quantization_error(layer), quantization_error(layer, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert first == again
    assert first[""].random != other[""].random and first[""].rotated == other[""].rotated


def test_histograms():
    found = quantization_error(rotated_layer(torch.randn(8, 36), cycles=1), bins=10)[""].histograms
    assert len({h.edges for h in found.values()}) == 1  # one range, to be overlaid
    for histogram in found.values():
        assert len(histogram.counts) == 10 and len(histogram.edges) == 11
        assert sum(histogram.counts) == 8 * 36
        assert histogram.edges[0] == -histogram.edges[-1]
    assert found["weight"].counts != found["rotated"].counts
    assert sum(histograms({"zero": torch.zeros(3)}, bins=4)["zero"].counts) == 3


def test_table_and_dictionary():
    for scheme, rotated in (("rbnn", True), ("bireal", False)):
        error = quantization_error(bnnfx.convert(Chain(), scheme))
        text = str(error)
        assert max(map(len, text.splitlines())) <= 110
        for word in ("conv1", "conv2", "fc1", "random rotation", "8 x 72", "0.798"):
            assert word in text
        plain = json.loads(json.dumps(error.to_dict(), allow_nan=False))
        assert [layer["name"] for layer in plain["layers"]] == ["conv1", "conv2", "fc1"]
        first = plain["layers"][0]
        assert (first["rotated"] is not None) == rotated
        assert first["weight"]["angle"] == error["conv1"].weight.angle
        assert sum(first["histograms"]["weight"]["counts"]) == 8 * 72


def test_no_binary_layer():
    with pytest.raises(
        ValueError, match=r"quantization_error needs binary layers, and this Linear has none; bnnfx\.con"
    ):
        quantization_error(nn.Linear(2, 2))
