"""The command line: every example of its help runs as written; what it writes, refuses, and how it ends."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from typer.testing import CliRunner

import bnnfx
from bnnfx.cli import app
from bnnfx.model_source import build, load_model

COMMANDS = ("convert", "inspect", "verify", "bench")
NET = dedent(
    '''
    from torch import nn

    class Net(nn.Module):
        """A stem, two convolutions that may be binary, and a classifier."""

        def __init__(self):
            super().__init__()
            self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.conv1, self.conv2 = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, stride=2, padding=1)
            self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(self.pool(self.conv2(self.conv1(self.bn(self.stem(x))))).flatten(1))

    def make():
        return Net()

    def broken():
        raise RuntimeError("no data")

    def ends():
        raise SystemExit(0)

    class Untraceable(Net):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    number = 3
    '''
)
BINARY = ("--scheme", "rbnn", "--input", "1x3x8x8")
DUO = ("--scheme", "binaryduo", "--input", "1x3x8x8")


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert "Traceback" not in result.output
    return result


def words(text: str) -> str:
    """A message without the frame and the line breaks of a usage error."""
    return " ".join(text.replace("│", " ").split())


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of its own, with `net.py`."""
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


# --- the examples of the help texts ---


def examples(command: str) -> list[str]:
    lines = run(command, "--help").output.splitlines()
    return [line.strip() for line in lines if line.strip().startswith(f"bnnfx {command} ")]


def test_models_of_timm() -> None:
    gm = build("timm:resnet10t", "xnor", bnnfx.Config(), None, 0, (torch.zeros(2, 3, 32, 32),))
    assert gm(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Puts what the examples read into a folder: resnet18's weights, its file, images, `net.py`."""
    store = tmp_path_factory.mktemp("examples")
    torch.manual_seed(5)
    model = load_model("torchvision:resnet18").eval()
    torch.save(model.state_dict(), store / "weights.pt")
    gm = build("torchvision:resnet18", "rbnn", bnnfx.Config(), store / "weights.pt", seed=0)
    bnnfx.export_onnx(gm, store / "model.onnx", example_inputs=(torch.zeros(1, 3, 224, 224),))
    np.save(store / "images.npy", np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32))
    (store / "net.py").write_text(NET)

    def provide(folder: Path) -> None:
        for path in store.iterdir():
            (folder / path.name).unlink(missing_ok=True)
            (folder / path.name).write_bytes(path.read_bytes())

    return provide


def test_there_are_examples() -> None:
    assert {command: len(examples(command)) >= 3 for command in COMMANDS} == dict.fromkeys(COMMANDS, True)


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_run_as_written(command: str, files: Callable[[Path], None], chain_files: Path, place: Path) -> None:
    if command == "bench":  # its measurements take long enough with small files
        (place / "model.onnx").write_bytes((chain_files / "chain.onnx").read_bytes())
        (place / "original.onnx").write_bytes((chain_files / "original.onnx").read_bytes())
    else:
        files(place)
    for example in examples(command):
        program, *arguments = shlex.split(example)
        assert program == "bnnfx"
        assert run(*arguments).stdout.strip(), example
        for option, written in re.findall(r"(-o|--json) (\S+)", example):
            assert (place / written).stat().st_size > 0, option


def test_the_installed_program_runs(place: Path) -> None:
    program = Path(sys.executable).with_name("bnnfx")
    command = [program, "inspect", "net.py:make", "--scheme", "xnor"]
    result = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
    assert "scheme xnor, stage trainable: 2 of 4 layers are binary" in result.stdout
    assert result.stderr == f"{RANDOM}\n"  # and no progress, which is for terminals


RANDOM = (
    "note: the weights of net.py:make are those it is made with, random ones unless it loads others (seed 0); "
    "--weights gives trained ones"
)


@pytest.mark.parametrize("command", COMMANDS)
def test_completion_offers_schemes(command: str) -> None:
    environment = {"_BNNFX_COMPLETE": "complete_bash", "COMP_WORDS": f"bnnfx {command} x --scheme ", "COMP_CWORD": "4"}
    result = CliRunner().invoke(app, [], env=environment, prog_name="bnnfx")
    assert result.output.split() == bnnfx.schemes()


