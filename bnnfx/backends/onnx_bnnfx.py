"""Target `bnnfx`: ONNX with nodes of domain `ai.bnnfx`, each with a body of standard operators.

The file runs in any ONNX Runtime, and at full speed where the kernel library is registered.
"""

from typing import TYPE_CHECKING, Any

from bnnfx.backends.target import ONNX_OPTIONS, Target, register_target

if TYPE_CHECKING:
    from torch import fx


def _render(gm: "fx.GraphModule", **options: Any) -> bytes:
    from bnnfx.backends.onnx.onnx_file import content, onnx_model
    from bnnfx.backends.onnx.packed_maps import packed_maps_of

    model = onnx_model(gm, **options)
    return content(model, packed_maps_of(model, gm))


register_target(Target("bnnfx", "ONNX that runs anywhere, and fast with our kernels", _render, ONNX_OPTIONS, True))
