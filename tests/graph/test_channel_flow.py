"""Channel axes: what is tied together, what is fixed and why, and networks that still run after being resized."""

import operator

import pytest
import torch
from helpers.graphs import run_pass
from helpers.models import HAZARDS, Grouped, ManyInputsOutputs, Model, Residual, SharedLayer, conv3x3
from torch import nn
from torch.nn import functional as F

from bnnfx.graph.channel_flow import follow_channels
from bnnfx.graph.channel_graph import ChannelGraph
from bnnfx.graph.resize import resize
from bnnfx.graph.shapes import infer_shapes
from bnnfx.passes.convert.canonicalize_calls import CanonicalizeCalls


def canonical(model):
    return run_pass(CanonicalizeCalls, model).gm


def follow(model, inputs=None):
    gm = canonical(model)
    return follow_channels(gm, {} if inputs is None else infer_shapes(gm, inputs))


def classes(model, inputs=None):
    return {tied.axes: tied for tied in follow(model, inputs).classes()}


def free(model, inputs=None):
    return [axes for axes, tied in classes(model, inputs).items() if tied.fixed is None]


def reasons(model, inputs=None):
    return {axes: tied.fixed for axes, tied in classes(model, inputs).items() if tied.fixed is not None}


class Net(Model):
    """A stem of 8 channels, whatever `between` makes of it, and a 1x1 convolution that gives the output."""

    def __init__(self, between, width=8, **modules):
        super().__init__()
        self.stem, self.conv = conv3x3(3, 8), conv3x3(8, 8)
        for name, module in modules.items():
            setattr(self, name, module)
        self.between, self.last = between, nn.Conv2d(width, 4, 1)

    def forward(self, x):
        return self.last(self.between(self, self.stem(x)))


LAST = "'last' is an output of the model"


def test_residual_ties_both_ends():
    assert free(Residual()) == [("stem.0", "block.conv2"), ("block.conv1",)]
    assert reasons(Residual()) == {("fc",): "'fc' is an output of the model"}
    assert free(Residual(downsample=True)) == [("stem.0",), ("block.downsample.0", "block.conv2"), ("block.conv1",)]


@pytest.mark.parametrize("join", [operator.add, operator.sub, operator.mul, torch.maximum, lambda a, b: a.mul(b)])
def test_elementwise_functions_tie(join):
    assert free(Net(lambda net, x: join(x, net.conv(x)))) == [("stem", "conv")]


def test_concatenation_ties_nothing():
    model = Net(lambda net, x: torch.cat([net.conv(x), x, x * 2], 1), 24)
    assert free(model) == [("stem",), ("conv",)]
    graph = follow(model)
    assert graph.width(graph.layers["last"].inputs) == 24
    assert graph.width(graph.layers["last"].inputs, {"stem": 5, "conv": 6}) == 16


@pytest.mark.parametrize("axis", [2, -1])
def test_concatenation_of_rows_or_columns_ties(axis):
    assert free(Net(lambda net, x: torch.cat([net.conv(x), x], dim=axis))) == [("stem", "conv")]


def test_concatenations_are_added_part_by_part():
    model = Net(lambda net, x: torch.cat([net.conv(x), x], 1) + torch.cat([x, x], 1), 16)
    assert free(model) == [("stem", "conv")]


def test_sum_of_differently_arranged_channels_is_fixed():
    model = Net(lambda net, x: torch.cat([net.conv(x), x], 1) + net.wide(x), 16, wide=conv3x3(8, 16))
    reason = "'add' combines it with channels that are arranged differently"
    assert reasons(model) == {("stem",): reason, ("conv",): reason, ("wide",): reason, ("last",): LAST}


def test_depthwise_passes_channels_on():
    assert free(Grouped())[:1] == [("stem",)]
    model = Net(lambda net, x: net.dw(torch.cat([net.conv(x), x], 1)), 32, dw=conv3x3(16, 32, groups=16))
    assert free(model) == [("stem",), ("conv",)]
    graph = follow(model)
    assert graph.width(graph.layers["last"].inputs, {"stem": 5}) == 26


def test_groups_ask_for_multiples():
    found = classes(Grouped())
    assert found[("stem",)].multiple == found[("grouped",)].multiple == 3
    assert found[("tall",)].multiple == 1


def test_groups_that_cut_through_a_part_fix_it():
    model = Net(lambda net, x: net.g(torch.cat([x, net.odd(x)], 1)), 6, odd=conv3x3(8, 7), g=conv3x3(15, 6, groups=3))
    reason = "'g' has 3 groups that cut through it"
    assert reasons(model) == {("stem",): reason, ("odd",): reason, ("last",): LAST}


