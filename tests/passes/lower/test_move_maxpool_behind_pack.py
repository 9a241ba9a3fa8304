import pytest
import torch
from helpers.graphs import golden
from helpers.lowering import assert_lowers_exactly, run_lower_pass, trainable
from torch import nn

from bnnfx.numerics.bits import unpack_bits
from bnnfx.passes.lower.move_maxpool_behind_pack import MoveMaxPoolBehindPack


def network(*between, size=8):
    gm = trainable(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *between, nn.Conv2d(4, 2, 1), nn.Flatten()))
    return gm, torch.randn(2, 3, size, size + 1, generator=torch.Generator().manual_seed(0))


def masks(gm):
    found = [node for node in gm.graph.nodes if node.target is torch.ops.bnnfx.max_pool2d.default]
    return [unpack_bits(gm.get_buffer(str(node.args[1].target)).numpy(), 4).tolist() for node in found]


def test_golden_pool_in_front_of_the_batchnorm():
    gm, x = network(nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.BatchNorm2d(4))
    gm.get_submodule("2").weight.data.copy_(torch.tensor([1.0, -1.0, 0.0, -0.5]))
    ran = run_lower_pass(MoveMaxPoolBehindPack, gm, x)
    norm = "2_running_mean, _2_running_var, _2_weight, _2_bias, 1e-05)"
    assert (
        golden(f"""
        _1 = MaxPool2d 1(_0)
        _2 = frozen_batch_norm(_1, _{norm}
        _3_sign = pack(_2, _3_sign_threshold)
        _3 = binary_conv2d(_3_sign,
    """)
        in ran.before
    )
    assert (
        golden(f"""
        _2 = frozen_batch_norm(_0, _{norm}
        _3_sign_unpooled = pack(_2, _3_sign_threshold)
        _3_sign = max_pool2d(_3_sign_unpooled, _3_sign_and_mask, [3, 3], [2, 2], [1, 1], [1, 1], 1)
        _3 = binary_conv2d(_3_sign,
    """)
        in ran.after
    )
    assert ran.report.applied == ["1"]
    assert masks(ran.gm) == [[False, True, False, True]]
    assert_lowers_exactly(gm, x)


@pytest.mark.parametrize(
    "between",
    [
        (nn.BatchNorm2d(4), nn.MaxPool2d(2)),
        (nn.BatchNorm2d(4), nn.Hardtanh(), nn.MaxPool2d((3, 2), (1, 2), (1, 0), ceil_mode=True)),
        (nn.MaxPool2d(2, dilation=2), nn.BatchNorm2d(4), nn.LeakyReLU(0.1)),
        (nn.MaxPool2d(2), nn.BatchNorm2d(4, affine=False), nn.PReLU(4)),
        (nn.MaxPool2d(3, 1, 1), nn.Hardtanh(-3, 3), nn.BatchNorm2d(4)),
    ],
    ids=["behind", "clamp", "dilation", "no gamma", "in front"],
)
def test_one_pool(between):
    gm, x = network(*between)
    ran = run_lower_pass(MoveMaxPoolBehindPack, gm, x)
    assert "= max_pool2d(" in ran.after and "MaxPool2d" not in ran.after
    assert_lowers_exactly(gm, x)


def test_several_pools_each_with_the_gammas_behind_it():
    gm, x = network(nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.MaxPool2d(2, 1), nn.BatchNorm2d(4), nn.MaxPool2d(2, 1))
    first, second = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    gm.get_submodule("2").weight.data.copy_(first)
    gm.get_submodule("4").weight.data.copy_(second)
    ran = run_lower_pass(MoveMaxPoolBehindPack, gm, x)
    assert ran.report.applied == ["5", "3", "1"]
    assert masks(ran.gm) == [(first * second < 0).tolist(), (second < 0).tolist(), [False] * 4]
    assert_lowers_exactly(gm, x)


