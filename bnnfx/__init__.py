"""bnnfx: a compiler for binary neural networks, from a float PyTorch model to one small and fast ONNX file.

>>> import bnnfx
>>> from torch import nn
>>> bnn = bnnfx.convert(nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(3))), scheme="rbnn")

Importing the package loads none of its parts: each comes when a public name of it is asked for, and the operators
`torch.ops.bnnfx.*` are registered when one of them is.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bnnfx.operators_on_demand import watch_for_torch

if TYPE_CHECKING:  # for type checkers; a test compares it with the table below
    from bnnfx import analysis as analysis
    from bnnfx.api import convert as convert
    from bnnfx.api import export as export
    from bnnfx.api import export_onnx as export_onnx
    from bnnfx.api import lower as lower
    from bnnfx.api import split as split
    from bnnfx.backends import Target as Target
    from bnnfx.backends import register_target as register_target
    from bnnfx.backends import targets as targets
    from bnnfx.calibration import Observations as Observations
    from bnnfx.calibration import calibrate as calibrate
    from bnnfx.config import Config as Config
    from bnnfx.config import LayerConfig as LayerConfig
    from bnnfx.errors import AnalysisError as AnalysisError
    from bnnfx.errors import BenchmarkError as BenchmarkError
    from bnnfx.errors import BnnfxError as BnnfxError
    from bnnfx.errors import ConversionError as ConversionError
    from bnnfx.errors import ExampleInputError as ExampleInputError
    from bnnfx.errors import ExportError as ExportError
    from bnnfx.errors import ModelFileError as ModelFileError
    from bnnfx.errors import ModelSourceError as ModelSourceError
    from bnnfx.errors import StageError as StageError
    from bnnfx.inspect import Explanation as Explanation
    from bnnfx.inspect import Summary as Summary
    from bnnfx.inspect import draw as draw
    from bnnfx.inspect import explain as explain
    from bnnfx.inspect import report as report
    from bnnfx.inspect import summary as summary
    from bnnfx.optimizer_state import split_optimizer_state as split_optimizer_state
    from bnnfx.runtime import Session as Session
    from bnnfx.runtime import library_path as library_path
    from bnnfx.runtime import load as load
    from bnnfx.schedule import Schedule as Schedule
    from bnnfx.schemes import Scheme as Scheme
    from bnnfx.schemes import register_scheme as register_scheme
    from bnnfx.schemes import schemes as schemes
    from bnnfx.verification import Verification as Verification
    from bnnfx.verification import verify as verify

    __version__: str

_PUBLIC = {
    "bnnfx.api": ("convert", "export", "export_onnx", "lower", "split"),
    "bnnfx.backends": ("Target", "register_target", "targets"),
    "bnnfx.calibration": ("Observations", "calibrate"),
    "bnnfx.config": ("Config", "LayerConfig"),
    "bnnfx.errors": (
        "AnalysisError",
        "BenchmarkError",
        "BnnfxError",
        "ConversionError",
        "ExampleInputError",
        "ExportError",
        "ModelFileError",
        "ModelSourceError",
        "StageError",
    ),
    "bnnfx.inspect": ("Explanation", "Summary", "draw", "explain", "report", "summary"),
    "bnnfx.optimizer_state": ("split_optimizer_state",),
    "bnnfx.runtime": ("Session", "library_path", "load"),
    "bnnfx.schedule": ("Schedule",),
    "bnnfx.schemes": ("Scheme", "register_scheme", "schemes"),
    "bnnfx.verification": ("Verification", "verify"),
}
"""The public names, by the module that defines them."""

_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(("analysis", *_HOMES))


class _Package(ModuleType):
    """This package: a public name is looked up when it is asked for first."""

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            value: Any = version("bnnfx")
        elif name == "analysis":
            value = import_module("bnnfx.analysis")
        elif name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module 'bnnfx' has no attribute {name!r}")
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # the import of a subpackage binds it here, and `schemes` is a function's name, too
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__, "__version__"})


sys.modules[__name__].__class__ = _Package
watch_for_torch()
