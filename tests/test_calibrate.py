"""calibrate: its numbers against a direct computation, and a model that is left as it was."""

import copy

import pytest
import torch
from helpers.models import IMAGE, Chain, DropoutBeforeLinear, ManyInputsOutputs, SharedLayer
from torch import nn

import bnnfx
from bnnfx import ExampleInputError, StageError, calibrate
from bnnfx.nn import ActivationBinarizer

DOUBLE = torch.finfo(torch.float64).eps


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def batches(count=3, size=4):
    return [torch.randn(size, *IMAGE[1:]) * (1 + i) + i for i in range(count)]


def norms(gm):
    return {name: m for name, m in gm.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def statistics(gm):
    return {name: [b.clone() for b in norm.buffers()] for name, norm in norms(gm).items()}


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))


@pytest.mark.parametrize("scheme", bnnfx.schemes())
def test_statistics_against_a_direct_computation(scheme):
    gm, data = bnnfx.convert(Chain(), scheme), batches()
    seen = calibrate(gm, data)
    assert list(seen.layers) == ["conv1_sign", "conv2_sign", "fc1_sign"]
    inputs, bits = {name: [] for name in seen.layers}, {name: [] for name in seen.layers}

    def watch(name):
        def hook(module, arguments, result):
            inputs[name].append(arguments[0])
            bits[name].append(result)

        gm.get_submodule(name).register_forward_hook(hook)

    for name in seen.layers:
        watch(name)
    gm.eval()
    with torch.no_grad():
        for x in data:
            gm(x)
    for name, layer in seen.layers.items():
        x, b = (torch.cat(t).transpose(0, 1).flatten(1) for t in (inputs[name], bits[name]))
        x = x.double()
        assert layer.count == x.shape[1]
        assert torch.equal(layer.positive, (b == 1).sum(1))
        assert torch.equal(layer.zeros, (x == 0).sum(1))
        assert torch.equal(layer.share_positive, (b == 1).double().mean(1))
        # sums of `count` doubles in two orders
        slack = layer.count * DOUBLE * float(x.abs().max())
        torch.testing.assert_close(layer.mean, x.mean(1), rtol=0, atol=slack)
        # E[x^2] - E[x]^2 cancels: an error of count * eps * max^2 under a root
        slack = layer.count * DOUBLE * float(x.square().max()) / float(x.std(1).min())
        torch.testing.assert_close(layer.spread, x.std(1, correction=0), rtol=0, atol=slack)


def test_statistics_do_not_depend_on_the_cut_into_batches():
    gm, data = bnnfx.convert(Chain(), "bireal"), batches(4)
    whole = calibrate(gm, [torch.cat(data)], batch_norm=False)
    parts = calibrate(gm, data, batch_norm=False)
    for name in whole.layers:
        # a convolution of another batch size may round otherwise: bits within rounding of 0 could move
        assert (whole[name].positive - parts[name].positive).abs().max() <= 1
        torch.testing.assert_close(whole[name].mean, parts[name].mean, rtol=1e-5, atol=1e-5)


def test_exact_zeros_are_counted():
    gm = bnnfx.convert(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1), nn.Identity()), "bireal", config=_all())
    x = torch.randn(2, 3, 4, 4)
    x[:, 1] = 0
    seen = calibrate(gm, [x])["1_sign"]
    assert seen.zeros.tolist() == [0, 32, 0]
    assert seen.share_positive[1] == 1.0


def _all():
    return bnnfx.Config(keep_float=())


def test_batch_norm_statistics_are_the_average_over_batches():
    gm, data = bnnfx.convert(Chain(), "bireal"), batches()
    with torch.no_grad():
        gm.bn0.running_mean.fill_(7.0)
        gm.bn0.num_batches_tracked.fill_(100)
    calibrate(gm, data)
    with torch.no_grad():
        maps = [gm.stem(x) for x in data]
    mean = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    var = torch.stack([m.transpose(0, 1).flatten(1).var(1) for m in maps]).mean(0)
    # float32 means of 256 values and an average of three
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(gm.bn0.running_mean, mean, rtol=256 * eps, atol=256 * eps)
    torch.testing.assert_close(gm.bn0.running_var, var, rtol=256 * eps, atol=256 * eps)
    assert gm.bn0.num_batches_tracked == 3


