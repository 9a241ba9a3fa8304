"""How a packed graph goes out: one file per target, which registers itself; those of ONNX share the folder `onnx`.

Other packages add theirs through the entry-point group `bnnfx.targets`, whose objects are `Target` instances. What a
target needs is imported when it renders: a list of the targets costs nothing.
"""

from bnnfx.backends import onnx_bnnfx, onnx_standard  # each registers itself
from bnnfx.backends.target import TARGETS, Target, dialects, register_target, require_dialect, targets

__all__ = [
    "TARGETS",
    "Target",
    "dialects",
    "onnx_bnnfx",
    "onnx_standard",
    "register_target",
    "require_dialect",
    "targets",
]
