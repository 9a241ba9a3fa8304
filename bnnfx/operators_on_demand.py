"""Registers the operators `torch.ops.bnnfx.*` when one of them is asked for: by name, or by a graph that is unpickled.

Registering them takes longer than importing everything else of the package together.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def watch_for_torch() -> None:
    """See to it that `torch.ops.bnnfx` is complete; torch may have been imported, or it may be later."""
    if "torch" in sys.modules:
        _complete_namespace()
    else:
        sys.meta_path.insert(0, _BehindTorch())


class _BehindTorch(MetaPathFinder):
    """Lets the import of torch end with a call of ours; how torch is found and loaded is left as it is."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_go_on(module: ModuleType) -> None:
            execute(module)
            sys.meta_path.remove(self)
            _complete_namespace()

        spec.loader.exec_module = execute_and_go_on  # type: ignore[method-assign]
        return spec


def _complete_namespace() -> None:
    import torch

    from bnnfx.private_interfaces import OperatorNamespace

    class Operators(OperatorNamespace):
        """The namespace `torch.ops.bnnfx`."""

        __module__ = OperatorNamespace.__module__  # torch and torch.fx derive the names of operators from it

        def __getattr__(self, name: str) -> Any:
            if not name.startswith("__"):
                import bnnfx.ops  # noqa: F401
            return super().__getattr__(name)

    torch.ops.bnnfx.__class__ = Operators  # somebody may hold the namespace already