def test_statistics_are_taken_with_the_new_batch_norms():
    gm, data = bnnfx.convert(Chain(), "bireal"), [batches(1, 16)[0] * 3 + 5]
    old = calibrate(gm, data, batch_norm=False)["conv1_sign"]
    new = calibrate(gm, data)["conv1_sign"]
    # the map that the batch norm has just been estimated on: centred, up to eps and the unbiased variance
    assert new.mean.abs().max() < 1e-4 < old.mean.abs().max()
    assert (new.spread - 1).abs().max() < 1e-2


def test_batch_norms_are_left_if_asked():
    gm = bnnfx.convert(Chain(), "bireal")
    before = statistics(gm)
    calibrate(gm, batches(), batch_norm=False)
    assert equal(statistics(gm), before)
    calibrate(gm, batches())
    assert not equal(statistics(gm), before)


def test_modes_momenta_and_observers_are_restored():
    gm = bnnfx.convert(Chain(), "rbnn")
    gm.bn1.eval()
    gm.bn2.momentum = 0.3
    modes = {name: m.training for name, m in gm.named_modules()}
    calibrate(gm, batches())
    assert {name: m.training for name, m in gm.named_modules()} == modes
    assert (gm.bn0.momentum, gm.bn2.momentum) == (0.1, 0.3)
    assert all(m.statistics is None for m in gm.modules() if isinstance(m, ActivationBinarizer))
    assert all(p.grad is None for p in gm.parameters())


def test_parameters_are_not_changed():
    gm = bnnfx.convert(Chain(), "xnor")  # projects its latent weight in training mode
    before = copy.deepcopy(dict(gm.named_parameters()))
    calibrate(gm, batches())
    assert all(torch.equal(before[name], p) for name, p in gm.named_parameters())


def test_dropout_is_off():
    gm = bnnfx.convert(DropoutBeforeLinear(), "bireal")
    data = [torch.randn(4, 12)]
    first, second = (calibrate(gm, data)["fc2_sign"] for _ in range(2))
    assert torch.equal(first.positive, second.positive)


@pytest.mark.parametrize("empty", [[], iter(()), ()])
def test_no_batch(empty):
    gm = bnnfx.convert(Chain(), "bireal")
    before = statistics(gm)
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(gm, empty)
    assert equal(statistics(gm), before)
    assert gm.training and gm.bn0.training


def test_exception_restores_the_statistics():
    gm = bnnfx.convert(Chain(), "bireal")
    before = statistics(gm)
    with pytest.raises(
        ExampleInputError, match=r"Batch \d+ \(torch.float32 \[2, 5, 8, 8\] on cpu\) does not fit the model"
    ):
        calibrate(gm, [*batches(), torch.zeros(2, 5, 8, 8)])
    assert equal(statistics(gm), before)
    assert {m.training for m in gm.modules()} == {True}
    assert gm.bn0.momentum == 0.1
    assert all(m.statistics is None for m in gm.modules() if isinstance(m, ActivationBinarizer))


def test_iterator_is_enough():
    gm, again = (bnnfx.convert(copy.deepcopy(model), "bireal") for model in [Chain()] * 2)
    data = batches()
    first, second = calibrate(gm, iter(data)), calibrate(again, data)
    assert first["conv1_sign"].count == second["conv1_sign"].count == 3 * 4 * 64


def test_several_inputs_and_a_shared_layer():
    model = ManyInputsOutputs()
    seen = calibrate(bnnfx.convert(model, "rbnn"), [model.inputs(), list(model.inputs(1))])
    assert list(seen.layers) == ["conv1_sign"]
    seen = calibrate(bnnfx.convert(SharedLayer(), "rbnn"), batches())
    assert list(seen.layers) == ["conv_sign", "conv_sign_1"]


def test_prints_a_row_per_binarizer():
    text = str(calibrate(bnnfx.convert(Chain(), "rbnn"), batches()))
    for word in ("binarizer", "share of +1", "exact zeros", "conv1_sign", "conv2_sign", "fc1_sign"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("make", [Chain, lambda: bnnfx.lower(bnnfx.convert(Chain(), "xnor"), Chain().inputs())])
def test_other_stage(make):
    with pytest.raises(StageError, match=r"calibrate takes a graph in stage trainable, which bnnfx\.convert returns"):
        calibrate(make(), batches())


def test_batch_without_values():
    gm = bnnfx.convert(Chain(), "xnor")
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    with pytest.raises(ValueError, match="calibrate looks at values"):
        bnnfx.calibrate(gm, [Chain().inputs(), tuple(x.to("meta") for x in Chain().inputs())])
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())
