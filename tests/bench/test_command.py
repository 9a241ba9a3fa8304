"""`bnnfx bench`: what it prints, what it refuses, how it ends."""

import json
import os
import sys

import pytest
import torch
from helpers.models import Residual
from typer.testing import CliRunner

import bnnfx
from bnnfx.bench import model_forms
from bnnfx.cli import app
from bnnfx.errors import ModelSourceError

QUICK = ("--rounds", "2", "--no-memory")


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == code, result.output
    assert code == 0 or "Traceback" not in result.output
    return result


@pytest.fixture(autouse=True)
def wide_and_plain(monkeypatch, chain_files):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(chain_files)


def test_file_with_its_original():
    text = run("chain.onnx", "--float", "original.onnx", *QUICK).stdout
    for words in ("ONNX Runtime fp32", "ONNX Runtime int8", "bnnfx without kernels", "bnnfx with kernels", "1 thread"):
        assert words in text
    for words in ("BinaryConv2d", "of ceiling", "(1 other node)", "note: ONNX Runtime int8: 5 of 5"):
        assert words in text
    assert bnnfx.runtime.library.isas()[0] in text


def test_json_on_standard_output_is_all_there_is():
    result = run("chain.onnx", "--float", "original.onnx", "--threads", "1", "--batch", "1,3", *QUICK, "--json", "-")
    report = json.loads(result.stdout)
    assert report["command"][:3] == ["bnnfx", "bench", "chain.onnx"]
    assert [(table["threads"], table["batch"], table["rounds"]) for table in report["models"]] == [(1, 1, 2), (1, 3, 2)]
    for table in report["models"]:
        rows = {row["name"]: row for row in table["rows"]}
        reference, ours = rows[table["reference"]], rows["bnnfx with kernels"]
        quotients = [a / b for a, b in zip(reference["samples"], ours["samples"], strict=True)]
        assert ours["ratio"]["median"] == pytest.approx(sum(quotients) / 2)
        assert ours["milliseconds"]["median"] == pytest.approx(sum(ours["samples"]) / 2 / table["batch"])
        macs = [node["macs"] for node in table["nodes"] if node["macs"]]
        assert macs == [table["batch"] * work for work in (8 * 8 * 8 * 8 * 9, 4 * 4 * 16 * 8 * 9, 64 * 16)]
        assert table["ceiling"] > 0
    machine = report["machine"]
    assert machine["versions"]["bnnfx"] == bnnfx.__version__
    assert machine["processor"]
    for place in (os.getcwd(), sys.prefix, os.path.expanduser("~")):
        assert place not in result.stdout


def test_json_file_beside_the_tables(tmp_path):
    target = tmp_path / "result.json"
    assert "bnnfx with kernels" in run("chain.onnx", *QUICK, "--json", str(target), "--seed", "7").stdout
    report = json.loads(target.read_text())
    assert report["seed"] == 7
    assert [row["name"] for row in report["models"][0]["rows"]] == ["bnnfx without kernels", "bnnfx with kernels"]
    assert report["layers"] == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_memory_is_in_the_table():
    report = json.loads(run("chain.onnx", "--rounds", "1", "--json", "-").stdout)
    assert all(row["peak_mib"] > 0 for row in report["models"][0]["rows"])


def test_narrower_instruction_set_is_told(monkeypatch):
    monkeypatch.setenv("BNNFX_ISA", "portable")
    report = json.loads(run("chain.onnx", *QUICK, "--json", "-").stdout)
    assert report["machine"]["isa"] == "portable"


@pytest.mark.parametrize("scheme", ["rbnn", "binaryduo"])
def test_model_of_torchvision_in_all_its_forms(monkeypatch, scheme):
    monkeypatch.setattr(model_forms, "load_model", lambda name: Residual())
    result = run("torchvision:resnet18", "--scheme", scheme, "--size", "8", *QUICK, "--json", "-")
    report = json.loads(result.stdout)
    names = [row["name"] for row in report["models"][0]["rows"]]
    assert names[:5] == [
        "ONNX Runtime fp32",
        "ONNX Runtime int8",
        "bnnfx without kernels",
        "bnnfx, dialect standard",
        "bnnfx with kernels",
    ]
    assert "weights are random (seed 0)" in report["notes"][0]


