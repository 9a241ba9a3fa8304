"""What every registered scheme must do; a new scheme is picked up by its name."""

import copy
import re

import pytest
import torch
from helpers.graphs import lowerable
from helpers.models import Chain, Grouped, Residual, loss_of
from torch import nn

import bnnfx
from bnnfx.nn import ActivationBinarizer, BinaryConv2d, BinaryLinear, WeightBinarizer
from bnnfx.schemes import get_scheme
from bnnfx.schemes.scheme import SCHEMES as REGISTRY

SCHEMES = bnnfx.schemes()
MODELS = {"chain": Chain, "residual": lambda: Residual(downsample=True), "grouped": Grouped}
cases = pytest.mark.parametrize(("scheme", "make"), [(s, m) for s in SCHEMES for m in MODELS.values()])


def binary_layers(gm):
    found = {name: m for name, m in gm.named_modules() if isinstance(m, BinaryConv2d | BinaryLinear)}
    assert found
    return found


def converted(scheme, make, seed=0):
    torch.manual_seed(seed)
    model = make()
    return bnnfx.convert(model, scheme), model.inputs()


def trained(scheme, make, steps=3, seed=0):
    gm, x = converted(scheme, make, seed)
    optimizer = torch.optim.SGD(gm.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    for _ in bnnfx.Schedule(gm, steps):
        optimizer.zero_grad()
        loss_of(gm, x).backward()
        optimizer.step()
    return gm, x


def test_the_schemes_are_there():
    assert {"binaryduo", "bireal", "rbnn", "xnor"} <= set(SCHEMES)
    assert sorted(SCHEMES) == SCHEMES


@cases
def test_every_parameter_gets_a_finite_gradient(scheme, make):
    gm, x = converted(scheme, make)
    loss_of(gm, x).backward()
    for name, parameter in gm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for name, layer in binary_layers(gm).items():
        assert layer.weight.grad.count_nonzero() > 0, name
    torch.optim.SGD(gm.parameters(), 0.05).step()
    assert all(p.isfinite().all() for p in gm.parameters())


@cases
def test_reproducible_with_a_seed(scheme, make):
    first, second = (trained(scheme, make)[0].state_dict() for _ in range(2))
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = trained(scheme, make, seed=1)[0].state_dict()
    assert any(not torch.equal(first[key], other[key]) for key in first)


@cases
def test_evaluation_changes_nothing_and_repeats(scheme, make):
    gm, x = trained(scheme, make)
    gm.eval()
    before = copy.deepcopy(gm.state_dict())
    with torch.no_grad():
        first, second = gm(*x), gm(*x)
    assert torch.equal(first, second)
    assert all(torch.equal(before[key], value) for key, value in gm.state_dict().items())


@cases
@pytest.mark.parametrize("training", [True, False])
def test_weights_are_signs_with_a_scale_per_filter(scheme, make, training):
    gm, _ = trained(scheme, make)
    gm.train(training)
    for layer in binary_layers(gm).values():
        signs, scale = layer.binary_weight()
        assert signs.shape == layer.weight.shape
        assert set(signs.unique().tolist()) == {-1.0, 1.0}
        assert scale.shape == (layer.weight.shape[0],)
        assert (scale > 0).all()


@cases
@pytest.mark.parametrize("training", [True, False])
def test_accumulators_are_integers(scheme, make, training, monkeypatch):
    """Of the right parity where nothing is padded, and within the fan-in; whole multiples of 1/2 for ternary inputs."""
    gm, x = trained(scheme, make)
    levels = get_scheme(scheme).activation(get_scheme(scheme).options).levels
    unit = min(abs(level) for level in levels if level)
    gm.train(training)
    seen = []
    for kind in (BinaryConv2d, BinaryLinear):

        def accumulate(layer, bits, signs, original=kind.accumulate):
            result = original(layer, bits, signs)
            seen.append((layer, bits, signs, result.detach()))
            return result

        monkeypatch.setattr(kind, "accumulate", accumulate)
    gm(*x)
    assert len(seen) == len(binary_layers(gm))
    for layer, bits, signs, z in seen:
        assert set(bits.unique().tolist()) <= set(levels)
        assert set(signs.unique().tolist()) <= {-1.0, 1.0}
        fan_in = layer.weight[0].numel()
        assert torch.equal(z / unit, (z / unit).round())
        assert z.abs().max() <= fan_in
        if levels == (-1.0, 1.0) and (isinstance(layer, BinaryLinear) or not any(layer.padding)):
            assert ((z - fan_in) % 2 == 0).all()


def test_accumulator_check_can_fail():
    layer = BinaryConv2d(4, 4, 3)
    z = layer.accumulate(torch.randn(1, 4, 5, 5), layer.weight)
    assert not torch.equal(z, z.round())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schedule_runs_to_its_end(scheme):
    gm, x = converted(scheme, Chain)
    for epoch in bnnfx.Schedule(gm, 4):
        loss = loss_of(gm, x)
        assert loss.isfinite(), epoch
        loss.backward()
    bnnfx.Schedule(gm, 4).step(4)
    assert loss_of(gm, x).isfinite()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_constant_and_zero_inputs_are_finite(scheme):
    """Images without any contrast, and weights that are all equal: no spread to divide by."""
    gm, _ = converted(scheme, Chain)
    with torch.no_grad():
        gm.conv1.weight.fill_(0.25)
        gm.conv2.weight.zero_()
    loss = loss_of(gm, (torch.zeros(2, 3, 8, 8),))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in gm.parameters())


