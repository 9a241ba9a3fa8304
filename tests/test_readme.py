"""The README's code runs as written."""

import re
from pathlib import Path

import torch
from torch import nn

import bnnfx

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


def _block(word: str) -> str:
    """The one block that has this word."""
    (block,) = (block for block in BLOCKS if word in block)
    return block


def _network() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 10)]
    return nn.Sequential(*layers)


def test_first_block_runs_from_float_to_onnx(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    batch = (torch.randn(4, 3, 8, 8), torch.randint(0, 10, (4,)))
    names = {"MyResNet": _network, "loader": [batch]}
    exec(_block("MyResNet").replace("epochs=90", "epochs=2"), names)
    assert names["logits"].shape == (4, 10)
    assert capsys.readouterr().out.count("equal: 0 of") == 1
    assert len(_block("MyResNet").splitlines()) <= 20


def test_summary_block_takes_every_form(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, x = _network(), torch.randn(4, 3, 8, 8)
    packed = bnnfx.lower(bnnfx.convert(model, "rbnn"), (x,))
    bnnfx.export_onnx(packed, "model.onnx")
    exec(_block("bnnfx.summary"), {"bnnfx": bnnfx, "model": model, "x": x, "packed": packed})
    assert capsys.readouterr().out.count("│ total") == 2


def test_report_block_writes_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, x = _network(), torch.randn(4, 3, 8, 8)
    bnn = bnnfx.convert(model, "rbnn")
    names = {"bnnfx": bnnfx, "model": model, "bnn": bnn, "packed": bnnfx.lower(bnn, (x,)), "x": x}
    exec(_block("bnnfx.report"), names)
    assert {path.name for path in tmp_path.iterdir()} == {"model.svg", "report.html"}


def test_config_block_is_a_valid_config():
    names: dict = {"bnnfx": bnnfx}
    exec(_block("bnnfx.Config"), names)
    assert names["config"].for_layer("layer4.0.conv1", nn.Conv2d).binarize is False


def test_analysis_block_runs(capsys):
    names = {"bnn": bnnfx.convert(_network(), "rbnn"), "loss": nn.functional.cross_entropy}
    names |= {"x": torch.randn(4, 3, 8, 8), "y": torch.randint(0, 10, (4,))}
    exec(_block("analysis"), names)
    assert "rotated" in capsys.readouterr().out


def test_binaryduo_block_runs():
    torch.manual_seed(0)
    names = {"bnnfx": bnnfx, "torch": torch, "model": _network(), "x": torch.randn(4, 3, 8, 8)}
    exec(_block("bnnfx.split"), names)
    with torch.no_grad():
        split, coupled = names["duo"].eval()(names["x"]), names["coupled"].eval()(names["x"])
    # no value of these few random ones is within rounding of a threshold; what rounds is the sum of 128 products
    torch.testing.assert_close(split, coupled, rtol=0, atol=128 * 2.0**-24 * float(coupled.abs().max()))


def test_table_lists_every_scheme():
    text = (Path(__file__).parents[1] / "README.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == bnnfx.schemes()
