"""`import bnnfx` is quick because it loads nothing; all that it stands for is there when it is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.models import Chain
from helpers.sources import FILES

import bnnfx

SLOW = ("jinja2", "matplotlib", "networkx", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "rich", "typer")


def run(code: str, *arguments: object) -> str:
    """What Python prints that has imported nothing before."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOADED = f"import sys; print(sorted({{*{SLOW!r}, 'bnnfx.api', 'bnnfx.ops'}} & set(sys.modules)))"


@pytest.mark.parametrize("imports", ["bnnfx", "torch, bnnfx", "bnnfx, torch"])
def test_import_loads_nothing_slow(imports):
    assert run(f"import {imports}; dir(bnnfx), hasattr(bnnfx, 'absent'); {LOADED}") == "[]"


def test_compiling_needs_no_onnx():
    loaded = run(f"import bnnfx; bnnfx.convert, bnnfx.lower, bnnfx.export_onnx; {LOADED}")
    assert set(ast.literal_eval(loaded)) - {"networkx"} == {"bnnfx.api", "bnnfx.ops"}


def test_help_needs_no_torch():
    code = "import sys, bnnfx.cli; print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    assert run(code) == "[]"


def test_public_names():
    """Type checkers read imports, Python reads a table: they say the same, and all of it can be had."""
    tree = ast.parse(FILES["bnnfx"].read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert told == {**bnnfx._HOMES, "analysis": "bnnfx"}
    assert sorted(told) == bnnfx.__all__ and len(told) > 30
    assert {*bnnfx.__all__, "__version__"} <= set(dir(bnnfx))
    for name in bnnfx.__all__:
        assert getattr(bnnfx, name).__name__.endswith(name)
    with pytest.raises(AttributeError, match="module 'bnnfx' has no attribute 'converts'"):
        bnnfx.converts  # noqa: B018


@pytest.mark.parametrize("imports", ["import bnnfx.schemes", "from bnnfx import api, schemes; import bnnfx.schemes"])
def test_function_with_the_name_of_a_subpackage(imports):
    assert run(f"{imports}; print(bnnfx.schemes(), bnnfx.schemes is bnnfx.schemes)").endswith("'xnor'] True")


USE = """
assert not hasattr(torch.ops.bnnfx, "unpack") and torch.ops.bnnfx.pack_nhwc.default.name() == "bnnfx::pack_nhwc"
print(torch.ops.bnnfx.pack.default(torch.ones(1, 8, 1, 1), torch.zeros(())).flatten()[0].item())
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import bnnfx, torch",
        "import torch, bnnfx",
        "import bnnfx, importlib.util; importlib.util.find_spec('torch'); import torch",
        "import torch; assert not hasattr(torch.ops.bnnfx, 'pack'); import bnnfx",
    ],
)
def test_operators_are_registered_when_asked_for(imports):
    assert run(f"{imports}{USE}") == "255"


@pytest.mark.parametrize("first", ["import torch", "import bnnfx, torch"])
def test_packed_graph_is_loaded_by_a_new_process(first, tmp_path):
    torch.manual_seed(0)
    inputs = Chain().inputs()
    packed = bnnfx.lower(bnnfx.convert(Chain().eval(), "xnor"), inputs)
    path = tmp_path / "packed.pt"
    torch.save((packed, inputs), path)
    code = f"{first}, sys\ngm, x = torch.load(sys.argv[1], weights_only=False)\ntorch.save(gm(*x), sys.argv[2])"
    run(code, path, tmp_path / "result.pt")
    assert torch.equal(torch.load(tmp_path / "result.pt"), packed(*inputs))


def test_exported_program_is_loaded_by_a_new_process(tmp_path: Path):
    """`torch.export` stores operators by name."""
    torch.manual_seed(0)
    inputs = Chain().inputs()
    packed = bnnfx.lower(bnnfx.convert(Chain().eval(), "xnor"), inputs)
    torch.export.save(torch.export.export(packed, inputs), tmp_path / "packed.pt2")
    torch.save(inputs, tmp_path / "inputs.pt")
    code = "import bnnfx, torch, sys\nprogram = torch.export.load(sys.argv[1]).module()\n"
    code += "torch.save(program(*torch.load(sys.argv[2])), sys.argv[3])"
    run(code, tmp_path / "packed.pt2", tmp_path / "inputs.pt", tmp_path / "result.pt")
    assert torch.equal(torch.load(tmp_path / "result.pt"), packed(*inputs))