@pytest.mark.parametrize("name", SCHEMES)
def test_parts(name):
    scheme = get_scheme(name)
    assert scheme.name == name
    assert scheme.title
    assert isinstance(scheme.activation(scheme.options), ActivationBinarizer)
    for layer in (nn.Conv2d(4, 6, 3), nn.Linear(6, 4)):
        assert scheme.refuses(layer) is None
        assert isinstance(scheme.weight(layer, scheme.options), WeightBinarizer)
    if scheme.nonlinearity is not None:
        assert isinstance(scheme.nonlinearity(), nn.Module)


@pytest.mark.parametrize("name", SCHEMES)
def test_cites_its_source(name):
    """The scheme, its module, and the binarizers that it defines name a paper."""
    scheme, paper = get_scheme(name), re.compile(r"\d{4}\.\d{4,5}")
    binarizer = scheme.weight(nn.Conv2d(4, 6, 3), scheme.options)
    module = __import__(type(binarizer).__module__, fromlist=["_"])
    assert paper.search(scheme.source)
    assert paper.search(module.__doc__)
    for kind in (type(binarizer), type(scheme.activation(scheme.options))):
        if kind.__module__ == module.__name__:
            assert re.search(r"Source: \S", kind.__doc__), kind


@pytest.mark.parametrize("scheme", SCHEMES)
def test_threshold_says_what_the_binarizer_does(scheme):
    """`lower` compares with `threshold` and nothing else, on values around it too."""
    gm, x = trained(scheme, Chain)
    seen = []
    for module in gm.modules():
        if isinstance(module, ActivationBinarizer):
            module.register_forward_hook(lambda module, inputs, bits: seen.append((module, inputs[0], bits)))
    gm(*x)
    assert len(seen) == 3
    for module, value, bits in list(seen):  # the calls below are seen too
        thresholds, levels = module.thresholds(value, value.ndim), module.levels
        assert len(thresholds) == len(levels) - 1
        expected = torch.full_like(value, levels[0])
        for threshold, level in zip(thresholds, levels[1:], strict=True):
            expected[value >= threshold] = level
        assert torch.equal(bits, expected)
        for threshold, below, above in zip(thresholds, levels, levels[1:], strict=False):
            if module.pointwise:
                edge = torch.broadcast_to(threshold, value.shape).clone()
                assert (module(edge) == above).all()
                assert (module(torch.nextafter(edge, edge - 1)) == below).all()


@cases
def test_lowers_and_exports(scheme, make, tmp_path):
    """Every scheme ends in one file that computes what its (split) trainable graph computes."""
    gm, x = trained(scheme, make)
    gm = lowerable(gm)
    packed = bnnfx.lower(gm, x)
    assert bnnfx.verify(gm, packed, x)
    assert bnnfx.verify(packed, bnnfx.export_onnx(packed, tmp_path / "model.onnx"), x)


def test_taken_name_is_refused():
    with pytest.raises(ValueError, match="'xnor' is registered already"):
        bnnfx.register_scheme(get_scheme("xnor"))


def test_own_scheme(monkeypatch):
    monkeypatch.setattr(REGISTRY, "_things", REGISTRY.known())
    bireal = get_scheme("bireal")
    own = bnnfx.Scheme("own", "One of mine", "here", bireal.activation, bireal.weight, bireal.options)
    bnnfx.register_scheme(own)
    assert "own" in bnnfx.schemes()
    assert set(binary_layers(bnnfx.convert(Chain(), "own"))) == {"conv1", "conv2", "fc1"}
