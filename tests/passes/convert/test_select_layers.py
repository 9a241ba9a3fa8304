"""SelectLayers: every layer that stays float has a reason that a user can act on; the graph is not touched."""

import pytest
import torch
from helpers.graphs import run_pass
from helpers.models import (
    IMAGE,
    Bottleneck,
    Chain,
    FixedView,
    Grouped,
    Model,
    Residual,
    SharedLayer,
    SigmoidBeforeConv,
    UntraceableSubmodule,
    conv3x3,
)
from helpers.refusals import Doubled
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import bnnfx
from bnnfx import Config, ConversionError, LayerConfig
from bnnfx.passes.convert.select_layers import SelectLayers

ALL = Config(keep_float=())


def test_decides_and_changes_nothing():
    ran = run_pass(SelectLayers, Chain())
    assert ran.after == ran.before
    assert not ran.report.changed
    assert list(ran.context.binary) == ran.report.applied == ["conv1", "conv2", "fc1"]
    assert ran.refused == {
        "stem": "the first layer stays float",
        "fc2": "the last layer stays float",
    }


def test_the_remedy_works():
    config = eval(run_pass(SelectLayers, Chain()).remedies["stem"].partition(", or ")[0])
    assert "stem" in run_pass(SelectLayers, Chain(), config=config).context.binary


def test_downsample():
    ran = run_pass(SelectLayers, Residual(downsample=True))
    assert ran.refused["block.downsample.0"].startswith("the downsample layer stays float")
    assert ran.report.applied == ["block.conv1", "block.conv2"]


