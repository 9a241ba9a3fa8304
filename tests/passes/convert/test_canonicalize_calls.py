"""CanonicalizeCalls: one spelling each, and bit for bit the model's function."""

import pytest
import torch
from helpers.graphs import golden, lines, run_pass
from helpers.models import HAZARDS, Functional, InplaceCalls, flat
from torch import nn
from torch.nn import functional as F

from bnnfx.errors import StageError
from bnnfx.graph.stage import Stage, check_contract
from bnnfx.passes.convert.canonicalize_calls import CanonicalizeCalls


def test_every_alias():
    ran = run_pass(CanonicalizeCalls, Functional())
    assert ran.after == golden("""
        x = input
        stem = Conv2d(x)
        relu = ReLU relu_relu(stem)
        conv = Conv2d(relu)
        add = add(conv, relu)
        relu_1 = ReLU relu_1_relu(relu)
        add_1 = add(add, relu_1)
        getitem = getitem(relu, (slice(None, None, None), slice(None, 4, None)))
        getitem_1 = getitem(relu, (slice(None, None, None), slice(4, None, None)))
        concat = cat([getitem, getitem_1], 1)
        add_2 = add(add_1, concat)
        relu_2 = ReLU relu_2_relu(add_2)
        max_pool2d = MaxPool2d max_pool2d_maxpool2d(relu_2)
        avg_pool2d = AvgPool2d avg_pool2d_avgpool2d(max_pool2d)
        adaptive_avg_pool2d = AdaptiveAvgPool2d adaptive_avg_pool2d_adaptiveavgpool2d(avg_pool2d)
        leaky_relu = LeakyReLU leaky_relu_leakyrelu(adaptive_avg_pool2d)
        hardtanh = Hardtanh hardtanh_hardtanh(leaky_relu)
        view = flatten(hardtanh, 1, -1)
        reshape = flatten(hardtanh, 1, -1)
        add_3 = add(view, reshape)
        flatten = flatten(hardtanh, 1, -1)
        add_4 = add(add_3, flatten)
        flatten_1 = flatten(hardtanh, 1, -1)
        add_5 = add(add_4, flatten_1)
        flatten_2 = flatten(hardtanh, 1, -1)
        add_6 = add(add_5, flatten_2)
        dropout = Dropout dropout_dropout(add_6)
        fc1 = Linear(dropout)
        relu6 = ReLU6 relu6_relu6(fc1)
        sigmoid = Sigmoid sigmoid_sigmoid(relu6)
        fc2 = Linear(sigmoid)
        softmax = Softmax softmax_softmax(fc2)
        return softmax
    """)
    with pytest.raises(StageError, match="node 'relu' is spelled as relu"):
        check_contract(torch.fx.symbolic_trace(Functional()), Stage.CANONICAL)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", HAZARDS)
def test_same_function(name, training):
    torch.manual_seed(0)
    model = HAZARDS[name]().train(training)
    gm = run_pass(CanonicalizeCalls, model).gm
    outputs = []
    for module in (model, gm):
        torch.manual_seed(1)  # the same dropout masks
        outputs.append(flat(module(*model.inputs())))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_functional_dropout_follows_the_mode():
    model = Functional()
    x = model.inputs()
    for training in (True, False):
        gm = run_pass(CanonicalizeCalls, model.train(training)).gm
        gm.train()
        assert not torch.equal(gm(*x), gm(*x))
        gm.eval()
        assert torch.equal(gm(*x), model.eval()(*x))


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.conv(x))


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda x: torch.add(x, x, alpha=2), "add = add(conv, conv, alpha=2)"),
        (lambda x: x.view(torch.int32), "view = .view(conv, torch.int32)"),
        (lambda x: x.view(x.numel()), "view = .view(conv, numel)"),
        (lambda x: F.dropout(x, 0.5, training=False), "dropout = dropout(conv, p=0.5, training=False, inplace=False)"),
        (lambda x: F.leaky_relu(x, x.size(0)), "leaky_relu = leaky_relu(conv, negative_slope=size, inplace=False)"),
        (
            lambda x: F.softmax(x, 1, dtype=torch.float64),
            "softmax = softmax(conv, dim=1, _stacklevel=3, dtype=torch.float64)",
        ),
    ],
)
def test_what_means_something_else_stays(function, line):
    ran = run_pass(CanonicalizeCalls, Calls(function))
    assert line in ran.after.splitlines()
    assert ran.report.applied == []


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda x: x.flatten(start_dim=2, end_dim=3), ["flatten = flatten(conv, 2, 3)"]),
        (lambda x: torch.flatten(x, 1), ["flatten = flatten(conv, 1)"]),
        (lambda x: torch.flatten(x, start_dim=1), ["flatten = flatten(conv, 1, -1)"]),
        (lambda x: x.view((x.size()[0], -1)), ["view = flatten(conv, 1, -1)"]),
        (lambda x: torch.reshape(x, (x.shape[0], -1)), ["reshape = flatten(conv, 1, -1)"]),
    ],
)
def test_flatten(function, wanted):
    model, x = Calls(function), torch.randn(2, 3, 4, 4)
    ran = run_pass(CanonicalizeCalls, model)
    assert lines(ran.gm, "flatten") == wanted
    assert torch.equal(ran.gm(x), model(x))


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda x: x.view(2, -1), "view = reshape(conv, (2, -1))"),
        (lambda x: x.view(x.size(1), -1), "view = reshape(conv, (size, -1))"),
        (lambda x: x.reshape([x.shape[0], 4, -1]), "reshape = reshape(conv, (getitem, 4, -1))"),
        (lambda x: x.view(x.shape), "view = reshape(conv, getattr_1)"),
        (lambda x: x.view(x.size()), "view = reshape(conv, size)"),
    ],
)
def test_reshape(function, wanted):
    """The same for a map of any layout in memory, where `view` fails."""
    model, x = Calls(function), torch.randn(2, 3, 4, 4)
    ran = run_pass(CanonicalizeCalls, model)
    assert lines(ran.gm, "reshape(") == [wanted]
    strided = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ran.gm(x), model(x))
    assert torch.equal(ran.gm(strided), function(model.conv(strided).contiguous()))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat([x, x], dim=1),
        lambda x: torch.cat(tensors=[x, x], dim=1),
        lambda x: torch.cat(axis=1, tensors=[x, x]),
        lambda x: torch.concat([x, x], dim=1),
        lambda x: torch.concatenate([x, x], axis=1),
    ],
)
def test_concatenation(function):
    model, x = Calls(function), torch.randn(2, 3, 4, 4)
    ran = run_pass(CanonicalizeCalls, model)
    (line,) = lines(ran.gm, "cat(")
    assert line.endswith(" = cat([conv, conv], 1)")
    assert torch.equal(ran.gm(x), model(x))


def test_in_place_spellings_are_gone():
    ran = run_pass(CanonicalizeCalls, InplaceCalls())
    assert "relu_(" not in ran.after
    assert len(lines(ran.gm, "ReLU")) == 4


def test_alias_that_gives_the_output():
    ran = run_pass(CanonicalizeCalls, Calls(torch.relu))
    assert ran.after.splitlines()[-2:] == ["relu = ReLU relu_relu(conv)", "return relu"]
