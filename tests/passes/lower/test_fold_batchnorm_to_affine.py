import pytest
import torch
from helpers.graphs import golden
from helpers.lowering import run_lower_pass, trainable
from torch import nn

from bnnfx.passes.lower.fold_batchnorm_to_affine import FoldBatchNormToAffine


def test_golden_convolution():
    gm = trainable(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    ran = run_lower_pass(FoldBatchNormToAffine, gm, torch.randn(2, 3, 5, 5))
    assert ran.before.splitlines()[2:] == [
        "_0 = binary_conv2d(_0_sign, _0_weight_bits, _0_scale, _0_bias, 3, [1, 1], [0, 0], [1, 1], 1, -1, 1)",
        "_1 = frozen_batch_norm(_0, _1_running_mean, _1_running_var, _1_weight, _1_bias, 1e-05)",
        "return _1",
    ]
    assert ran.after.splitlines()[2:] == [
        "_0 = binary_conv2d(_0_sign, _0_weight_bits, _1_scale, _1_bias_1, 3, [1, 1], [0, 0], [1, 1], 1, -1, 1)",
        "return _0",
    ]
    assert ran.report.applied == ["_1"]


def test_golden_linear():
    """The fold reaches through the flatten of a 1x1 map."""
    gm = trainable(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))
    ran = run_lower_pass(FoldBatchNormToAffine, gm, torch.randn(2, 6))
    assert (
        golden("""
        _0 = flatten(_0_packed, 1)
        return _0
    """)
        in ran.after
    )
    assert "batch_norm" in ran.before and "batch_norm" not in ran.after


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_scale_and_bias_are_rounded_once(affine, bias):
    """Against exact arithmetic in double: each number is the nearest float32."""
    gm = trainable(nn.Sequential(nn.Conv2d(3, 64, 3, bias=bias), nn.BatchNorm2d(64, affine=affine)))
    packed = run_lower_pass(FoldBatchNormToAffine, gm, torch.randn(2, 3, 5, 5)).gm
    layer, norm = gm.get_submodule("0").double(), gm.get_submodule("1").double()
    gamma, beta = (norm.weight, norm.bias) if affine else (1.0, 0.0)
    scale = layer.weight.abs().flatten(1).float().mean(1).double()
    factor = gamma / (norm.running_var + 1e-5).sqrt()
    shift = ((layer.bias if bias else 0.0) - norm.running_mean) * factor + beta
    found = [packed.get_buffer(str(a.target)) for n in packed.graph.nodes if n.name == "_0" for a in n.args[2:4]]
    assert torch.equal(found[0], (scale * factor).float()) and torch.equal(found[1], shift.float())


class ReadWithoutTheNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return x + self.bn(x)  # the scheme inserts a batch norm of its own in front, for the add


def test_value_that_is_read_without_its_batchnorm():
    ran = run_lower_pass(FoldBatchNormToAffine, trainable(ReadWithoutTheNorm()), torch.randn(2, 3, 5, 5))
    assert ran.refused == {"bn": "'conv' is read without its batch norm too"}
    assert ran.report.applied == ["conv_bn"] and "bn = frozen_batch_norm(conv, bn" in ran.after


def test_batchnorm_of_a_flattened_map_is_no_match():
    gm = trainable(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(36)))
    ran = run_lower_pass(FoldBatchNormToAffine, gm, torch.randn(2, 3, 5, 5))
    assert ran.before == ran.after and not ran.refused


def test_shared_layer_with_one_batchnorm_per_call():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.a(self.conv(x)) + self.b(self.conv(-x))

    ran = run_lower_pass(FoldBatchNormToAffine, trainable(Shared()), torch.randn(2, 3, 5, 5))
    assert ran.report.applied == ["a", "b"] and "batch_norm" not in ran.after
    assert "_scale" in ran.after and ran.after.count("a_scale") == ran.after.count("b_scale") == 1
