"""Target `standard`: ONNX with standard operators only."""

from typing import TYPE_CHECKING, Any

from bnnfx.backends.target import ONNX_OPTIONS, Target, register_target

if TYPE_CHECKING:
    from torch import fx


def _render(gm: "fx.GraphModule", **options: Any) -> bytes:
    from bnnfx.backends.onnx.onnx_file import content, onnx_model, with_standard_operators
    from bnnfx.backends.onnx.packed_maps import packed_maps_of

    model = onnx_model(gm, **options)
    maps = packed_maps_of(model, gm)  # they are found by our nodes
    return content(with_standard_operators(model), maps)


register_target(Target("standard", "ONNX of standard operators only", _render, ONNX_OPTIONS, True))
