"""Flips: each kind against a count by hand, over an ordinary training loop, and the log on disk."""

import json
import os
from itertools import pairwise

import pytest
import torch
from helpers.models import Chain
from torch import nn
from torch.nn import functional as F

import bnnfx
from bnnfx import ExportError
from bnnfx.analysis import FlipHistory, FlipRate
from bnnfx.nn import BinaryLinear


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def layer():
    made = BinaryLinear(4, 2, bias=False)
    made.weight.data.copy_(torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1]]))
    return made


def flip(module, *places):
    for row, column in places:
        module.weight.data[row, column] *= -1


def test_since_start_and_step_are_different_things():
    """A bit that turns over and back counts twice per step and not at all since the start."""
    module = layer()
    flips = FlipRate(module)
    assert flips.per_layer()[""].step == flips.per_layer()[""].since_start == 0.0
    flip(module, (0, 0), (1, 3))
    flips.update()
    flip(module, (0, 0))
    flips.update()
    row = flips.per_layer()[""]
    assert (row.since_start, row.step, row.rotation) == (1 / 8, 3 / 16, None)
    assert [record.layers[""].step for record in flips.history.records] == [2 / 8, 1 / 8]
    assert [record.layers[""].since_start for record in flips.history.records] == [2 / 8, 1 / 8]
    assert [record.update for record in flips.history.records] == [1, 2]


def test_zero_is_a_positive_weight():
    module = layer()
    module.weight.data[0, 0] = 0.0
    flips = FlipRate(module)
    module.weight.data[0, 0] = 1.0
    module.weight.data[0, 1] = -0.0
    flips.update()
    assert flips.per_layer()[""].since_start == 0.0


def test_every():
    """A record is the mean of its updates; the total is not touched by how they are grouped."""
    module = layer()
    flips = FlipRate(module, every=2)
    for places in ([(0, 0)], [(0, 1), (0, 2)], [(1, 0)]):
        flip(module, *places)
        flips.update()
    assert [(r.update, r.layers[""].step) for r in flips.history.records] == [(2, 3 / 16)]
    flips.update()
    assert [(r.update, r.layers[""].step) for r in flips.history.records] == [(2, 3 / 16), (4, 1 / 16)]
    assert flips.per_layer()[""].step == 4 / 32
    with pytest.raises(ValueError, match="every is a whole number of 1 or more; got 0"):
        FlipRate(module, every=0)


@pytest.mark.parametrize("scheme", bnnfx.schemes())
def test_training(scheme):
    """Against the bits of the forward pass, read off before and after every step."""
    bnn = bnnfx.convert(Chain(), scheme)
    names = ["conv1", "conv2", "fc1"]
    flips = FlipRate(bnn)
    optimizer = torch.optim.Adam(bnn.parameters(), 1e-2)
    (x,), y = Chain().inputs(), torch.tensor([0, 1])

    def bits():
        before = {name: p.detach().clone() for name, p in bnn.named_parameters()}
        found = {name: bnn.get_submodule(name).binary_weight()[0].detach() for name in names}  # may project
        with torch.no_grad():
            for name, p in bnn.named_parameters():
                p.copy_(before[name])
        return found

    course = [bits()]
    for _ in bnnfx.Schedule(bnn, epochs=2):
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(bnn(x), y).backward()
            optimizer.step()
            versions = [p._version for p in bnn.parameters()]
            flips.update()
            assert versions == [p._version for p in bnn.parameters()]
            course.append(bits())
    rows = flips.per_layer()
    assert list(rows) == names
    for name in names:
        taken = [int((a[name] != b[name]).sum()) for a, b in pairwise(course)]
        size = course[0][name].numel()
        assert sum(taken) > 0
        assert rows[name].step == sum(taken) / (4 * size)
        assert [r.layers[name].step for r in flips.history.records] == [t / size for t in taken]
        assert rows[name].since_start == float((course[0][name] != course[-1][name]).double().mean())
        assert (rows[name].rotation is not None) == (scheme == "rbnn")
    text = str(flips)
    assert "4 updates." in text and ("random rotation" in text) == (scheme == "rbnn")
    plain = json.loads(json.dumps(flips.to_dict()))
    assert plain["updates"] == 4 and plain["layers"]["fc1"]["step"] == rows["fc1"].step


def test_a_random_rotation_turns_half_of_the_signs():
    """0.49 to 0.51: of 9216 weights, half within four standard deviations, 4 * 0.5 / 96 = 0.02, as if independent."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 64, 3), nn.Conv2d(64, 4, 3))
    flips = FlipRate(bnnfx.convert(model, "rbnn"))
    row = flips.per_layer()["1"]
    assert row.rotation == pytest.approx(0.5, abs=0.02)
    assert row.since_start == 0.0


def test_history_on_disk(tmp_path):
    module = layer()
    flips = FlipRate(module)
    flip(module, (0, 0))
    flips.update()
    path = flips.history.save(tmp_path / "flips.json")
    assert FlipHistory.load(path) == flips.history
    flips.update()
    flips.history.save(str(path))
    assert FlipHistory.load(str(path)).records[1].update == 2
    assert os.listdir(tmp_path) == ["flips.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = FlipHistory([]).save(tmp_path / "flips.json")
    old = path.read_text()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ExportError, match="disk full"):
        FlipHistory([]).save(path)
    assert path.read_text() == old and os.listdir(tmp_path) == ["flips.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"records": [{}]}', '{"records": 3}'])
def test_not_a_history(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is no history of flips"):
        FlipHistory.load(path)


def test_no_binary_layer():
    with pytest.raises(ValueError, match="FlipRate needs binary layers, and this Linear has none"):
        FlipRate(nn.Linear(2, 2))
