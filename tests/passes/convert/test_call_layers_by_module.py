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
