"""Export targets: whatever is registered can be exported to, and another package can register one."""

from pathlib import Path

import onnx
import pytest
import torch
from helpers.models import Chain
from helpers.plugins import install
from torch import fx
from typer.testing import CliRunner

import bnnfx
from bnnfx.backends.target import TARGETS
from bnnfx.cli import app

HEADER = """
import torch
from bnnfx import ExportError, Target

def render(gm, prefix):
    if gm.training:
        raise ExportError("it is being trained")
    lines = []
    for name, tensor in gm.named_buffers():
        if tensor.dtype == torch.uint8:
            values = ", ".join(map(str, tensor.flatten().tolist()))
            lines.append(f"static const unsigned char {prefix}{name.replace('.', '_')}[] = {{{values}}};")
    return "".join(f"{line}\\n" for line in lines)

header = Target("header", "the packed constants in C", render, {"prefix": ""})
"""
"""A made-up target: what another package, or a file in `bnnfx/backends`, has to hold."""


@pytest.fixture
def header(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(TARGETS, "_things", TARGETS.known())
    monkeypatch.setattr(TARGETS, "_complete", False)
    install(monkeypatch, tmp_path_factory.mktemp("site"), "c_header", "bnnfx.targets", {"h": "c_header:header"}, HEADER)


@pytest.fixture(scope="module")
def trained() -> fx.GraphModule:
    torch.manual_seed(0)
    return bnnfx.convert(Chain().eval(), "xnor")


@pytest.fixture(scope="module")
def packed(trained: fx.GraphModule) -> fx.GraphModule:
    return bnnfx.lower(trained, Chain().inputs())


@pytest.mark.usefixtures("header")
def test_registered_target(packed: fx.GraphModule, trained: fx.GraphModule, tmp_path: Path) -> None:
    assert bnnfx.targets() == ["bnnfx", "header", "standard"]
    path = bnnfx.export(packed, tmp_path / "net.h", "header", prefix="net_")
    lines = path.read_text().splitlines()
    bits = {name: tensor for name, tensor in packed.named_buffers() if tensor.dtype == torch.uint8}
    assert len(lines) == len(bits) > 2
    for line, (name, tensor) in zip(lines, bits.items(), strict=True):
        assert line.startswith(f"static const unsigned char net_{name}[] = {{")
        assert [int(x) for x in line[line.index("{") + 1 : line.index("}")].split(",")] == tensor.flatten().tolist()
    again = bnnfx.export(trained, tmp_path / "again.h", target="header", example_inputs=Chain().inputs(), prefix="net_")
    assert again.read_text() == path.read_text()


@pytest.mark.usefixtures("header")
def test_refusals_leave_no_file(packed: fx.GraphModule, tmp_path: Path) -> None:
    path = tmp_path / "net.h"
    with pytest.raises(ValueError, match="Unknown target 'tflite'; the known ones are: bnnfx, header, standard"):
        bnnfx.export(packed, path, "tflite")
    with pytest.raises(ValueError, match="Target 'header' has no option 'opset'; its options are: prefix=''"):
        bnnfx.export(packed, path, "header", opset=18)
    with pytest.raises(ValueError, match="Unknown dialect 'header'; the known ones are: bnnfx, standard"):
        bnnfx.export_onnx(packed, path, dialect="header")
    with pytest.raises(bnnfx.ExportError, match="it is being trained"):
        bnnfx.export(packed.train(), path, "header")
    packed.eval()
    with pytest.raises(bnnfx.StageError, match="export takes a graph in stage packed"):
        bnnfx.export(Chain(), path, "header")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("header")
def test_target_of_onnx_is_a_dialect(packed: fx.GraphModule, tmp_path: Path) -> None:
    standard = TARGETS.get("standard")

    def render(gm: fx.GraphModule) -> bytes:
        model = onnx.load_from_string(standard.content(gm, {}))
        model.doc_string = "plain"
        return model.SerializeToString()

    bnnfx.register_target(bnnfx.Target("plain", "standard with a note", render, onnx=True))
    path = bnnfx.export_onnx(packed, tmp_path / "net.onnx", dialect="plain")
    assert onnx.load(path).doc_string == "plain"
    with pytest.raises(ValueError, match="the known ones are: bnnfx, plain, standard"):
        bnnfx.export_onnx(packed, path, dialect="header")


@pytest.mark.usefixtures("header")
def test_command_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from helpers.models import Chain as make")
    shape = "x".join(map(str, Chain().inputs()[0].shape))
    arguments = ["convert", f"{tmp_path / 'net.py'}:make", "--scheme", "xnor", "--input", shape, "-o"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "net.h"), "--target", "header"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "net.h").read_text().startswith("static const unsigned char")
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "net.tf"), "--dialect", "tflite"])
    assert result.exit_code == 2
    assert "Unknown dialect 'tflite'; the known ones are: bnnfx, header, standard." in result.stderr
