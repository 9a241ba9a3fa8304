import pytest
import torch
from helpers import ternary
from helpers.lowering import assert_lowers_exactly, run_lower_pass, trainable
from torch import nn

import bnnfx
from bnnfx.nn import HeavisideActivation, SignActivation
from bnnfx.numerics.surrogates import approx_sign
from bnnfx.passes.lower.compare_for_float_layers import CompareForFloatLayers


def test_float_layer_reads_a_comparison():
    gm = trainable(nn.Sequential(nn.Conv2d(3, 4, 3), HeavisideActivation(), nn.Conv2d(4, 2, 1)), keep_float=("last",))
    x = torch.randn(2, 3, 5, 5)
    ran = run_lower_pass(CompareForFloatLayers, gm, x)
    assert "_1 = compare(_0_bn, _1_threshold, 0.0, 1.0)" in ran.after
    assert "_2 = Conv2d 2(_1)" in ran.after
    assert "_0_sign = SignActivation" in ran.after and ran.report.applied == ["1"]
    assert_lowers_exactly(gm, x)


def test_binary_layers_go_on_reading_the_binarizer():
    def wiring(m, x):
        t = m.ta(m.s(x))
        return m.a(t) + t

    gm = bnnfx.split(ternary.trainable(ternary.wired(wiring))).float()
    x = torch.randn(2, 3, 8, 6)
    ran = run_lower_pass(CompareForFloatLayers, gm, x)
    assert "ta = HeavisideActivation" in ran.after and "a = BinaryConv2d(ta)" in ran.after
    assert "mean_of_halves = mean_of_halves(ta_compared)" in ran.after
    assert_lowers_exactly(gm, x)


def test_nan_and_ties():
    gm = trainable(nn.Sequential(nn.Conv2d(2, 2, 1), SignActivation(approx_sign), nn.Conv2d(2, 1, 1)), keep_float=())
    x = torch.tensor([[float("nan"), 1.0], [0.0, -0.0]]).view(2, 2, 1, 1)
    assert_lowers_exactly(gm, x)


def test_threshold_of_the_whole_map_is_refused():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(x)

    gm = trainable(Both(), "rbnn", centre=True)
    (sign,) = [node for node in gm.graph.nodes if "sign" in node.name]
    output = next(node for node in gm.graph.nodes if node.op == "output")
    output.args = ((output.args[0], sign),)
    gm.recompile()
    message = r"'conv_sign': its threshold is computed from the activations, and 'output' would .* binary layers alone"
    with pytest.raises(bnnfx.ConversionError, match=message):
        bnnfx.lower(gm, (torch.randn(1, 3, 5, 5),))
