import numpy as np
import pytest
import torch
from helpers import ternary
from helpers.graphs import golden
from helpers.lowering import assert_lowers_exactly, run_lower_pass, trainable
from torch import nn

import bnnfx
from bnnfx.nn import BinaryConv2d, HeavisideActivation
from bnnfx.passes.lower.pack_layers import PackLayers


def test_golden_map_to_linear():
    """The linear layer behind a flatten reads the map itself, as a convolution of the map's size."""
    model = nn.Sequential(nn.Conv2d(3, 4, (3, 2), (1, 2), (1, 0), groups=1), nn.Flatten(), nn.Linear(24, 2))
    gm = trainable(model)
    x = torch.randn(2, 3, 3, 4)
    ran = run_lower_pass(PackLayers, gm, x)
    assert ran.after == golden("""
        input_1 = input
        _0_sign = pack(input_1, _0_sign_threshold)
        _0 = binary_conv2d(_0_sign, _0_weight_bits, _0_scale, _0_bias, 3, [1, 2], [1, 0], [1, 1], 1, -1, 1)
        _0_bn = frozen_batch_norm(_0, _0_bn_running_mean, _0_bn_running_var, _0_bn_weight, _0_bn_bias, 1e-05)
        _2_sign = pack(_0_bn, _2_sign_threshold)
        _2_packed = binary_conv2d(_2_sign, _2_weight_bits, _2_scale, _2_bias, 4, [1, 1], [0, 0], [1, 1], 1, -1, 1)
        _2 = flatten(_2_packed, 1)
        _2_bn = frozen_batch_norm(_2, _2_bn_running_mean, _2_bn_running_var, _2_bn_weight, _2_bn_bias, 1e-05)
        return _2_bn
    """)
    assert ran.report.applied == ["0", "2"]
    assert ran.gm.get_buffer("2_weight_bits").shape == (2, 3, 2, 8)
    assert_lowers_exactly(gm, x)


def test_golden_linear():
    ran = run_lower_pass(PackLayers, trainable(nn.Sequential(nn.Linear(6, 4))), torch.randn(2, 6))
    assert ran.after == golden("""
        input_1 = input
        reshape = reshape(input_1, (-1, 6, 1, 1))
        _0_sign = pack(reshape, _0_sign_threshold)
        _0_packed = binary_conv2d(_0_sign, _0_weight_bits, _0_scale, _0_bias, 6, [1, 1], [0, 0], [1, 1], 1, -1, 1)
        _0 = flatten(_0_packed, 1)
        _0_bn = frozen_batch_norm(_0, _0_bn_running_mean, _0_bn_running_var, _0_bn_weight, _0_bn_bias, 1e-05, -1)
        return _0_bn
    """)


@pytest.mark.parametrize("padding", ["same", "valid", (2, 1)])
def test_padding(padding):
    gm = trainable(nn.Sequential(nn.Conv2d(6, 4, 3, padding=padding, dilation=(1, 2), groups=2), nn.Flatten()))
    x = torch.randn(2, 6, 6, 7)
    ran = run_lower_pass(PackLayers, gm, x)
    pads = {"same": "[1, 2]", "valid": "[0, 0]", (2, 1): "[2, 1]"}[padding]
    assert f"6, [1, 1], {pads}, [1, 2], 2, -1, 1)" in ran.after
    assert_lowers_exactly(gm, x)


@pytest.mark.parametrize("scheme", ["bireal", "rbnn", "xnor"])
def test_bits_scale_and_bias_are_those_of_the_layer(scheme):
    gm = trainable(nn.Sequential(nn.Conv2d(70, 5, 3)), scheme)
    packed = run_lower_pass(PackLayers, gm, torch.randn(2, 70, 5, 5)).gm
    layer = gm.get_submodule("0")
    signs, scale = layer.binary_weight()
    bits = np.unpackbits(packed.get_buffer("0_weight_bits").numpy(), axis=-1, bitorder="little")
    assert (bits[..., :70] == (signs > 0).permute(0, 2, 3, 1).numpy()).all() and not bits[..., 70:].any()
    assert torch.equal(packed.get_buffer("0_scale"), scale) and torch.equal(packed.get_buffer("0_bias"), layer.bias)


def test_exact_zero_weights_are_noted():
    gm = trainable(nn.Sequential(nn.Conv2d(3, 4, 3)))
    gm.get_submodule("0").weight.data[0, 0] = 0.0
    (note,) = run_lower_pass(PackLayers, gm, torch.randn(2, 3, 5, 5)).report.notes
    assert note.subject == "0" and note.reason.startswith("9 weights are exactly zero")


class TwoReaders(nn.Module):
    """One float value, two binary layers: one pack serves both, unless the thresholds differ."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return self.a(x) + self.b(x)


def test_two_layers_share_one_pack():
    gm = trainable(TwoReaders())
    ran = run_lower_pass(PackLayers, gm, torch.randn(2, 3, 5, 5))
    assert ran.before.count("SignActivation") == 2 and ran.after.count("= pack(") == 1


def test_layer_called_twice_is_packed_once(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    gm = trainable(Shared())
    x = torch.randn(2, 3, 5, 5)
    ran = run_lower_pass(PackLayers, gm, x)
    assert ran.report.applied == ["conv", "conv"]
    bits = {t.data_ptr() for name, t in ran.gm.named_buffers() if "weight_bits" in name}
    assert len(bits) == 1
    assert_lowers_exactly(gm, x)


def test_run_time_threshold_is_traced_in_front_of_the_pack():
    gm = trainable(nn.Sequential(nn.Linear(6, 4)), "rbnn", centre=True)
    ran = run_lower_pass(PackLayers, gm, torch.randn(2, 6))
    assert ran.after.splitlines()[1:5] == [
        "mean = .mean(input_1, dim=(1,), keepdim=True)",
        "reshape = reshape(mean, (-1, 1, 1, 1))",
        "reshape_1 = reshape(input_1, (-1, 6, 1, 1))",
        "_0_sign = pack(reshape_1, reshape)",
    ]


def test_zeros_and_ones():
    """A 0 bit of BinaryDuo's split activations is 0."""
    layers = [nn.Conv2d(3, 4, 3), HeavisideActivation(), BinaryConv2d(4, 5, 3, padding=1, bias=False)]
    gm, x = ternary.trainable(nn.Sequential(*layers)).float(), torch.randn(2, 3, 5, 6)
    ran = run_lower_pass(PackLayers, gm, x)
    assert "_2 = binary_conv2d(_1, _2_weight_bits, _2_scale, _2_bias, 4, [1, 1], [1, 1], [1, 1], 1, 0, 1)" in ran.after
    assert float(ran.gm.get_buffer("1_threshold")) == 0.5
    assert_lowers_exactly(gm, x)


class Levels(HeavisideActivation):
    levels = (0.0, 2.0)


def test_other_levels_are_refused():
    gm = ternary.trainable(nn.Sequential(nn.Conv2d(3, 4, 3), Levels(), BinaryConv2d(4, 5, 3))).float()
    with pytest.raises(
        bnnfx.StageError, match=r"takes activations that are -1 or 1, or 0 or 1; those of '1' are 0 or 2\."
    ):
        bnnfx.lower(gm, (torch.randn(1, 3, 9, 9),))