# --- convert ---


def test_convert() -> None:
    result = run("convert", "net.py:make", *BINARY, "-o", "net.onnx")
    assert "2 of 4 layers are binary (scheme rbnn, dialect bnnfx)" in result.stdout and RANDOM in result.stderr
    x = torch.randn(3, 3, 8, 8)
    gm = build("net.py:make", "rbnn", bnnfx.Config(), None, seed=0)
    assert bnnfx.verify(gm, "net.onnx", (x,))
    assert [path.name for path in Path().iterdir() if "onnx" in path.name] == ["net.onnx"]


def test_convert_by_all_its_options() -> None:
    options = ["--keep-float", "first", "--layer", "conv2=float", "--layer", "f*=binary", "--option", "centre=true"]
    options += ["--option", "initial_share=0.5", "--dialect", "standard", "--opset", "20", "--seed", "3"]
    result = run("convert", "net.py:make", *BINARY, *options, "-o", "net.onnx", "--json", "-")
    report = json.loads(result.stdout)
    assert report["binary_layers"] == 2 and report["dialect"] == "standard"
    assert report["bytes"] == Path("net.onnx").stat().st_size
    config = bnnfx.Config(
        ("first",),
        {"conv2": bnnfx.LayerConfig(binarize=False), "f*": bnnfx.LayerConfig(binarize=True)},
        {"centre": True, "initial_share": 0.5},
    )
    assert bnnfx.verify(build("net.py:make", "rbnn", config, None, seed=3), "net.onnx", (torch.randn(2, 3, 8, 8),))
    model = onnx.load("net.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]


def test_nothing_is_kept_float() -> None:
    run("convert", "net.py:make", *BINARY, "--keep-float", "none", "--json", "report.json")
    assert json.loads(Path("report.json").read_text())["binary_layers"] == 4
    assert Path("model.onnx").is_file()


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "true", "False"])
def test_options_that_are_on_or_off(word: str) -> None:
    run("convert", "net.py:make", *BINARY, "--option", f"centre={word}", "-o", "net.onnx")
    config = bnnfx.Config(options={"centre": word in ("on", "yes", "true")})
    assert bnnfx.verify(build("net.py:make", "rbnn", config, None, seed=0), "net.onnx", (torch.randn(2, 3, 8, 8),))


@pytest.mark.parametrize("form", ["float", "trained", "distributed", "nested"])
def test_weights(form: str) -> None:
    """Of the float model or of the trained graph, which has names that the float model lacks."""
    torch.manual_seed(9)
    model = load_model("net.py:make")
    trained = bnnfx.convert(model, "rbnn").eval()
    for parameter in trained.parameters():
        parameter.data.add_(0.1)
    state = model.state_dict() if form == "float" else trained.state_dict()
    if form == "distributed":
        state = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": state, "epoch": 3} if form == "nested" else state, "weights.pt")
    result = run("convert", "net.py:make", *BINARY, "--weights", "weights.pt")
    key = {"distributed": "module", "nested": "state_dict"}.get(form)
    assert result.stderr == (f"note: the weights are those under '{key}' in weights.pt\n" if key else "")
    if form == "float":
        rebuilt = build("net.py:make", "rbnn", bnnfx.Config(), Path("weights.pt"), seed=0)
        assert torch.equal(rebuilt.get_parameter("conv1.weight"), model.conv1.weight)  # type: ignore[union-attr, arg-type]
        assert bnnfx.verify(rebuilt, "model.onnx", (torch.randn(2, 3, 8, 8),))
    else:
        assert bnnfx.verify(trained, "model.onnx", (torch.randn(2, 3, 8, 8),))


def test_one_of_several_weights() -> None:
    """Which are taken is said, and how to take the others."""
    model, average = load_model("net.py:make"), load_model("net.py:make")
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": average.state_dict()}, "weights.pt")
    for text, taken in {"weights.pt": model, "weights.pt:state_dict_ema": average}.items():
        result = run("convert", "net.py:make", "--scheme", "xnor", "--input", "1x3x8x8", "--weights", text)
        said = (
            "note: the weights are those under 'state_dict' in weights.pt; 'state_dict_ema' would fit, too "
            "(--weights weights.pt:state_dict_ema)\n"
        )
        assert result.stderr == (said if taken is model else "")
        assert bnnfx.verify(bnnfx.convert(taken, "xnor").eval(), "model.onnx", (torch.randn(2, 3, 8, 8),))