def test_shared_layer_ties_what_it_reads():
    assert free(SharedLayer()) == [("stem", "conv")]


def test_input_fixes_what_is_added_to_it():
    reason = "'add' combines it with a value whose width is given from outside"
    assert reasons(ManyInputsOutputs())[("conv1",)] == reason
    assert reasons(ManyInputsOutputs())[("conv2",)] == "'conv2' is an output of the model"


@pytest.mark.parametrize("flatten", [lambda x: torch.flatten(x, 1), lambda x: x.view(x.size(0), -1)])
@pytest.mark.parametrize("size", [(2, 3, 8, 8), (2, 3, 6, 10)])
def test_flatten(flatten, size):
    features = 8 * size[2] * size[3]
    model = Net(
        lambda net, x: net.fc(net.drop(F.relu(net.bn(flatten(net.conv(x))))))[:, :, None, None],
        **{"bn": nn.BatchNorm1d(features), "drop": nn.Dropout(), "fc": nn.Linear(features, 8)},
    )
    assert free(model) == [("stem",), ("conv",)]
    graph = follow(model)
    assert graph.width(graph.layers["fc"].inputs, {"conv": 5}) == 5 * size[2] * size[3]


def test_concatenated_features():
    """Of two maps, whose sizes follow from the example inputs or a pool of a fixed size only."""

    def between(net, x):
        return net.fc(torch.cat([net.pool(x).flatten(1), net.conv(x).flatten(1)], 1))[:, :, None, None]

    def model():
        return Net(between, pool=nn.AdaptiveAvgPool2d((1, 2)), fc=nn.Linear(8 * 2 + 8 * 64, 8))

    assert free(model(), model().inputs()) == [("stem",), ("conv",)]
    reason = "'cat' concatenates it with features of maps whose size is not known"
    assert reasons(model())[("stem",)] == reasons(model())[("conv",)] == reason


