import pytest
import torch
from helpers.graphs import golden
from helpers.lowering import assert_lowers_exactly, run_lower_pass, trainable
from torch import nn

from bnnfx.passes.lower.drop_inference_identities import DropInferenceIdentities


def test_golden():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Identity(), nn.Flatten()
    )
    gm = trainable(model)
    ran = run_lower_pass(DropInferenceIdentities, gm, torch.randn(2, 3, 5, 5))
    assert ran.before == golden("""
        input_1 = input
        _0_sign = SignActivation 0_sign(input_1)
        _0 = BinaryConv2d 0(_0_sign)
        _0_bn = BatchNorm2d 0_bn(_0)
        _2_sign = SignActivation 2_sign(_0_bn)
        _1 = Dropout 1(_2_sign)
        _2 = BinaryConv2d 2(_1)
        _2_bn = BatchNorm2d 2_bn(_2)
        _3 = AdaptiveAvgPool2d 3(_2_bn)
        _4 = Identity 4(_3)
        _5 = flatten(_4, 1, -1)
        return _5
    """)
    assert ran.after == golden("""
        input_1 = input
        _0_sign = SignActivation 0_sign(input_1)
        _0 = BinaryConv2d 0(_0_sign)
        _0_bn = BatchNorm2d 0_bn(_0)
        _2_sign = SignActivation 2_sign(_0_bn)
        _2 = BinaryConv2d 2(_2_sign)
        _2_bn = BatchNorm2d 2_bn(_2)
        _5 = flatten(_2_bn, 1, -1)
        return _5
    """)
    assert ran.report.applied == ["_1", "_4", "_3"] and ran.report.changed
    assert_lowers_exactly(gm, torch.randn(2, 3, 5, 5))


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d((3, 1))])
def test_adaptive_pooling_that_pools_stays(pool):
    ran = run_lower_pass(
        DropInferenceIdentities, trainable(nn.Sequential(nn.Conv2d(3, 4, 3), pool)), torch.randn(2, 3, 5, 5)
    )
    assert type(pool).__name__ in ran.after and not ran.report.applied and not ran.report.changed


def test_dropout_as_the_output_and_with_two_readers():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop, self.out = nn.Conv2d(3, 3, 1), nn.Dropout(), nn.Dropout2d()

        def forward(self, x):
            x = self.drop(self.conv(x))
            return self.out(x + x.mean())

    ran = run_lower_pass(DropInferenceIdentities, trainable(Model()), torch.randn(2, 3, 5, 5))
    assert "Dropout" in ran.before and "Dropout" not in ran.after
    assert ran.after.endswith("return add")
