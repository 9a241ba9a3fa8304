"""bnnfx: a compiler for binary neural networks, from a float PyTorch model to one small and fast ONNX file.

>>> from torch import nn
>>> bnn = convert(nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(3))), scheme="rbnn")
"""

from importlib.metadata import version as _version

from bnnfx import analysis
from bnnfx.api import convert, lower, split
from bnnfx.backends.onnx import export_onnx
from bnnfx.calibration import Observations, calibrate
from bnnfx.config import Config, LayerConfig
from bnnfx.errors import (
    AnalysisError,
    BenchmarkError,
    BnnfxError,
    ConversionError,
    ExampleInputError,
    ExportError,
    ModelFileError,
    ModelSourceError,
    StageError,
)
from bnnfx.inspect import Explanation, Summary, Verification, draw, explain, report, summary, verify
from bnnfx.optimizer_state import split_optimizer_state
from bnnfx.runtime import Session, library_path, load
from bnnfx.schedule import Schedule
from bnnfx.schemes import Scheme, register_scheme, schemes

__version__ = _version("bnnfx")

__all__ = [
    "AnalysisError",
    "BenchmarkError",
    "BnnfxError",
    "Config",
    "ConversionError",
    "ExampleInputError",
    "Explanation",
    "ExportError",
    "LayerConfig",
    "ModelFileError",
    "ModelSourceError",
    "Observations",
    "Schedule",
    "Scheme",
    "Session",
    "StageError",
    "Summary",
    "Verification",
    "analysis",
    "calibrate",
    "convert",
    "draw",
    "explain",
    "export_onnx",
    "library_path",
    "load",
    "lower",
    "register_scheme",
    "report",
    "schemes",
    "split",
    "split_optimizer_state",
    "summary",
    "verify",
]