def test_weights_of_a_split_graph() -> None:
    trained = bnnfx.split(bnnfx.convert(load_model("net.py:make"), "binaryduo").eval())
    for parameter in trained.parameters():
        parameter.data.add_(0.1)
    torch.save(trained.state_dict(), "weights.pt")
    run("convert", "net.py:make", *DUO, "--weights", "weights.pt")
    assert bnnfx.verify(trained, "model.onnx", (torch.randn(2, 3, 8, 8),))


def test_ternary_activations_are_split() -> None:
    """By every command that lowers, or compares with a file."""
    result = run("convert", "net.py:make", *DUO, "-o", "duo.onnx")
    assert "2 of 4 layers are binary (scheme binaryduo, dialect bnnfx)" in result.stdout
    assert run("verify", "net.py:make", "duo.onnx", *DUO).stdout.startswith("equal")
    run("inspect", "net.py:make", *DUO, "--json", "report.json")
    report = json.loads(Path("report.json").read_text())["explanation"]
    assert report["stage"] == "packed" and [layer["packed"] for layer in report["layers"]] == [False, True, True, False]
    assert [log["name"] for log in report["passes"]].count("SplitActivations") == 1
    run("inspect", "net.py:make", "--scheme", "binaryduo", "--json", "report.json")
    assert json.loads(Path("report.json").read_text())["explanation"]["stage"] == "trainable"


def test_page_shows_the_split_graph_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[Any] = []
    monkeypatch.setattr(bnnfx, "report", lambda graphs, path: pages.append(graphs), raising=False)
    run("inspect", "net.py:make", *DUO, "--html", "page.html")
    (graphs,) = pages
    assert [bnnfx.explain(gm).stage for gm in graphs] == ["trainable", "trainable", "packed"]


NEIGHBOURS = {
    "lib/shapes.py": "width = 8",
    "lib/parts/__init__.py": "from shapes import width\nfrom torch import nn\nlayer = nn.Conv2d(width, width, 3)",
    "lib/user.py": "from parts import layer\nfrom torch import nn\ndef make():\n"
    "    import shapes\n    return nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.Conv2d(shapes.width, 4, 1))",
}


