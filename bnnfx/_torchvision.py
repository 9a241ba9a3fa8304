"""Makes torchvision's models importable where its compiled operators do not fit the installed torch."""

import importlib
import sys
from types import ModuleType

import torch

_OPERATORS = ("nms", "qnms")
_libraries: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import torchvision; beside a CPU-only torch, a wheel built for CUDA needs two operator names declared beforehand.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]  # kept alive below
    for name in _OPERATORS:
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    _libraries.append(library)
    return importlib.import_module("torchvision")
