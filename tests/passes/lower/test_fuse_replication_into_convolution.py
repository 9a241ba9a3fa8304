import pytest
import torch
from helpers.epilogues import block
from helpers.graphs import golden
from helpers.lowering import assert_lowers_exactly, run_lower_pass, trainable
from torch import nn

from bnnfx.passes.lower.fuse_replication_into_convolution import FuseReplicationIntoConvolution


class Twice(nn.Module):
    """A layer, `between`, two copies, a batch norm of all channels, another layer."""

    def __init__(self, between: nn.Module | None = None, outputs: int = 3) -> None:
        super().__init__()
        self.conv, self.between = nn.Conv2d(4, outputs, 3), between or nn.Identity()
        self.bn, self.last = nn.BatchNorm2d(2 * outputs), nn.Conv2d(2 * outputs, 2, 1)

    def forward(self, x):
        x = self.between(self.conv(x))
        return self.last(self.bn(torch.cat([x, x], 1)))


@pytest.fixture
def x():
    return torch.randn(2, 4, 7, 6, generator=torch.Generator().manual_seed(0))


def test_one_convolution_with_two_copies(x):
    ran = run_lower_pass(FuseReplicationIntoConvolution, trainable(Twice(nn.MaxPool2d(2))), x)
    window = "4, [1, 1], [0, 0], [1, 1], 1, -1"
    assert ran.before.splitlines()[:6] == [
        "x = input",
        "conv_sign = pack(x, conv_sign_threshold)",
        f"conv = binary_conv2d(conv_sign, conv_weight_bits, conv_scale, conv_bias, {window}, 1)",
        "between = MaxPool2d(conv)",
        "cat = cat([between, between], 1)",
        "bn = frozen_batch_norm(cat, bn_running_mean, bn_running_var, bn_weight, bn_bias, 1e-05)",
    ]
    assert ran.after.splitlines()[2:5] == [
        f"conv = binary_conv2d(conv_sign, conv_weight_bits, conv_scale_1, conv_bias_1, {window}, 2)",
        "between = MaxPool2d(conv)",
        "bn = frozen_batch_norm(between, bn_running_mean, bn_running_var, bn_weight, bn_bias, 1e-05)",
    ]
    assert ran.report.applied == ["cat"]
    assert [tuple(ran.context.shapes[n]) for n in ran.gm.graph.nodes if n.name in ("conv", "between")] == [
        *((2, 6, 5, 4), (2, 6, 2, 2))
    ]


@pytest.mark.parametrize(
    "between", [None, nn.MaxPool2d(2), nn.Hardtanh(), nn.PReLU(), nn.Sequential(nn.ReLU6(), nn.MaxPool2d(3, 2, 1))]
)
def test_lowers_exactly(x, between):
    gm = trainable(Twice(between, outputs=40))
    assert run_lower_pass(FuseReplicationIntoConvolution, gm, x).refused == {}
    assert_lowers_exactly(gm, x)


def test_behind_a_linear_layer():
    class Linears(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.bn, self.b = nn.Linear(9, 5), nn.BatchNorm1d(10), nn.Linear(10, 3)

        def forward(self, x):
            x = self.a(x)
            return self.b(self.bn(torch.cat([x, x], 1)))

    gm, x = trainable(Linears()), torch.randn(4, 9)
    assert run_lower_pass(FuseReplicationIntoConvolution, gm, x).report.applied == ["cat"]
    assert_lowers_exactly(gm, x)


@pytest.mark.parametrize("between", [nn.BatchNorm2d(3), nn.PReLU(3), nn.AvgPool2d(2)])
def test_what_differs_between_channels_or_mixes_values_stays(x, between):
    gm = trainable(Twice(between))
    ran = run_lower_pass(FuseReplicationIntoConvolution, gm, x)
    assert ran.refused == {"cat": "stays a node: it replicates what 'between' gives, not a packed convolution"}
    assert_lowers_exactly(gm, x)


def test_map_that_is_read_by_itself_too(x):
    class Both(Twice):
        def __init__(self):
            super().__init__()
            self.own = nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.conv(x)
            return self.last(self.bn(torch.cat([x, x], 1))) + self.own(x).mean()

    ran = run_lower_pass(FuseReplicationIntoConvolution, trainable(Both()), x)
    assert ran.refused == {"cat": "stays a node: 'conv' is also read without its copy"}


def test_two_replications_in_a_row(x):
    class Four(Twice):
        def __init__(self):
            super().__init__()
            self.bn, self.last = nn.BatchNorm2d(12), nn.Conv2d(12, 2, 1)

        def forward(self, x):
            x = self.conv(x)
            x = torch.cat([x, x], 1)
            return self.last(self.bn(torch.cat([x, x], 1)))

    gm = trainable(Four())
    ran = run_lower_pass(FuseReplicationIntoConvolution, gm, x)
    assert ran.refused == {"cat_1": "stays a node: the map is replicated already"}
    assert_lowers_exactly(gm, x)


def test_float_map_and_other_concatenations_stay(x):
    class Float(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = block(), block(), block(16, 2)

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return self.last(torch.cat([torch.cat([a, b], 1), torch.cat([x, x], 1)], 1))

    ran = run_lower_pass(FuseReplicationIntoConvolution, trainable(Float()), x)
    assert list(ran.refused) == ["cat_1"]
    assert golden(ran.before).count("cat(") == 3