@pytest.mark.parametrize("source", ["../lib/user.py:make", "user.py:make", "user:make", "link.py:make", "near:make"])
@pytest.mark.parametrize("program", ["bnnfx", "-m"])
def test_models_import_their_neighbours(source: str, program: str, place: Path) -> None:
    """Those in the folder of the file, which a link points to, and those in the working directory."""
    for name, text in NEIGHBOURS.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    (place / "work").mkdir()
    (place / "work" / "link.py").symlink_to(place / "lib" / "user.py")
    (place / "work" / "near.py").write_text("import sys, torch\nsys.path.append('../lib')\nfrom user import make")
    folder = place / ("lib" if source.startswith("user") else "work")
    start = [Path(sys.executable).with_name("bnnfx")] if program == "bnnfx" else [sys.executable, "-m", "bnnfx"]
    command = [*start, "inspect", source, "--scheme", "xnor"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "stage trainable: 1 of 3 layers are binary" in result.stdout


def test_python_m_is_the_command(place: Path) -> None:
    result = subprocess.run([sys.executable, "-m", "bnnfx", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: bnnfx [OPTIONS] COMMAND" in result.stdout


def test_module_on_the_path(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.syspath_prepend(place)
    (place / "one_net.py").write_text(NET)
    run("convert", "one_net:make", *BINARY)


USAGE = [
    (["convert", "net.py:make", "--input", "1x3x8x8"], "--scheme is one of binaryduo, bireal, rbnn, xnor"),
    (["convert", "net.py:make", "--scheme", "rbn", "--input", "1x3x8x8"], "got 'rbn'"),
    (["convert", "net.py:make", "--scheme", "rbnn"], "--input gives the shape"),
    (["convert", "net.py:make", "--scheme", "rbnn", "--input", "3,8,8"], "--input is sizes with x between"),
    (["convert", "net.py:make", *BINARY, "--weights", "none.pt"], "There is no file none.pt"),
    (
        ["convert", "net.py:make", "--scheme", "rbnn", "--input", f"1x3x8x{'9' * 5000}"],
        "--input is sizes with x between",
    ),
    (["convert", "net.py:make", *BINARY, "-o", "-", "--json", "-"], "--output and --json are both '-'"),
    (["inspect", "net.py:make", *BINARY, "--svg", "-"], "--svg writes a file, not to standard output"),
    (["inspect", "net.py:make", *BINARY, "--html", "-"], "--html writes a file, not to standard output"),
    (
        ["convert", "net.py:make", *BINARY, "--keep-float", "middle"],
        "--keep-float is first, last, downsample, depthwise, gate or none",
    ),
    (["convert", "net.py:make", *BINARY, "--layer", "fc=both"], "--layer is NAME=float or NAME=binary"),
    (["convert", "net.py:make", *BINARY, "--option", "centre"], "--option is NAME=VALUE"),
    (["inspect", "none.onnx"], "There is no file none.onnx"),
    (["inspect", "resnet18"], "There is no file resnet18; a model is an ONNX file, 'torchvision:NAME'"),
    (["inspect", "chain.onnx", "--scheme", "xnor"], "--scheme is for models; chain.onnx is a file"),
    (["inspect", "net.py:make", "--scheme", "xnor", "--costs"], "--costs needs the shape"),
    (["verify", "net.py:make", "--scheme", "xnor"], "Give a second model"),
    (["verify", "chain.onnx", "--scheme", "xnor"], "--scheme is for models; these are files"),
    (["verify", "chain.onnx", "--inputs", "none.npy"], "There is no file none.npy"),
    (["verify", "chain.onnx", "net.py:make"], "--scheme is one of"),
    (["verify", "chain.onnx", "--samples", "0"], "Invalid value for '--samples'"),
    (["convert", "net.py:make", *BINARY, "--seed", str(2**70)], "Invalid value for '--seed'"),
    (["convert", "net.py:make", *BINARY, "--opset", "18.5"], "Invalid value for '--opset'"),
    (["convert", "net.py:make", *BINARY, "--no-such"], "No such option: --no-such"),
    (["convert", "net.py:make", "--scheme", "rbnn", "--input", "0x3x8x8"], "--input is sizes with x between"),
    (["bench", "none.onnx"], "There is no file none.onnx"),
    (["bench", "net.py:make", "--layer", "all"], "Give either MODEL or --layer"),
    (["bench", "net.py:make", "--scheme", "none"], "--scheme is one of binaryduo, bireal, rbnn, xnor; got 'none'"),
    (["bench", "chain.onnx", "--threads", "0"], "--threads is a number of 1 or more and at most 1024"),
    (["bench", "chain.onnx", "--threads", "99999999"], "--threads is a number of 1 or more and at most 1024"),
    (["bench", "chain.onnx", "--batch", "1,two"], "--batch is a number of 1 or more"),
    (["bench", "chain.onnx", "--batch", "9" * 5000], "--batch is a number of 1 or more"),
    (["bench", "chain.onnx", "--seconds", "nan"], "Invalid value for '--seconds'"),
]
FAILURES = [
    (["verify", "original.onnx", "chain.onnx"], "original.onnx was not written by bnnfx.export_onnx"),
    (
        ["convert", "net.py:make", *BINARY, "-o", "nowhere/x.onnx"],
        "nowhere does not exist, so x.onnx cannot be written",
    ),
    (["convert", "net.py:make", *BINARY, "--json", "nowhere/x"], "nowhere does not exist, so x cannot be written"),
    (["inspect", "net.py:make", *BINARY, "--svg", "."], "is a folder"),
    (["convert", "net.py:make", *BINARY, "-o", "n" * 300], "cannot be written: File name too long"),
    (["inspect", "n" * 300], "File name too long"),
    (["verify", "chain.onnx", "--inputs", "n" * 300], "File name too long"),
    (["convert", "net.py:make", *BINARY, "--weights", "n" * 300], "File name too long"),
    (["convert", "net.py:make", *BINARY[:2], "--input", "1x3x99999999x99999999"], "can't allocate memory"),
    (["verify", "chain.onnx", "--input", "1x3x99999999x99999999"], "can't allocate memory"),
    (["convert", "net.py:make", *BINARY[:2], "--input", f"1x3x{'9' * 15}x{'9' * 15}"], "Error: RuntimeError: "),
    (["convert", "net.py:make", *BINARY, "-o", ""], ". is a folder"),
    (["convert", "net.py:make", *BINARY, "--input", "1x3x8x8"], "takes 1 input(s) (x); example_inputs has 2"),
    (["convert", "net.py:make", *BINARY, "--option", "initial_share=nan"], "is a number; got 'nan'"),
    (["bench", "text.onnx"], "text.onnx is not a valid ONNX file"),
    (["bench", "torchvision:none"], "torchvision has no classification model 'none'"),
    (["bench", "timm:none"], "timm has no classification model 'none'"),
    (["convert", "nothing:make", *BINARY], "nothing cannot be imported: No module named 'nothing'"),
    (["convert", "net.py:none", *BINARY], "net.py has no 'none'"),
    (["convert", "none.py:make", *BINARY], "There is no file none.py"),
    (["convert", "net.py:broken", *BINARY], "net.py:broken failed: RuntimeError: no data"),
    (["convert", "net.py:number", *BINARY], "net.py:number failed: TypeError"),
    (["convert", "net.py:ends", *BINARY], "net.py:ends failed: SystemExit: 0"),
    (["convert", "program.py:make", *BINARY], "program.py cannot be imported: SystemExit: 1"),
    (["convert", "net.py:Untraceable", *BINARY], "Untraceable.forward cannot be traced by torch.fx"),
    (["convert", "torchvision:resnet19", *BINARY], "torchvision has no classification model 'resnet19'"),
    (["convert", "make", *BINARY], "A model is given as 'torchvision:NAME'"),
    (["convert", "net.py:make", "--scheme", "rbnn", "--input", "1x4x8x8"], "The example inputs do not fit the model"),
    (["convert", "net.py:make", *BINARY, "--option", "speed=2"], "Scheme 'rbnn' has no option 'speed'"),
    (["convert", "net.py:make", *BINARY, "--option", "centre=of"], "Option 'centre' of scheme 'rbnn' is True or False"),
    (
        ["convert", "net.py:make", *BINARY, "--option", "initial_share=no"],
        "of scheme 'rbnn' is a number; got False",
    ),
    (["convert", "net.py:make", *BINARY, "--layer", "conv9=float"], "Config.layers selects no layer with 'conv9'"),
    (["convert", "net.py:make", *BINARY, "--dialect", "old"], "Unknown dialect 'old'"),
    (["convert", "net.py:make", *BINARY, "--opset", "11"], "opset is 18 or higher"),
    (["convert", "net.py:make", *BINARY, "--weights", "net.py"], "net.py holds no state_dict"),
    (["convert", "net.py:make", *BINARY, "--weights", "number.pt"], "number.pt holds no state_dict"),
    (
        ["convert", "net.py:make", *BINARY, "--weights", "other.pt"],
        "it lacks 'stem.weight', 'stem.bias', 'bn.weight' and",
    ),
    (["convert", "net.py:make", *BINARY, "--weights", "wide.pt"], "do not fit the model: size mismatch for fc.weight"),
    (["inspect", "text.onnx"], "text.onnx is not a valid ONNX file"),
    (["verify", "original.onnx"], "original.onnx has no node of domain ai.bnnfx"),
    (["verify", "chain.onnx", "--inputs", "text.onnx"], "text.onnx holds no arrays of numbers"),
    (["verify", "chain.onnx", "--inputs", "small.npy"], "The model takes"),
]


def ids(cases: list[tuple[list[str], str]]) -> list[str]:
    return [message for _, message in cases]


@pytest.fixture
def odd_files(chain_files: Path, place: Path) -> None:
    """Files that are not what they should be, and two that are."""
    for name in ("chain.onnx", "original.onnx"):
        (place / name).write_bytes((chain_files / name).read_bytes())
    (place / "text.onnx").write_text("nothing of the kind")
    (place / "program.py").write_text("import sys\nsys.exit(1)")
    torch.save({"number": 3}, place / "number.pt")
    torch.save({"weight": torch.zeros(3)}, place / "other.pt")
    state = load_model(f"{place}/net.py:make").state_dict()
    torch.save(state | {"fc.weight": torch.zeros(4, 9)}, place / "wide.pt")
    np.save(place / "small.npy", np.zeros((1, 3, 4), np.float32))


@pytest.mark.usefixtures("odd_files")
@pytest.mark.parametrize(("arguments", "message"), USAGE, ids=ids(USAGE))
def test_usage_errors(arguments: list[str], message: str) -> None:
    result = run(*arguments, code=2)
    assert message in words(result.output)
    assert result.stdout == "" and not Path("model.onnx").exists()


@pytest.mark.usefixtures("odd_files")
@pytest.mark.parametrize(("arguments", "message"), FAILURES, ids=ids(FAILURES))
def test_failures_are_one_line(arguments: list[str], message: str) -> None:
    before = sorted(path.name for path in Path().iterdir())
    result = run(*arguments, code=2)
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert line.startswith("Error: ") and message in line
    assert result.stdout == ""
    assert sorted(path.name for path in Path().iterdir()) == before, "nothing is left half-written"


def test_file_that_was_there_survives_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("model.onnx").write_text("precious")
    monkeypatch.setattr(onnx.checker, "check_model", lambda *_, **__: (_ for _ in ()).throw(ValueError("broken")))
    run("convert", "net.py:make", *BINARY, code=2)
    assert Path("model.onnx").read_text() == "precious"


def test_a_file_that_computes_something_else_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks by value are those of `bnnfx.export`."""

    def spoil(model: Any) -> None:
        for value in model.graph.initializers.values():
            array = value.const_value.numpy()
            if array.dtype == np.float32 and array.ndim == 4:
                value.const_value = onnx_ir.tensor(array * 1.5)

    monkeypatch.setattr("bnnfx.backends.onnx.onnx_file._merge_slices", spoil)
    for output in ("model.onnx", "-"):
        result = run("convert", "net.py:make", *BINARY, "-o", output, code=2)
        assert "does not compute what the packed graph does" in result.stderr
        assert result.stdout == "" and not Path("model.onnx").exists()


UNEXPECTED = [
    (MemoryError(), "MemoryError: MemoryError."),
    (OSError(28, "No space left on device"), "No space left on device."),
    (RuntimeError("a\nb"), "RuntimeError: a."),
    (KeyError("k"), "KeyError: 'k'."),
]


@pytest.mark.parametrize(("error", "text"), UNEXPECTED, ids=[text for _, text in UNEXPECTED])
def test_every_failure_is_status_2(error: Exception, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 means that two models differ; where the program itself may be wrong, its traceback comes first."""
    monkeypatch.setattr("bnnfx.model_source.convert", lambda *_, **__: (_ for _ in ()).throw(error))
    result = CliRunner().invoke(app, ["inspect", "net.py:make", "--scheme", "xnor"])
    assert (result.exit_code, result.stdout) == (2, "")
    *before, line = result.stderr.removeprefix(f"{RANDOM}\n").splitlines()
    assert line == f"Error: {text}"
    assert bool(before) == isinstance(error, KeyError)


# --- standard output ---

SHORT = ("inspect", "net.py:make", "--scheme", "xnor")


def program(
    arguments: tuple[str, ...], shell: str = 'exec "$@"', **options: Any
) -> "subprocess.CompletedProcess[bytes]":
    """The program as it is called, by a shell that sets up its output."""
    command = ["sh", "-c", shell, "sh", Path(sys.executable).with_name("bnnfx"), *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize(
    "arguments", [SHORT, (*SHORT, "--json", "-"), ("--help",), ("inspect", "--help")], ids=" ".join
)
@pytest.mark.parametrize("fault", ["closed", "full", "unread", "all unread"])
def test_output_that_is_lost(arguments: tuple[str, ...], fault: str, place: Path) -> None:
    if fault == "closed":
        result = program(arguments, 'exec "$@" >&-')
    elif fault == "full":
        result = program(arguments, 'ulimit -f 0; exec "$@" > output')  # no file may have a byte
    else:
        reads, writes = os.pipe()
        os.close(reads)
        result = program(arguments, 'exec "$@" 2>&1' if fault == "all unread" else 'exec "$@"', stdout=writes)
        os.close(writes)
    assert result.returncode == 2
    lines = [line for line in result.stderr.decode().splitlines() if not line.startswith("note: ")]
    assert [line[:7] for line in lines] == ([] if fault == "all unread" else ["Error: "])


def test_errors_that_nobody_reads(place: Path) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    command = [Path(sys.executable).with_name("bnnfx"), "inspect"]
    for arguments in (["none.onnx"], ["net.py:broken", "--scheme", "xnor"], ["net.py:make", "--no-such-option"]):
        assert subprocess.run([*command, *arguments], stdout=subprocess.PIPE, stderr=writes).returncode == 2
    os.close(writes)


def test_remarks_that_nobody_wants(place: Path) -> None:
    result = program((*SHORT, "--json", "-"), 'exec "$@" 2>&-', stdout=subprocess.PIPE)
    assert result.returncode == 0 and json.loads(result.stdout)["explanation"]["stage"] == "trainable"


def test_progress_is_no_result(place: Path) -> None:
    """On a terminal there is a line that says what is going on, also while the model prints."""
    (place / "loud.py").write_text(LOUD)
    ours, theirs = os.openpty()
    command = [Path(sys.executable).with_name("bnnfx"), "inspect", "loud.py:make", *BINARY, "--json", "-"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # how a terminal says that it was left
            while part := os.read(ours, 4096):
                shown += part
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["explanation"]["stage"] == "packed"
    os.close(ours)
    assert process.returncode == 0
    assert b"converting loud.py:make" in shown and b"in make" in shown and b"from a program" in shown


def test_disk_that_is_full(place: Path) -> None:
    (place / "model.onnx").write_text("precious")
    result = program(("convert", "net.py:make", *BINARY), 'ulimit -f 1; exec "$@"', stdout=subprocess.PIPE)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.decode().splitlines()[-1] == "Error: model.onnx cannot be written: File too large."
    assert (place / "model.onnx").read_text() == "precious" and len(list(place.iterdir())) == 2


LOUD = """
import os, sys
print("at import")
from net import Net

def make():
    print("in make")
    os.system("echo from a program")
    os.write(1, b"from a library")
    sys.stdout.write("no newline")
    return Net()
"""


def test_what_a_model_prints_is_no_result(place: Path) -> None:
    (place / "loud.py").write_text(LOUD)
    arguments = ("loud.py:make", *BINARY)
    result = program(("inspect", *arguments, "--json", "-"), stdout=subprocess.PIPE)
    assert json.loads(result.stdout)["explanation"]["stage"] == "packed"
    for text in (b"at import", b"in make", b"from a program", b"from a library", b"no newline"):
        assert text in result.stderr
    result = program(("convert", *arguments, "-o", "-"), stdout=subprocess.PIPE)
    assert bnnfx.load(write(place / "piped.onnx", result.stdout)).run(torch.zeros(1, 3, 8, 8)).shape == (1, 4)  # type: ignore[union-attr]
    assert b"-: " in result.stderr and b"2 of 4 layers are binary" in result.stderr
    assert not (place / "-").exists()
    result = program(("verify", *arguments[:3], "piped.onnx", "--json", "-"), stdout=subprocess.PIPE)
    assert result.returncode == 0 and json.loads(result.stdout)["equal"]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- inspect ---


def test_inspect_model() -> None:
    result = run("inspect", "net.py:make", *BINARY, "--layer", "conv2=float", "--json", "report.json")
    report = json.loads(Path("report.json").read_text())["explanation"]
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert report["stage"] == "packed" and list(layers) == ["stem", "conv1", "conv2", "fc"]
    assert layers["conv1"]["packed"] is True and layers["conv2"]["binarized"] is False
    assert "Config.layers says binarize=False" in words(result.stdout)
    assert "[N, C, H, W]" in words(result.stdout), "brackets are no markup"


def test_inspect_file(chain_files: Path) -> None:
    path = str(chain_files / "chain.onnx")
    text = run("inspect", path).stdout
    for part in ("ONNX IR 9", "ai.bnnfx 1", "bnnfx.scheme: bireal", "float[batch, 3, 8, 8]", "BinaryConv2dThreshold"):
        assert part in text
    contents = json.loads(run("inspect", path, "--json", "-").stdout)["file"]
    ours = [operator for operator in contents["operators"] if operator["domain"] == "ai.bnnfx"]
    assert ours and all(operator["kernel"] and operator["function"] for operator in ours)
    assert sum(operator["count"] for operator in contents["operators"]) == len(onnx.load(path).graph.node)


def test_inspect_foreign_file(chain_files: Path) -> None:
    contents = json.loads(run("inspect", str(chain_files / "original.onnx"), "--json", "-").stdout)["file"]
    assert contents["operators"] and all(operator["kernel"] is None for operator in contents["operators"])


class Costs:
    """What `bnnfx.summary` returns, as far as the command line uses it."""

    def __rich__(self) -> str:
        return "all the costs"

    def to_dict(self) -> dict[str, int]:
        return {"macs": 7}


def test_costs_picture_and_page(monkeypatch: pytest.MonkeyPatch, chain_files: Path) -> None:
    """The command passes on what it was given; what the functions make of it is their own tests' matter."""
    calls: list[Any] = []
    monkeypatch.setattr(bnnfx, "summary", lambda *given: calls.append(given) or Costs(), raising=False)
    monkeypatch.setattr(bnnfx, "draw", lambda *given: calls.append(given), raising=False)
    monkeypatch.setattr(bnnfx, "report", lambda *given: calls.append(given), raising=False)
    arguments = ("--costs", "--svg", "graph.svg", "--html", "page.html", "--json", "report.json")
    result = run("inspect", "net.py:make", *BINARY, *arguments)
    assert "all the costs" in result.stdout
    assert json.loads(Path("report.json").read_text())["costs"] == {"macs": 7}
    (packed, (x,)), (drawn, svg), ((before, after), html) = calls
    assert packed is drawn is after and before is not after and x.shape == (2, 3, 8, 8)
    assert (svg, html) == (Path("graph.svg"), Path("page.html"))
    run("inspect", str(chain_files / "chain.onnx"), "--costs", "--input", "1x3x8x8")
    assert calls[-1][0] == chain_files / "chain.onnx" and calls[-1][1][0].shape == (1, 3, 8, 8)


# --- verify ---


def test_verify_file_by_itself(chain_files: Path) -> None:
    path = str(chain_files / "chain.onnx")
    assert run("verify", path, "--samples", "3").stdout.startswith("equal: 0 of")
    report = json.loads(run("verify", path, "--json", "-", "--samples", "3").stdout)
    assert report["equal"] is True and report["samples"] == 3 and len(report["nodes"]) == 4


def test_verify_model_with_its_file() -> None:
    run("convert", "net.py:make", *BINARY, "-o", "net.onnx")
    assert run("verify", "net.py:make", "net.onnx", "--scheme", "rbnn").stdout.startswith("equal")
    assert run("verify", "net.onnx", "net.py:make", "--scheme", "rbnn", "--no-kernels").stdout.startswith("equal")


@pytest.mark.parametrize("spoiled", ["seed", "scheme", "byte"])
def test_verify_what_differs(spoiled: str) -> None:
    run("convert", "net.py:make", *BINARY, "-o", "net.onnx")
    if spoiled == "byte":
        model = onnx.load("net.onnx")
        weight = next(tensor for tensor in model.graph.initializer if "weight_bits" in tensor.name)
        weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
        onnx.save(model, "net.onnx")
    scheme = "xnor" if spoiled == "scheme" else "rbnn"
    seed = "1" if spoiled == "seed" else "0"
    result = run("verify", "net.py:make", "net.onnx", "--scheme", scheme, "--seed", seed, code=1)
    assert result.stdout.startswith("NOT EQUAL")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("order", ["<f4", ">f4"])
def test_verify_on_given_inputs(chain_files: Path, suffix: str, order: str) -> None:
    array = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(order)
    np.save("x.npy", array) if suffix == ".npy" else np.savez("x.npz", first=array)
    path = str(chain_files / "chain.onnx")
    assert json.loads(run("verify", path, "--inputs", f"x{suffix}", "--json", "-").stdout)["samples"] == 5