KEPT = {
    "mean": lambda net, x: x.mean((2, 3), keepdim=True),
    "mean of rows": lambda net, x: net.fc(x.mean([-1, -2]))[:, :, None, None],
    "pad": lambda net, x: F.pad(x, (1, 1, 0, 2)),
    "every other pixel": lambda net, x: x[:, :, ::2, ::2],
    "interpolate": lambda net, x: F.interpolate(x, scale_factor=2),
    "size of another map": lambda net, x: F.interpolate(net.pool(x), size=x.shape[2:]),
    "size of another map, by number": lambda net, x: F.interpolate(x, size=(x.size(2) * 2, x.shape[-1] // 2)),
    "times the batch size": lambda net, x: x * x.size(0),
    "transposed convolution": lambda net, x: net.up(x)[:, :, :, 1:],
    "gelu": lambda net, x: F.gelu(x).abs(),
    "batch size": lambda net, x: net.fc(x.mean((2, 3)) + 0.5).view(x.size(0), 8, 1, 1),
    "a mean over channels": lambda net, x: net.one(x) * x,
}


@pytest.mark.parametrize("name", KEPT)
def test_channels_stay_apart(name):
    modules = {"one": nn.Conv2d(8, 1, 1), "fc": nn.Linear(8, 8), "pool": nn.MaxPool2d(2)}
    model = Net(KEPT[name], up=nn.ConvTranspose2d(8, 8, 2), **modules)
    assert ("stem",) in free(model)
    model(*model.inputs())


FIXING = {
    "width of another map": lambda net, x: x.view(x.size(0), x.shape[1:][0], -1, 4),
    "new tensor": lambda net, x: x + torch.ones(1, 8, 1, 1),
    "new tensor of a size": lambda net, x: x + x.new_ones((x.size(0), 8, 1, 1)),
    "transposed convolution with groups": lambda net, x: net.up(x),
    "chunk": lambda net, x: torch.cat(x.chunk(2, 1), 1),
    "view": lambda net, x: x.view(-1, 8, 64, 1),
    "permute": lambda net, x: x.permute(0, 1, 3, 2),
    "slice": lambda net, x: x[:, :8],
    "pad": lambda net, x: F.pad(x, (0, 0, 0, 0, 1, -1)),
    "parameter": lambda net, x: x * net.scale,
    "size": lambda net, x: x * x.shape[1],
    "conv2d": lambda net, x: F.conv2d(x, net.weight),
    "layer norm": lambda net, x: net.norm(x),
    "hooked": lambda net, x: net.hooked(x),
    "linear over columns": lambda net, x: net.fc(x),
}


@pytest.mark.parametrize("name", FIXING)
def test_fixed_by(name):
    hooked = nn.BatchNorm2d(8)
    hooked.register_forward_hook(lambda *_: None)
    model = Net(
        FIXING[name],
        **{"scale": nn.Parameter(torch.ones(1, 8, 1, 1)), "weight": nn.Parameter(torch.randn(8, 8, 1, 1))},
        **{"norm": nn.LayerNorm([8, 8, 8]), "hooked": hooked, "fc": nn.Linear(8, 8)},
        up=nn.ConvTranspose2d(8, 8, 2, groups=2),
    )
    assert ("stem",) in reasons(model)


def test_shared_parameter():
    model = Net(lambda net, x: net.other(net.conv(x)), other=conv3x3(8, 8))
    model.other.weight = model.conv.weight
    reason = "'conv' reads it and shares a parameter with another module"
    assert reasons(model) == {("stem",): reason, ("last",): LAST}


def test_group_norm_asks_for_multiples():
    model = Net(lambda net, x: net.norm(x), norm=nn.GroupNorm(4, 8))
    assert classes(model)[("stem",)].multiple == 4


@pytest.mark.parametrize("name", HAZARDS)
def test_read_only(name):
    """Following channels changes nothing, and every class of a model that runs has one width."""
    model = HAZARDS[name]()
    gm = canonical(model)
    before, code = {key: value.clone() for key, value in gm.state_dict().items()}, gm.code
    found = list(follow_channels(gm).classes())
    assert found
    assert gm.code == code
    assert all(torch.equal(before[key], value) for key, value in gm.state_dict().items())
    for tied in found:
        modules = [gm.get_submodule(axis) for axis in tied.axes]
        assert {module.weight.shape[0] for module in modules if not isinstance(module, nn.ConvTranspose2d)} == {
            tied.width
        }


def test_first_reason_is_kept_and_width_needs_positions():
    graph = ChannelGraph()
    channels = graph.add_axis("a", 4, rank=2, last=True)
    graph.fix(channels, "first")
    graph.fix(channels, "second")
    assert [tied.fixed for tied in graph.classes()] == ["first"]
    assert graph.width(channels) == 4


# resize


def test_resize_keeps_the_first_entries_and_draws_no_random_number():
    layer = nn.Conv2d(8, 6, 3)
    weight, bias, state = layer.weight.detach().clone(), layer.bias.detach().clone(), torch.random.get_rng_state()
    layer.weight.requires_grad_(False)
    resize(layer, 5, 4)
    assert torch.equal(layer.weight, weight[:4, :5]) and torch.equal(layer.bias, bias[:4])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (layer.in_channels, layer.out_channels, layer.weight.requires_grad, layer.bias.requires_grad) == (
        5,
        4,
        False,
        True,
    )
    assert layer(torch.randn(1, 5, 4, 4)).shape == (1, 4, 2, 2)


def test_resize_widens_with_new_values():
    layer = nn.Linear(3, 2)
    weight = layer.weight.detach().clone()
    resize(layer, 5, 4)
    assert torch.equal(layer.weight[:2, :3], weight)
    assert layer.weight.shape == (4, 5) and (layer.weight != 0).all() and layer.weight.abs().max() <= 1


@pytest.mark.parametrize(
    ("layer", "inputs", "outputs", "x"),
    [
        (nn.Conv2d(6, 12, 3, groups=6), 4, 8, (2, 4, 5, 5)),
        (nn.Conv2d(6, 12, 3, groups=3), 3, 6, (2, 3, 5, 5)),
        (nn.ConvTranspose2d(6, 4, 2), 5, 3, (2, 5, 3, 3)),
        (nn.BatchNorm2d(6), 4, 4, (2, 4, 3, 3)),
        (nn.BatchNorm2d(6, affine=False, track_running_stats=False), 4, 4, (2, 4, 3, 3)),
        (nn.BatchNorm1d(6), 9, 9, (2, 9)),
        (nn.GroupNorm(2, 6), 4, 4, (2, 4, 3, 3)),
        (nn.PReLU(6), 4, 4, (2, 4, 3, 3)),
        (nn.Linear(6, 4, bias=False), 4, 2, (2, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_resized_layers_run(layer, inputs, outputs, x):
    resize(layer.double(), inputs, outputs)
    result = layer(torch.randn(x, dtype=torch.float64))
    assert result.shape[1] == outputs
    assert result.isfinite().all()


def test_resize_keeps_running_statistics():
    norm = nn.BatchNorm2d(4)
    norm(torch.randn(3, 4, 2, 2))
    mean = norm.running_mean.clone()
    resize(norm, 6, 6)
    assert torch.equal(norm.running_mean[:4], mean) and norm.running_var[4:].tolist() == [1, 1]
    assert norm.num_batches_tracked == 1
