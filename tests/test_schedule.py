"""Schedule: which epochs it gives, what it calls when, and where its state lives."""

import copy

import pytest
import torch
from helpers.models import Chain
from torch import fx, nn

import bnnfx
from bnnfx import Schedule
from bnnfx.nn import ActivationBinarizer, BinaryConv2d, BinaryLinear, ScaledSign
from bnnfx.nn.sign import sign
from bnnfx.numerics.surrogates import clipped_identity


class Calls(ScaledSign):
    """Writes down what the schedule calls."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def on_epoch(self, progress):
        self.log.append(("anneal", progress))

    def between_epochs(self, weight):
        self.log.append(("recompute", torch.is_grad_enabled()))


class Bits(ActivationBinarizer):
    def __init__(self, log):
        super().__init__()
        self.log = log

    def binarize(self, x):
        return sign(x, clipped_identity)

    def on_epoch(self, progress):
        self.log.append(("activation", progress))


@pytest.fixture
def logged():
    log = []
    return nn.Sequential(Bits(log), BinaryConv2d(2, 2, 1, binarizer=Calls(log))), log


def test_calls_at_the_start_of_every_epoch(logged):
    model, log = logged
    seen = []
    for epoch in Schedule(model, 2):
        log.append(("epoch", epoch))
        seen.append(epoch)
    assert seen == [0, 1]
    assert log == [
        *(("activation", 0.0), ("anneal", 0.0), ("recompute", False), ("epoch", 0)),
        *(("activation", 0.5), ("anneal", 0.5), ("recompute", False), ("epoch", 1)),
    ]


def test_order_is_anneal_then_recompute_and_fractions_only_anneal(logged):
    model, log = logged
    schedule = Schedule(model, 4)
    schedule.step(1.5)
    schedule.step(2)
    schedule.step(4.0)
    assert [entry for entry in log if entry[0] != "activation"] == [
        ("anneal", 1.5 / 4),
        ("anneal", 0.5),
        ("recompute", False),
        ("anneal", 1.0),
        ("recompute", False),
    ]


def test_linear_layers_are_reached():
    log = []
    Schedule(nn.ModuleList([BinaryLinear(2, 2, binarizer=Calls(log))]), 1).step(0)
    assert log == [("anneal", 0.0), ("recompute", False)]


@pytest.mark.parametrize(("start", "epochs"), [(0, [0, 1, 2]), (2, [2]), (3, [])])
def test_start_epoch(start, epochs, logged):
    schedule = Schedule(logged[0], 3, start_epoch=start)
    assert len(schedule) == len(epochs)
    assert list(schedule) == epochs
    assert list(schedule) == epochs  # a schedule can be gone through again


@pytest.mark.parametrize(
    ("epochs", "start"), [(0, 0), (-1, 0), (3, 4), (3, -1), (2.5, 0), ("3", 0), (3, 0.5), (None, 0)]
)
def test_impossible_epochs(epochs, start):
    with pytest.raises(ValueError, match=f"epochs={epochs!r}, start_epoch={start!r}"):
        Schedule(BinaryLinear(2, 2), epochs, start_epoch=start)


@pytest.mark.parametrize("epoch", [-1, 3.1, float("nan")])
def test_step_outside(epoch):
    with pytest.raises(ValueError, match=r"epoch is in \[0, 3\]"):
        Schedule(BinaryLinear(2, 2), 3).step(epoch)


def test_graphs_in_which_nothing_changes():
    inputs = Chain().inputs()
    gm = bnnfx.convert(Chain(), "rbnn")
    for other in (Chain(), fx.symbolic_trace(Chain()), bnnfx.lower(gm, inputs), nn.Sequential(), "model.onnx", None):
        with pytest.raises(ValueError, match=f"nothing to anneal in this {type(other).__name__}"):
            Schedule(other, 3)
    assert list(Schedule(nn.Sequential(gm), 3)) == [0, 1, 2]


def test_wrapped_model_is_reached(logged):
    model, log = logged
    Schedule(nn.Sequential(nn.Identity(), model), 1).step(0)
    assert len(log) == 3


def test_state_is_in_the_checkpoint():
    """Going on from a checkpoint gives what an uninterrupted run gives."""
    torch.manual_seed(0)
    gm = bnnfx.convert(Chain(), "rbnn")
    other = bnnfx.convert(Chain(), "rbnn")
    list(Schedule(gm, 4))
    assert not torch.equal(gm.conv1.binarizer.r1, other.conv1.binarizer.r1)
    other.load_state_dict(gm.state_dict())
    for clone in (other, copy.deepcopy(gm)):
        assert torch.equal(clone.conv1.binarizer.t, gm.conv1.binarizer.t)
        assert torch.equal(clone.conv1_sign.t, gm.conv1_sign.t)
        assert torch.equal(clone.conv1.binarizer.r1, gm.conv1.binarizer.r1)
    x = Chain().inputs()
    assert torch.equal(other.eval()(*x), gm.eval()(*x))


def test_resumed_schedule_equals_the_whole_one():
    torch.manual_seed(0)
    whole = bnnfx.convert(Chain(), "rbnn")
    parts = copy.deepcopy(whole)
    list(Schedule(whole, 4))
    for epoch in Schedule(parts, 4):
        if epoch == 1:
            break
    resumed = copy.deepcopy(parts)
    list(Schedule(resumed, 4, start_epoch=2))
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_scheme_without_a_schedule_is_untouched():
    gm = bnnfx.convert(Chain(), "xnor")
    before = copy.deepcopy(gm.state_dict())
    list(Schedule(gm, 3))
    assert all(torch.equal(before[key], value) for key, value in gm.state_dict().items())
