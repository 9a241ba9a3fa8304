import pytest
import torch
from helpers.graphs import golden, run_pass
from helpers.models import Model
from helpers.tokens import ByHand
from torch import nn
from torch.nn import functional as F

import bnnfx
from bnnfx import Config
from bnnfx.passes.convert.call_layers_by_module import CallLayersByModule


def through(x, weight, bias=None):
    """A function that is given the weights of a module."""
    return F.linear(torch.tanh(x), weight, bias=bias)


class Given(Model):
    """The weights of layers that are never called, passed to functions; the first one to two of them."""

    shapes = ((2, 5, 8),)

    def __init__(self):
        super().__init__()
        self.stem, self.part = nn.Linear(8, 8), nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8, bias=False)})
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        a, b = self.part["a"], self.part["b"]
        x = through(self.stem(x), a.weight, a.bias)
        x = through(x, b.weight) + F.linear(input=x, weight=a.weight, bias=a.bias)
        return self.last(x)


def test_golden():
    ran = run_pass(CallLayersByModule, Given())
    assert ran.after == golden("""
        x = input
        stem = Linear(x)
        tanh = tanh(stem)
        linear = Linear part.a(tanh)
        tanh_1 = tanh(linear)
        linear_1 = Linear part.b(tanh_1)
        linear_2 = Linear part.a(linear)
        add = add(linear_1, linear_2)
        last = Linear(add)
        return last
    """)
    assert (ran.gm.part.a.in_features, ran.gm.part.b.bias) == (8, None)


@pytest.mark.parametrize("scheme", bnnfx.schemes())
def test_is_a_layer_under_its_name(scheme):
    model = Given()
    (x,) = model.inputs()
    bnn = bnnfx.convert(model, scheme, example_inputs=(x,), config=Config(options={}))
    rows = {row.name: row.binarized for row in bnnfx.explain(bnn).layers}
    assert rows == {"stem": False, "part.a": True, "part.b": True, "last": False}
    bnn = bnnfx.api.split_if_ternary(bnn.eval())
    assert bnnfx.verify(bnn, bnnfx.lower(bnn, (x,)), (x,))


@pytest.mark.parametrize("bias", [True, False])
def test_layer_written_by_hand(bias):
    model = nn.Sequential(nn.Linear(6, 8), ByHand(8, 8, bias), nn.Linear(8, 4))
    bnn = bnnfx.convert(model, "xnor", example_inputs=(torch.randn(4, 6),))
    assert bnnfx.explain(bnn)["1"].binarized
    assert not bnn.load_state_dict(model.state_dict(), strict=False).unexpected_keys


class Others(Model):
    """Calls that are none of a module with exactly these parameters."""

    shapes = ((2, 5, 8),)

    def __init__(self, call):
        super().__init__()
        self.a, self.b, self.weight = nn.Linear(8, 8), nn.Linear(8, 8), nn.Parameter(torch.randn(8, 8))
        self.call = call

    def forward(self, x):
        return self.call(self, x)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: F.linear(x, m.a.weight, m.b.bias),
        lambda m, x: F.linear(x, m.weight),
        lambda m, x: F.linear(x, m.a.weight * 2, m.a.bias),
        lambda m, x: F.linear(x, m.a.weight.t(), m.a.bias),
    ],
)
def test_stays_a_function(call):
    ran = run_pass(CallLayersByModule, Others(call))
    assert not ran.report.changed and "= linear(" in ran.after


def test_module_that_has_more():
    ran = run_pass(CallLayersByModule, Others(lambda m, x: F.linear(x, m.a.weight) + m.a.bias))
    assert "which has more than this weight and bias" in ran.refused["linear"]
    ran = run_pass(CallLayersByModule, Others(lambda m, x: F.linear(x, m.a.weight, m.a.bias)))
    assert ran.report.applied == ["linear"]


class ByHandConvolution(nn.Module):
    """A convolution that calls torch's function with its own parameters."""

    def __init__(self, shape, bias, axes, **settings):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.randn(shape[0])) if bias else None
        self.function, self.settings = (F.conv1d if axes == 1 else F.conv2d), settings

    def forward(self, x):
        return self.function(x, self.weight, self.bias, **self.settings)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (ByHandConvolution((8, 6, 3, 3), True, 2, padding=1, stride=[1, 2]), (4, 6, 7, 8)),
        (ByHandConvolution((9, 2, 3, 2), False, 2, groups=3, dilation=2), (4, 6, 7, 8)),
        (ByHandConvolution((8, 6, 4), True, 1, padding="same"), (4, 6, 11)),
    ],
)
def test_convolution_written_by_hand(layer, shape):
    kind = nn.Conv1d if len(shape) == 3 else nn.Conv2d
    model, x = nn.Sequential(kind(6, 6, 1), layer, kind(len(layer.weight), 4, 1)), torch.randn(shape)
    bnn = bnnfx.convert(model, "xnor", example_inputs=(x,)).eval()
    assert bnnfx.explain(bnn)["1"].binarized
    assert not bnn.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    assert bnnfx.verify(bnn, bnnfx.lower(bnn, (x,)), (x,))


class Borrowed(Model):
    """The weight of a convolution, called as a function with settings of the call."""

    shapes = ((2, 8, 6, 6),)

    def __init__(self, **settings):
        super().__init__()
        self.first, self.a, self.settings = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1), settings

    def forward(self, x):
        return self.a(self.first(x)) + F.conv2d(x, self.a.weight, self.a.bias, **self.settings)


def test_settings_of_the_module():
    assert run_pass(CallLayersByModule, Borrowed(padding=1)).report.applied == ["conv2d"]
    ran = run_pass(CallLayersByModule, Borrowed(padding=2, dilation=2))
    assert ran.refused["conv2d"] == "it is called with the weight of 'a', and not with its settings"
