"""What other packages do not document is used in one file of ours only."""

import ast
from collections.abc import Iterator

import pytest
from helpers.sources import FILES

HERE = "bnnfx.private_interfaces"
OTHERS = {"networkx", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "rich", "torch", "torchvision", "typer"}
BEHIND = {"capi", "nn.modules"}  # modules without an underscore that are no more public than one with it


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def bound(tree: ast.AST) -> Iterator[str]:
    """The names that a module gives to something: functions, classes, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def private_uses(source: str, inherited: set[str]) -> list[str]:
    """What a module uses that is private to another package.

    An attribute with an underscore is our own if the module gives a value to one of that name; or, of `self`, if a
    module of ours does.
    """
    found, tree = [], ast.parse(source)
    own = set(bound(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            foreign = node.attr not in (own | inherited if ast.unparse(node.value) == "self" else own)
            if (is_private(node.attr) and foreign) or text.endswith(tuple(f".{behind}" for behind in BEHIND)):
                found.append(text)
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, *rest = name.split(".")
            behind = any(f".{b}." in f"{name}." for b in BEHIND)
            if top in OTHERS and (behind or any(map(is_private, rest))):
                found.append(name)
    return found


OURS = {name for path in FILES.values() for name in bound(ast.parse(path.read_text()))}


@pytest.mark.parametrize("module", sorted(set(FILES) - {HERE}))
def test_nothing_private_elsewhere(module):
    assert private_uses(FILES[module].read_text(), OURS) == []


def test_all_that_is_private_there():
    uses = private_uses(FILES[HERE].read_text(), OURS)
    assert {"torch._ops._OpNamespace", "node._rename"} <= set(uses)
    assert len(uses) > 8


@pytest.mark.parametrize(
    "source",
    [
        "from torch._subclasses import FakeTensorMode",
        "from torch.nn.modules.batchnorm import _BatchNorm",
        "from torch.nn.modules import BatchNorm2d",
        "import onnxruntime.capi.onnxruntime_pybind11_state",
        "isinstance(x, torch.nn.modules.Conv2d)",
        "isinstance(x, nn.modules.batchnorm._BatchNorm)",
        "module._forward_hooks",
        "self._parameters",
        "torch._C.f()",
    ],
)
def test_private_use_is_noticed(source):
    assert private_uses(source, OURS)


def test_own_private_names_are_fine():
    assert private_uses("self._context\nimport bnnfx._torchvision", {"_context"}) == []
    assert private_uses("self._context = 1\nother._context", set()) == []
    assert private_uses("other._context", {"_context"}) == ["other._context"]
