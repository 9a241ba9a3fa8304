"""Who may import whom: every part of the package stands in a row of `LAYERS` and imports from rows above it only."""

import ast
from collections.abc import Iterator

import pytest
from helpers.sources import FILES

LAYERS = (
    {"arguments", "errors", "_torchvision", "private_interfaces", "source_forms"},
    {"registry", "config", "file_writing", "numerics", "tables"},
    {"nn", "ops"},
    {"operators_on_demand", "schemes"},
    {"graph"},
    {"frontend"},
    {"passes"},
    {"pipelines"},
    {"runtime"},
    {"backends"},
    {"verification"},
    {"api"},
    {"analysis", "calibration", "optimizer_state", "schedule"},
    {"inspect"},
    {""},  # bnnfx itself: the public names
    {"checkpoint"},
    {"model_source"},
    {"bench"},
    {"cli"},
    {"__main__"},
)
"""The parts of the package, from what knows nothing of the others to what knows them all."""

RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
EXTRAS = {"torchvision", "openvino", "fast_sugiyama", "font_source_sans_pro", "fontTools", "resvg_py"}
"""What need not be installed."""


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
        imported = rest.split(".")[0]
        if imported not in RANK:
            imported = ""  # a public name, or the version
        forbidden = (
            top in EXTRAS and at_top,
            top == "passes",
            top == "bnnfx" and imported != part and RANK[imported] >= RANK[part],
            top == "typer" and part != "cli",
            part == "numerics" and f"{name}.".startswith("torch.fx."),
        )
        if any(forbidden):
            found.append(name)
    return found


def part_of(module: str) -> str:
    return [*module.split("."), ""][1]


def test_all_parts_have_a_place():
    assert {part_of(module) for module in FILES} == set(RANK)
    assert sum(part_of(module) == "passes" for module in FILES) > 10


def test_imports_are_found():
    found: dict[str, set[str]] = {part: set() for part in RANK}
    for module, path in FILES.items():
        for name, _ in imports(path.read_text()):
            if name.startswith("bnnfx."):
                found[part_of(module)].add(name.split(".")[1])
    assert "passes" in found["pipelines"]
    assert "graph" in found["passes"]
    assert {"nn", "ops", "errors"} <= found["graph"]
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
        ("nn", "from bnnfx.graph.stage import Stage"),
        ("nn", "import bnnfx.ops"),
        ("graph", "def f():\n    from bnnfx.passes.lower.pack_layers import PackLayers"),
        ("graph", "from bnnfx import pipelines"),
        ("graph", "from bnnfx import convert"),
        ("passes", "from bnnfx.api import convert"),
        ("passes", "from bnnfx import pipelines"),
        ("passes", "from passes.pack_layers import PackLayers"),
        ("backends", "import torchvision.models"),
        ("", "from torchvision import models"),
        ("bench", "import openvino"),
        ("bench", "from bnnfx.cli import app"),
        ("backends", "from bnnfx.bench.engines import Engine"),
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
    assert offences("backends", "def f():\n    import torchvision") == []
