"""Who may import whom: pipelines -> passes -> core -> {nn, ops, schemes, config, errors} -> numerics.

The command line and the benchmark use the public parts; no other part knows them.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import bnnfx

# in an editable install __path__ lists the folder of the built library too
PACKAGE = next(Path(path) for path in bnnfx.__path__ if (Path(path) / "api.py").exists())
FILES = {
    ".".join(("bnnfx", *folder, *([] if path.stem == "__init__" else [path.stem]))): path
    for pattern in ("*.py", "*/*.py", "*/*/*.py")  # rglob does not follow the symbolic link to the passes
    for path in PACKAGE.glob(pattern)
    for folder in [path.relative_to(PACKAGE).parts[:-1]]
}

# part of the package -> the parts of it that it may import
BELOW_CORE = {"nn", "ops", "schemes", "config", "errors", "numerics"}
ALLOWED = {
    "errors": set(),
    "config": set(),
    "numerics": {"numerics"},
    "nn": {"nn", "numerics"},
    "ops": {"ops", "numerics"},
    "schemes": {"schemes", "nn", "numerics"},
    "core": {"core", *BELOW_CORE},
    "passes": {"core", *BELOW_CORE},
    "analysis": {"analysis", "core", *BELOW_CORE},
    "pipelines": {"passes", "core"},
    "model_source": {"_torchvision", "api", "config", "errors"},
    "bench": {"bench", "api", "calibration", "config", "errors", "export", "model_source", "ops", "runtime"},
    "cli": {
        "",
        "api",
        "bench",
        "cli",
        "config",
        "core",
        "errors",
        "inspect",
        "model_source",
        "ops",
        "runtime",
        "schemes",
    },
}
TOPMOST = {"bench", "cli"}  # imported by no other part
EXTRAS = {"torchvision", "openvino", "fast_sugiyama", "font_source_sans_pro", "resvg_py"}  # need not be installed


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Every dotted name that a module imports, and whether that happens at module level."""
    tree = ast.parse(source)
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, id(node) not in inner) for name in names)


def offences(part: str, source: str) -> list[str]:
    """What a module of this part imports although it may not."""
    found = []
    for name, at_top in imports(source):
        top, _, rest = name.partition(".")
        if top in EXTRAS and at_top:
            found.append(name)
        if part not in TOPMOST and (top == "typer" or (top == "bnnfx" and rest.split(".")[0] in TOPMOST)):
            found.append(name)
        if part not in ALLOWED:
            continue
        if top == "bnnfx" and rest.split(".")[0] not in ALLOWED[part]:
            found.append(name)
        if part == "numerics" and (name == "torch.fx" or name.startswith("torch.fx.")):
            found.append(name)
        if top == "passes":
            found.append(name)
    return found


def part_of(module: str) -> str:
    return [*module.split("."), ""][1]


def test_all_parts_are_there():
    parts = {part_of(module) for module in FILES}
    assert set(ALLOWED) <= parts
    assert sum(part_of(module) == "passes" for module in FILES) > 10


def test_imports_are_found():
    found = {part: set() for part in ALLOWED}
    for module, path in FILES.items():
        for name, _ in imports(path.read_text()):
            if name.startswith("bnnfx.") and part_of(module) in found:
                found[part_of(module)].add(name.split(".")[1])
    assert "passes" in found["pipelines"]
    assert "core" in found["passes"]
    assert {"nn", "ops", "errors"} <= found["core"]
    assert "numerics" in found["nn"] & found["ops"] & found["schemes"]


@pytest.mark.parametrize("module", sorted(FILES))
def test_direction(module):
    assert offences(part_of(module), FILES[module].read_text()) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("numerics", "from torch import fx"),
        ("numerics", "import torch.fx"),
        ("numerics", "from bnnfx.nn import SignActivation"),
        ("nn", "from bnnfx.core.stage import Stage"),
        ("nn", "import bnnfx.ops"),
        ("core", "def f():\n    from bnnfx.passes.pack_layers import PackLayers"),
        ("core", "from bnnfx import pipelines"),
        ("core", "from bnnfx import convert"),
        ("passes", "from bnnfx.api import convert"),
        ("passes", "from bnnfx import pipelines"),
        ("passes", "from passes.pack_layers import PackLayers"),
        ("export", "import torchvision.models"),
        ("", "from torchvision import models"),
        ("bench", "import openvino"),
        ("bench", "from bnnfx.passes.pack_layers import PackLayers"),
        ("bench", "from bnnfx.cli import app"),
        ("cli", "from bnnfx.export.onnx_file import export_onnx"),
        ("export", "from bnnfx.bench.engines import Engine"),
        ("", "import typer"),
    ],
)
def test_wrong_direction_is_noticed(part, source):
    assert len(offences(part, source)) == 1


def test_engines_runs_by_itself():
    """It is the program that measures memory: importing bnnfx, and with it torch, would hide what a model takes."""
    source = FILES["bnnfx.bench.engines"].read_text()
    assert not [name for name, _ in imports(source) if name.split(".")[0] in ("bnnfx", "torch")]
    assert not [name for name, at_top in imports(source) if at_top and name.split(".")[0] in ("onnx", "onnxruntime")]


def test_lazy_torchvision_is_fine():
    assert offences("export", "def f():\n    import torchvision") == []
