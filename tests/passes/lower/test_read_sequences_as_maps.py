import pytest
import torch
from helpers.graphs import golden
from helpers.lowering import assert_lowers_exactly, run_lower_pass, trainable
from helpers.tokens import Tokens
from torch import nn

import bnnfx
from bnnfx.passes.lower.read_sequences_as_maps import ReadSequencesAsMaps


class Between(nn.Module):
    """Two linear layers with something between."""

    def __init__(self, between, *, width=6):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(5, 6), nn.Linear(width, 4), between
        self.scale, self.shift = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(3, 6))

    def forward(self, x):
        return self.b(self.between(self, self.a(x)))


def network(between, shape=(2, 3, 5), **options):
    gm = trainable(Between(between, **options))
    return gm, torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_golden():
    gm, x = network(lambda net, y: torch.tanh(y) * net.scale)
    ran = run_lower_pass(ReadSequencesAsMaps, gm, x)
    norm = "a_bn_running_mean, a_bn_running_var, a_bn_weight, a_bn_bias, 1e-05"
    assert (
        golden(f"""
        a_packed = binary_conv2d(a_sign, a_weight_bits, a_scale, a_bias, 5, [1, 1], [0, 0], [1, 1], 1, -1, 1)
        permute_1 = permute(a_packed, [0, 2, 3, 1])
        a = squeeze(permute_1, 1)
        a_bn = frozen_batch_norm(a, {norm}, -1)
        tanh = Tanh tanh_tanh(a_bn)
        mul = mul(tanh, scale)
        unsqueeze_1 = unsqueeze(mul, 1)
        permute_2 = permute(unsqueeze_1, [0, 3, 1, 2])
        b_sign = pack(permute_2, b_sign_threshold)
    """)
        in ran.before
    )
    assert (
        golden(f"""
        a_packed = binary_conv2d(a_sign, a_weight_bits, a_scale, a_bias, 5, [1, 1], [0, 0], [1, 1], 1, -1, 1)
        a_bn = frozen_batch_norm(a_packed, {norm})
        tanh = Tanh tanh_tanh(a_bn)
        mul = mul(tanh, scale_per_channel)
        b_sign = pack(mul, b_sign_threshold)
    """)
        in ran.after
    )
    assert_lowers_exactly(gm, x)


@pytest.mark.parametrize(
    "between",
    [
        lambda net, y: y,
        lambda net, y: y * 2.0 - y,
        lambda net, y: net.scale - y.relu(),
        lambda net, y: y + torch.nn.functional.gelu(y),
        lambda net, y: torch.maximum(y, y / net.scale),
        lambda net, y: torch.cat([y.sin(), y.sin()], -1)[..., :6],
    ],
)
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 4, 3, 5), (1, 2, 1, 3, 5)])
def test_no_view_is_left_between(between, shape):
    gm, x = network(between, shape)
    after = run_lower_pass(ReadSequencesAsMaps, gm, x).after
    cut = "getitem" in after
    assert after.count("permute(") == (4 if cut else 2)  # into the first layer, and out of the last
    assert_lowers_exactly(gm, x)


@pytest.mark.parametrize(
    "between",
    [
        lambda net, y: y * net.shift,  # a constant per token
        lambda net, y: y.softmax(-1),
        lambda net, y: y - y.mean(1, keepdim=True),
        lambda net, y: y.cumsum(1),
        lambda net, y: torch.cat([y, y], 1),
        lambda net, y: y.transpose(0, 1),
    ],
)
def test_what_works_on_tokens_stays(between):
    gm, x = network(between)
    ran = run_lower_pass(ReadSequencesAsMaps, gm, x)
    assert [name for name in ran.report.applied if name != "b_bn"] == ["a_bn"]
    assert_lowers_exactly(gm, x)


def test_several_readers():
    """Of tokens, of the map, and the graph's output; the residual is read as a map of its own."""
    gm, model = trainable(Tokens(6), keep_float=("first", "last")), Tokens(6)
    (x,) = model.inputs()
    ran = run_lower_pass(ReadSequencesAsMaps, gm, x)
    assert {"add_1", "add_2"} < set(ran.report.applied)
    assert bnnfx.verify(gm, bnnfx.lower(gm, (x,)), model.inputs(3))


def test_a_parameter_per_token_is_none_per_channel():
    """torch's PReLU takes axis 1 for the channels, which is that of the tokens."""
    model = nn.Sequential(nn.Linear(5, 6), nn.PReLU(3), nn.Linear(6, 4))
    gm, x = trainable(model), torch.randn(2, 3, 5)
    ran = run_lower_pass(ReadSequencesAsMaps, gm, x)
    assert ran.report.applied == ["_0_bn", "_2_bn"]
    assert_lowers_exactly(gm, x)