class OneConvolutionBlocks(Model):
    """Bi-Real Net's own layout: a shortcut around each convolution; then a block with a 1x1 layer on both sides."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.shortcut = conv3x3(3, 4), conv3x3(4, 8), nn.Conv2d(4, 8, 1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.last = conv3x3(8, 8)

    def forward(self, x):
        x = self.stem(x)
        x = self.conv(x) + self.shortcut(x)
        return self.last(self.left(x) + self.right(x))


def test_downsample_beside_one_convolution():
    ran = run_pass(SelectLayers, OneConvolutionBlocks())
    assert ran.refused["shortcut"].startswith("the downsample layer stays float")
    assert ran.report.applied == ["conv", "left", "right"]


def test_1x1_convolutions_of_a_bottleneck_are_no_downsample():
    assert run_pass(SelectLayers, Bottleneck()).report.applied == ["conv1", "conv2", "conv3"]


def test_options_are_resolved():
    config = Config(options={"initial_share": 0.5}, layers={"fc1": LayerConfig(options={"centre": True})})
    binary = run_pass(SelectLayers, Chain(), "rbnn", config).context.binary
    assert binary["conv1"] == {"centre": False, "initial_share": 0.5, "weight_gradient": "code"}
    assert binary["fc1"] == {"centre": True, "initial_share": 0.5, "weight_gradient": "code"}


def test_by_configuration():
    ran = run_pass(SelectLayers, Chain(), config=Config(layers={"conv1": LayerConfig(binarize=False)}))
    assert ran.refused["conv1"] == "stays float because Config.layers says binarize=False"


def test_shared_layer_is_asked_once():
    ran = run_pass(SelectLayers, SharedLayer())
    assert ran.report.applied == ["conv"]


def test_layer_that_is_first_at_one_of_its_calls():
    model = SharedLayer()
    model.stem = model.bn = nn.Identity()
    model.conv = conv3x3(3, 3)
    model.last = nn.Sequential(conv3x3(3, 3), nn.Conv2d(3, 4, 1))
    ran = run_pass(SelectLayers, model)
    assert ran.refused["conv"].startswith("the first layer")


class One(Model):
    """A stem and one layer of interest."""

    def __init__(self, layer, shape=IMAGE):
        super().__init__()
        self.stem, self.layer, self.plain = conv3x3(3, 8), layer, nn.Conv2d(8, 8, 1)
        self.shapes = (shape,)

    def forward(self, x):
        x = self.stem(x)
        return self.plain(x), self.layer(x)


REFUSED = {
    "transposed": (
        lambda: nn.ConvTranspose2d(8, 8, 2),
        "nn.ConvTranspose2d is not supported; nn.Conv1d, nn.Conv2d and nn.Linear are",
    ),
    "3d": (lambda: nn.Conv3d(8, 8, 1), "Conv3d is not supported"),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 1)), "its weight is parametrized"),
    "complex": (lambda: nn.Conv2d(8, 8, 1, dtype=torch.complex64), "its weight is torch.complex64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layer_that_cannot_be_binary(name):
    make, reason = REFUSED[name]
    ran = run_pass(SelectLayers, One(make()), config=ALL)
    assert reason in ran.refused["layer"]
    assert "plain" in ran.context.binary


def test_subclass_of_a_layer():
    model = One(Doubled(8, 8, 1))
    ran = run_pass(SelectLayers, model, config=ALL, inputs=model.inputs())
    assert ran.report.applied == ["stem", "plain"]
    assert ran.refused["layer"] == "helpers.refusals.Doubled is not supported; nn.Conv1d, nn.Conv2d and nn.Linear are"


def test_same_padding_of_an_odd_kernel():
    assert "layer" in run_pass(SelectLayers, One(nn.Conv2d(8, 8, 3, padding="same")), config=ALL).context.binary


def test_linear_layer_of_more_axes():
    """Its channels are the last axis, whatever stands between them and the batch."""
    model = One(nn.Linear(8, 8))
    ran = run_pass(SelectLayers, model, config=ALL, inputs=model.inputs())
    assert "layer" in ran.report.applied
    model = nn.Sequential(nn.Flatten(0), nn.Linear(24, 8))
    with pytest.raises(ConversionError, match=r"its input has shape \[24\]"):
        run_pass(SelectLayers, model, config=ALL, inputs=(torch.randn(4, 6),))


class FunctionalConvolution(Model):
    """A convolution called as a function, with a parameter of the model."""

    def __init__(self):
        super().__init__()
        self.conv, self.weight = conv3x3(3, 8), nn.Parameter(torch.randn(8, 8, 1, 1))

    def forward(self, x):
        return F.conv2d(self.conv(x), self.weight)


def test_function():
    ran = run_pass(SelectLayers, FunctionalConvolution(), config=ALL)
    assert ran.refused == {"conv2d": "conv2d is called as a function"}
    assert "make it a module" in ran.remedies["conv2d"]


def test_input_that_is_never_negative():
    ran = run_pass(SelectLayers, SigmoidBeforeConv())
    assert "because of 'sigmoid'" in ran.refused["gated"]
    assert ran.remedies["gated"] == "put a batch norm between 'sigmoid' and it"
    assert ran.report.applied == ["plain"]


@pytest.mark.parametrize(
    ("scheme", "model", "layer", "reason"),
    [
        ("xnor", Grouped, "depthwise", "each filter reads one input channel"),
        ("rbnn", lambda: One(nn.Conv2d(8, 8, 1, groups=8)), "layer", "single weight"),
    ],
)
def test_scheme_refuses(scheme, model, layer, reason):
    ran = run_pass(SelectLayers, model(), scheme, ALL)
    assert reason in ran.refused[layer]
    assert layer in run_pass(SelectLayers, model(), "bireal", ALL).context.binary


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_would_be_lost(register):
    model = Chain()
    getattr(model.conv1, register)(lambda *_: None)
    ran = run_pass(SelectLayers, model)
    assert "forward hooks" in ran.refused["conv1"]
    assert ran.report.applied == ["conv2", "fc1"]


def test_leaf_hides_its_layers():
    ran = run_pass(SelectLayers, UntraceableSubmodule())
    assert ran.report.applied == ["conv"]
    assert set(ran.refused) == {"stem", "last", "inner.0.conv"}
    assert ran.refused["inner.0.conv"].startswith("it is inside 'inner.0', which is kept as a float leaf")


def test_batch_size_of_the_input_is_not_its_value():
    """fc2 reads a view shaped by `x.size(0)`; that does not make it a first layer."""
    ran = run_pass(SelectLayers, FixedView())
    assert ran.report.applied == ["conv", "fc1", "fc2"]


class SecondInput(nn.Module):
    """Three layers; what is given besides the image meets the middle of them."""

    def __init__(self, wiring) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, 16, 3, padding=1) for n in (3, 16, 16))
        self.wiring = wiring

    def forward(self, x, other, scale=1.0):
        return self.wiring(self, x, other, scale)


@pytest.mark.parametrize(
    "wiring",
    [
        lambda m, x, other, scale: m.c(m.b(m.a(x) + other)),
        lambda m, x, other, scale: m.c(m.b(torch.cat([m.a(x), other], 1)[:, 3:])),
    ],
)
def test_reason_of_a_layer_that_reads_a_second_input(wiring):
    ran = run_pass(SelectLayers, SecondInput(wiring), config=Config(keep_float=("first",)))
    assert ran.refused["a"] == "the first layer stays float"
    assert ran.refused["b"].endswith("it reads the input 'other', beside what others give")


def test_an_argument_with_a_default_is_no_input():
    ran = run_pass(SelectLayers, SecondInput(lambda m, x, other, scale: m.c(m.b(m.a(x + other)) + scale)))
    assert "b" in ran.context.binary and "a" in ran.refused


def test_weight_that_is_given_to_a_function():
    class Functional(Chain):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(4, 2, bias=False)

        def forward(self, x):
            return super().forward(x) @ self.extra.weight.t()

    reason = bnnfx.explain(bnnfx.convert(Functional(), "xnor"))["extra"].findings[0].reason
    assert reason == "forward does not call it, but gives its weight to 't'"


def test_most_frequent_reason_is_named():
    layers = [nn.Conv2d(8, 8, 1), *(nn.ConvTranspose2d(8, 8, 1) for _ in range(3)), nn.Conv2d(8, 8, 1)]
    reason = r"5 layer\(s\) stay float, 3 of them as '1': nn\.ConvTranspose2d is not supported"
    with pytest.raises(ConversionError, match=reason):
        bnnfx.convert(nn.Sequential(*layers), "xnor")
