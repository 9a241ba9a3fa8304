"""FunctionalizeInplace: bit for bit the model's function, with nothing in place left."""

import operator

import pytest
import torch
from helpers.graphs import golden, lines, run_pass
from helpers.models import HAZARDS, IMAGE, InplaceCalls, InplaceReadAgain, Model, conv3x3, flat
from torch import fx, nn

from bnnfx.config import Config
from bnnfx.graph.context import ConvertContext
from bnnfx.graph.pass_runner import run_passes
from bnnfx.graph.record import Record
from bnnfx.graph.stage import Stage
from bnnfx.passes.convert.functionalize_inplace import FunctionalizeInplace
from bnnfx.schemes import get_scheme


def test_later_reader_reads_what_was_written():
    ran = run_pass(FunctionalizeInplace, InplaceReadAgain())
    assert ran.before == golden("""
        x = input
        stem = Conv2d(x)
        mul = mul(stem, 2)
        relu = ReLU(stem)
        conv = Conv2d(relu)
        add = add(conv, mul)
        add_1 = add(add, stem)
        last = Conv2d(add_1)
        return last
    """)
    assert ran.after == ran.before.replace("add(add, stem)", "add(add, relu)")
    assert ran.report.applied == ["relu"]
    assert ran.gm.relu.inplace is False
    assert ran.report.changed


def test_functions_and_methods():
    ran = run_pass(FunctionalizeInplace, InplaceCalls())
    assert ran.after == golden("""
        x = input
        stem = Conv2d(x)
        relu = relu(stem)
        add = add(relu, relu)
        conv = Conv2d(add)
        relu_ = relu(conv)
        sub = sub(relu_, relu_)
        sub_1 = .sub(sub, 0.1)
        relu__1 = .relu(sub_1)
        add_1 = add(relu__1, relu__1)
        mul = mul(add_1, 1.5)
        add_ = .add(mul, relu)
        mul_1 = mul(add_, add_)
        relu_1 = ReLU relu(mul_1)
        sub_2 = sub(relu_1, mul_1)
        last = Conv2d(sub_2)
        return last
    """)
    assert ran.report.applied == ["relu", "relu_", "relu__1", "add_"]  # not the plain module called relu


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", HAZARDS)
def test_same_function(name, training):
    torch.manual_seed(0)
    model = HAZARDS[name]().train(training)
    gm = run_pass(FunctionalizeInplace, model).gm
    outputs = []
    for module in (model, gm):
        torch.manual_seed(1)  # the same dropout masks
        outputs.append(flat(module(*model.inputs())))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


class TwiceInplace(Model):
    """One in-place module called twice; both inputs are read again."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv3x3(3, 8), conv3x3(8, 8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.a(x)
        y = self.b(self.relu(x))
        return self.relu(y) + y + x


def test_second_call_of_a_module_is_still_in_place():
    model = TwiceInplace()
    ran = run_pass(FunctionalizeInplace, model)
    assert ran.after == golden("""
        x = input
        a = Conv2d(x)
        relu = ReLU(a)
        b = Conv2d(relu)
        relu_1 = ReLU relu(b)
        add = add(relu_1, relu_1)
        add_1 = add(add, relu)
        return add_1
    """)
    x = torch.randn(IMAGE)
    assert torch.equal(ran.gm(x), model(x))


def test_iadd_node():
    """torch.fx traces `+=` as an add; other producers of graphs do not."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.neg, (x,))
    z = graph.call_function(operator.iadd, (y, x))
    graph.output(graph.call_function(operator.sub, (z, y)))
    gm = fx.GraphModule(nn.Module(), graph)
    context = ConvertContext(get_scheme("xnor"), Config())
    run_passes(gm, (FunctionalizeInplace,), context, Record(Stage.TRACED))
    called = [(node.target, str(node.args)) for node in gm.graph.nodes if node.op == "call_function"]
    assert called == [(torch.neg, "(x,)"), (operator.add, "(neg, x)"), (operator.sub, "(iadd, iadd)")]


def test_inplace_module_that_gives_the_output():
    model = nn.Sequential(conv3x3(3, 8), conv3x3(8, 8), nn.ReLU(inplace=True))
    ran = run_pass(FunctionalizeInplace, model)
    assert lines(ran.gm, "ReLU") == ["_2 = ReLU 2(_1)"]
    x = torch.randn(IMAGE)
    assert torch.equal(ran.gm(x), model(x))


def test_nothing_in_place():
    ran = run_pass(FunctionalizeInplace, nn.Sequential(conv3x3(3, 8), nn.ReLU()))
    assert (ran.report.applied, ran.report.changed, ran.after) == ([], False, ran.before)
