import torch
from helpers.graphs import golden
from helpers.lowering import run_lower_pass, trainable
from torch import nn

from bnnfx.passes.lower.freeze_batchnorm import FreezeBatchNorm


def test_golden():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.BatchNorm1d(36, eps=1.0)
    )
    ran = run_lower_pass(FreezeBatchNorm, trainable(model), torch.randn(2, 3, 5, 5))
    assert ran.before == golden("""
        input_1 = input
        _0_sign = SignActivation 0_sign(input_1)
        _0 = BinaryConv2d 0(_0_sign)
        _1 = BatchNorm2d 1(_0)
        _2 = flatten(_1, 1, -1)
        _3 = BatchNorm1d 3(_2)
        return _3
    """)
    assert ran.after == golden("""
        input_1 = input
        _0_sign = SignActivation 0_sign(input_1)
        _0 = BinaryConv2d 0(_0_sign)
        _1 = frozen_batch_norm(_0, _1_running_mean, _1_running_var, None, None, 1e-05)
        _2 = flatten(_1, 1, -1)
        _3 = frozen_batch_norm(_2, _3_running_mean, _3_running_var, _3_weight, _3_bias, 1.0)
        return _3
    """)
    assert ran.report.applied == ["1", "3"] and not ran.refused


def test_train_cannot_turn_it_back():
    ran = run_lower_pass(
        FreezeBatchNorm, trainable(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), torch.randn(2, 3, 5, 5)
    )
    x = torch.randn(4, 3, 5, 5)
    expected, statistics = ran.gm.eval()(x), ran.gm.get_buffer("1.running_mean").clone()
    assert torch.equal(ran.gm.train()(x), expected)
    assert torch.equal(ran.gm.get_buffer("1.running_mean"), statistics)


def test_without_running_statistics_it_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    ran = run_lower_pass(FreezeBatchNorm, trainable(model), torch.randn(2, 3, 5, 5))
    assert "keeps no running statistics" in ran.refused["1"]
    assert "track_running_stats=True" in ran.remedies["1"]
    assert ran.before == ran.after and not ran.report.changed


def test_one_batchnorm_called_twice():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(self.conv(self.bn(x)))

    ran = run_lower_pass(FreezeBatchNorm, trainable(Model()), torch.randn(2, 3, 5, 5))
    assert ran.report.applied == ["bn", "bn"] and ran.after.count("batch_norm(") == 2
