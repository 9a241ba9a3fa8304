import numpy as np
import pytest
import torch
from helpers.graphs import golden
from helpers.lowering import assert_lowers_exactly, run_lower_pass, trainable
from torch import nn

import bnnfx
from bnnfx.numerics import thresholds
from bnnfx.numerics.bits import unpack_bits
from bnnfx.passes.lower.fold_epilogue_to_threshold import FoldEpilogueToThreshold


def network(*between, bias=True, channels=4, scheme="bireal", **options):
    layers = [nn.Conv2d(3, channels, 3, padding=1, bias=bias), *between, nn.Conv2d(channels, 2, 1), nn.Flatten()]
    return trainable(nn.Sequential(*layers), scheme, **options), torch.randn(2, 3, 6, 7)


def test_golden():
    gm, x = network(nn.BatchNorm2d(4), nn.Hardtanh())
    ran = run_lower_pass(FoldEpilogueToThreshold, gm, x)
    assert (
        golden("""
        _0 = binary_conv2d(_0_sign, _0_weight_bits, _0_scale, _0_bias, 3, [1, 1], [1, 1], [1, 1], 1, -1, 1)
        _1 = frozen_batch_norm(_0, _1_running_mean, _1_running_var, _1_weight, _1_bias, 1e-05)
        _2 = Hardtanh 2(_1)
        _3_sign = pack(_2, _3_sign_threshold)
    """)
        in ran.before
    )
    assert (
        golden("""
        _0_sign = pack(input_1, _0_sign_threshold)
        _3_sign = binary_conv2d_threshold(_0_sign, _0_weight_bits, _0_threshold, _0_flip, 3, [1, 1], [1, 1], [1, 1], 1, -1)
        _3 = binary_conv2d(_3_sign,
    """)  # noqa: E501
        in ran.after
    )
    assert ran.report.applied == ["_3_sign"]
    assert_lowers_exactly(gm, x)


@pytest.mark.parametrize("bias", [False, True])
def test_threshold_and_direction(bias):
    """scale 1/2, accumulators -3 .. 3 (no padding): 0.5 z + bias, compared with 0 in both directions and not at all."""
    gm = trainable(nn.Sequential(nn.Conv2d(3, 4, 1, bias=bias), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))
    layer, norm = gm.get_submodule("0"), gm.get_submodule("1")
    layer.weight.data.fill_(0.5)
    if bias:
        layer.bias.data.fill_(-0.5)
    norm.eps = 0.0
    norm.running_var.fill_(1.0)
    norm.running_mean.fill_(0.0)
    norm.weight.data.copy_(torch.tensor([1.0, -1.0, 0.0, 0.0]))
    norm.bias.data.copy_(torch.tensor([0.0, 0.0, 1.0, -1.0]))
    ran = run_lower_pass(FoldEpilogueToThreshold, gm, torch.randn(2, 3, 5, 5))
    flip = unpack_bits(ran.gm.get_buffer("_0_flip").numpy(), 4).tolist()
    threshold = ran.gm.get_buffer("_0_threshold")
    # z >= 1 (bias: 0.5 z - 0.5 >= 0, z = 1 is exactly 0); -z >= 0 is not(z >= 1), with the bias not(z >= 3); 1; 0
    assert flip == [False, True, False, False]
    assert threshold.dtype == torch.int32 and threshold.tolist() == [1, 3 if bias else 1, -3, 4]


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.Hardswish()])
def test_an_expression_that_rises_and_falls(activation):
    """Of 28 accumulators some lie in the dip, where the shifted activation is negative between two positive sides."""
    gm, x = network(activation, nn.BatchNorm2d(4))
    norm = gm.get_submodule("2")
    norm.running_mean.fill_(-0.05)
    norm.running_var.fill_(1.0)
    norm.weight.data.fill_(1.0)
    norm.bias.data.zero_()
    gm.get_submodule("0").weight.data.mul_(2)
    ran = run_lower_pass(FoldEpilogueToThreshold, gm, x)
    assert ran.refused["_3_sign"] == "the float expression rises and falls with the accumulator in some channel"
    assert ran.before == ran.after
    assert_lowers_exactly(gm, x)


def test_centring_is_refused():
    gm, x = network(nn.BatchNorm2d(4), scheme="rbnn", centre=True)
    refused = run_lower_pass(FoldEpilogueToThreshold, gm, x).refused
    assert refused["_2_sign"].startswith("the threshold is computed from the activations at run time (centring)")


def test_average_pooling_mixes_values():
    gm, x = network(nn.BatchNorm2d(4), nn.AvgPool2d(2))
    ran = run_lower_pass(FoldEpilogueToThreshold, gm, x)
    assert ran.refused["_3_sign"] == "'_2' mixes values, so no threshold per channel stands for it"
    assert_lowers_exactly(gm, x)


def test_flattened_map_mixes_values():
    layers = [nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 2)]
    gm, x = trainable(nn.Sequential(*layers)), torch.randn(2, 3, 5, 5)
    ran = run_lower_pass(FoldEpilogueToThreshold, gm, x)
    assert "mixes values" in ran.refused["_3_sign"]
    assert_lowers_exactly(gm, x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.bn(self.a(x))
        return self.b(x) + x


def test_float_stream_that_goes_on():
    gm, x = trainable(Residual()), torch.randn(2, 3, 5, 5)
    ran = run_lower_pass(FoldEpilogueToThreshold, gm, x)
    assert ran.refused == {
        "a_sign": "its values come from 'x', not from one packed convolution alone",
        "b_sign": "'bn' is also read as float, so the float stream stays",
    }
    assert_lowers_exactly(gm, x)


class ReadBeforeTheNorm(Residual):
    def forward(self, x):
        x = self.a(x)
        return self.b(self.bn(x)), x


def test_accumulator_that_is_also_an_output():
    gm, x = trainable(ReadBeforeTheNorm()), torch.randn(2, 3, 5, 5)
    assert_lowers_exactly(gm, x)
    targets = [node.target for node in bnnfx.lower(gm, (x,)).graph.nodes]
    assert torch.ops.bnnfx.binary_conv2d_threshold.default not in targets


@pytest.mark.parametrize("channels", [1, 63, 64, 65])
def test_flip_of_channels_that_fill_no_word(channels):
    gm, x = network(nn.BatchNorm2d(channels), channels=channels)
    ran = run_lower_pass(FoldEpilogueToThreshold, gm, x)
    assert ran.gm.get_buffer("_0_flip").numel() == 8 * -(-channels // 64)
    assert_lowers_exactly(gm, x)


def test_a_threshold_off_by_one_is_noticed(monkeypatch):
    def shifted(values, bits):
        right = thresholds.from_table(values, bits)
        return thresholds.IntegerThreshold(right.threshold + np.int32(1), right.flip)

    torch.manual_seed(0)
    gm, x = network(nn.BatchNorm2d(4))
    assert_lowers_exactly(gm, x)
    monkeypatch.setattr("bnnfx.passes.lower.fold_epilogue_to_threshold.from_table", shifted)
    with pytest.raises(AssertionError):
        assert_lowers_exactly(gm, x)