def test_several_models(monkeypatch):
    """A row for each that can be built, and a note for one that cannot."""

    def load(source):
        if source == "timm:missing":
            raise ModelSourceError("there is none")
        return Residual()

    monkeypatch.setattr(model_forms, "load_model", load)
    sources = "torchvision:one, timm:missing,timm:two"
    arguments = (sources, "--scheme", "xnor", "--size", "8", "--batch", "1,2", *QUICK)
    report = json.loads(run(*arguments, "--json", "-").stdout)
    found = [(row["source"], row["batch"]) for row in report["rows"]]
    assert found == [("torchvision:one", 1), ("torchvision:one", 2), ("timm:two", 1), ("timm:two", 2)]
    for row in report["rows"]:
        assert 0 < row["binary_share"] < 1 and row["file_bytes"] > 0 and row["fp32"]["median"] > 0
    assert any("timm:missing was left out: there is none" in note for note in report["notes"])
    text = run(*arguments).stdout
    assert all(words in text for words in ("timm:two", "x fp32", "binary MACs", "timm:missing was left out"))
    assert "there is none" in run("timm:missing,timm:missing", *QUICK, code=2).output


def test_batch_norms_are_no_identity():
    torch.manual_seed(0)
    model = Residual()
    model_forms._settle(model, torch.randn(4, 3, 8, 8))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 3
    for norm in norms:
        assert not norm.training
        assert norm.running_mean.abs().min() > 0
        assert norm.weight.std() > 0


def test_layers():
    text = run("--layer", "64,32,3,8:2", "--layer", "32,32,1,4", "--rounds", "2").stdout
    for words in ("64-32 3x3 @ 8x8 stride 2", "32-32 1x1 @ 4x4", "QLinearConv", "BinaryConv2d", "of ceiling"):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "1"], "Give either MODEL or --layer"),
        (["chain.onnx", "--layer", "all"], "Give either MODEL or --layer"),
        (["missing.onnx"], "There is no file missing.onnx"),
        (["chain.onnx", "--float", "missing.onnx"], "There is no file missing.onnx"),
        (["chain.onnx", "--threads", "0"], "--threads is a number of 1 or more"),
        (["chain.onnx", "--batch", "1,,2"], "--batch is a number of 1 or more"),
        (["chain.onnx", "--json", "nowhere/result.json"], "nowhere does not exist"),
        (["chain.onnx", "--scheme", "xnor"], "--scheme is for models; chain.onnx is a file"),
        (["torchvision:resnet18", "--scheme", "nonsense"], "--scheme is one of binaryduo, bireal"),
        (["torchvision:resnet18", "--float", "original.onnx"], "--float is for files"),
        (["torchvision:resnet18,chain.onnx"], "There is no file torchvision:resnet18,chain.onnx"),
        (["--layer", "64,64"], "INPUTS,OUTPUTS,KERNEL,SIZE"),
        (["--layer", "all", "--size", "8"], "--size is for MODEL"),
    ],
)
def test_usage_errors(arguments, message):
    assert message in " ".join(run(*arguments, code=2).output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_model.onnx"], "Error: no_model.onnx is not a valid ONNX file"),
        (["original.onnx", "--float", "original.onnx"], "Error: --float gives the original of a file that bnnfx wrote"),
        (["torchvision:resnet19"], "Error: torchvision has no classification model 'resnet19'; it has, for example"),
    ],
)
def test_failures_are_one_line(arguments, message, chain_files):
    (chain_files / "no_model.onnx").write_text("nothing of the kind")
    result = run(*arguments, code=2)
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith(message)
    assert result.stdout == ""


def test_bad_instruction_set_is_a_failure(monkeypatch):
    monkeypatch.setenv("BNNFX_ISA", "sse9")
    assert "Error: The environment variable BNNFX_ISA is 'sse9'" in run("chain.onnx", code=2).stderr


def test_missing_library_is_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(bnnfx, "__path__", [str(tmp_path)])
    assert "pip install" in run("chain.onnx", code=2).stderr