def test_a_wrong_mask_is_noticed(monkeypatch):
    """With OR everywhere, channels of negative gamma come out wrong."""
    gm, x = network(nn.MaxPool2d(2), nn.BatchNorm2d(4))
    gm.get_submodule("2").weight.data.copy_(torch.tensor([1.0, -1.0, -1.0, -0.5]))
    assert_lowers_exactly(gm, x)
    monkeypatch.setattr(
        "bnnfx.passes.lower.move_maxpool_behind_pack.monotone_directions", lambda gm, node, shapes: torch.tensor(1.0)
    )
    with pytest.raises(AssertionError):
        assert_lowers_exactly(gm, x)


def falling_in_a_channel() -> nn.PReLU:
    prelu = nn.PReLU(4)
    prelu.weight.data[1] = -0.5
    return prelu


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.Hardswish(), falling_in_a_channel()])
def test_behind_the_pool_something_may_rise_and_fall(activation):
    gm, x = network(nn.MaxPool2d(2), nn.BatchNorm2d(4), activation)
    ran = run_lower_pass(MoveMaxPoolBehindPack, gm, x)
    assert "between pool and sign may rise and fall, so pooling stays on floats" in ran.refused["1"]
    assert ran.before == ran.after and not ran.report.changed
    assert_lowers_exactly(gm, x)


def falling_in_a_channel() -> nn.PReLU:
    prelu = nn.PReLU(4)
    prelu.weight.data[1] = -0.5
    return prelu


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU()])
def test_in_front_of_the_pool_it_does_not_matter(activation):
    gm, x = network(nn.BatchNorm2d(4), activation, nn.MaxPool2d(2))
    assert run_lower_pass(MoveMaxPoolBehindPack, gm, x).report.applied == ["3"]
    assert_lowers_exactly(gm, x)


class PoolReadAsFloat(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.pool, self.bn, self.b = nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.bn(self.pool(self.a(x)))
        return self.b(x).sum((2, 3)) + x.sum((1, 2, 3)).unsqueeze(1)


def test_value_with_two_readers():
    gm, x = trainable(PoolReadAsFloat()), torch.randn(2, 3, 6, 6)
    ran = run_lower_pass(MoveMaxPoolBehindPack, gm, x)
    assert ran.refused == {"pool": "'bn' is also read as float, so pooling stays on floats"}
    assert_lowers_exactly(gm, x)


class PoolOfFloats(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.a = nn.MaxPool2d(2), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.a(self.pool(x))


def test_pool_of_floats_stays():
    gm, x = trainable(PoolOfFloats()), torch.randn(2, 3, 6, 6)
    x[0, 0, 0, 0], x[1, 1, 2, 2] = float("nan"), -0.0
    ran = run_lower_pass(MoveMaxPoolBehindPack, gm, torch.randn(2, 3, 6, 6))
    assert ran.before == ran.after
    assert ran.refused == {"pool": "'x' gives it floats, which are fewer to pack once they are pooled"}
    assert_lowers_exactly(gm, x)


def test_pool_as_the_graph_output_is_no_match():
    gm = trainable(nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2)))
    ran = run_lower_pass(MoveMaxPoolBehindPack, gm, torch.randn(2, 3, 6, 6))
    assert ran.before == ran.after and not ran.refused


def test_windows_that_see_nothing_but_padding():
    """A dilated pool on a small map gives -inf there, which a clamp behind it makes a number that no bit stands for."""
    gm, x = network(nn.MaxPool2d(2, padding=1, dilation=3), nn.Hardtanh(), nn.BatchNorm2d(4), size=2)
    gm.get_submodule("3").bias.data.fill_(20.0)
    refused = run_lower_pass(MoveMaxPoolBehindPack, gm, x).refused
    assert refused == {"1": "its dilated windows see nothing but padding somewhere, so pooling stays on floats"}
    assert_lowers_exactly(gm, x)
