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
        self.c = nn.Linear(8, 8, bias=False)
        self.call = call

    def forward(self, x):
        return self.call(self, x)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: F.linear(x, m.weight),
        lambda m, x: F.linear(x, m.a.weight * 2, m.a.bias),
        lambda m, x: F.linear(x, m.a.weight.t(), m.a.bias),
        lambda m, x: F.linear(torch.tanh(m.a.weight), m.weight),
    ],
)
def test_stays_a_function(call):
    ran = run_pass(CallLayersByModule, Others(call))
    assert not ran.report.changed and "= linear(" in ran.after


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: F.linear(x, m.a.weight, m.b.bias),
        lambda m, x: F.linear(x, m.a.weight),
        lambda m, x: F.linear(x, m.a.weight) + m.a.bias,
        lambda m, x: F.linear(x, m.a.weight, m.a.bias * 2),
        lambda m, x: F.linear(x, m.c.weight, m.a.bias),
    ],
)
def test_another_bias(call):
    """A sum of three values instead of two: each sum is rounded once, and no value is larger than their sizes."""
    model = Others(call)
    (x,) = model.inputs()
    ran = run_pass(CallLayersByModule, model)
    assert len(ran.report.applied) == 1 and " linear(" not in ran.after
    sizes = (x.abs() @ model.a.weight.abs().T + x.abs() @ model.c.weight.abs().T) + 4 * sum(
        layer.bias.abs() for layer in (model.a, model.b)
    )
    assert ((ran.gm(x) - model(x)).abs() <= 16 * torch.finfo(torch.float32).eps * sizes).all()


def test_module_that_has_more():
    class More(nn.Linear):
        pass

    model = Others(lambda m, x: F.linear(x, m.b.weight, m.b.bias) + m.b(x))
    model.b = More(8, 8)
    ran = run_pass(CallLayersByModule, model)
    assert "which has more than a weight and a bias" in ran.refused["linear"]


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


@pytest.mark.parametrize("bias", [None, torch.arange(8.0)])
def test_another_bias_of_a_convolution(bias):
    """A sum of three values instead of two, as of linear layers."""

    class Other(Borrowed):
        def forward(self, x):
            return self.a(self.first(x)) + F.conv2d(x, self.a.weight, bias, padding=1)

    model = Other()
    (x,) = model.inputs()
    ran = run_pass(CallLayersByModule, model)
    assert ran.report.applied == ["conv2d"] and "= conv2d(" not in ran.after
    terms = 8 * 9 + 4
    largest = float(x.abs().max() * model.a.weight.abs().max()) * terms + 16
    assert (ran.gm(x) - model(x)).abs().max() <= 4 * terms * torch.finfo(torch.float32).eps * largest
