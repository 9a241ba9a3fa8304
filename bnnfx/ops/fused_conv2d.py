"""`binary_conv2d_*`: one binary layer as one node, from packed bits to a float stream, the next layer's bits, or both.

Float streams are `[N, H, W, C]`, so that nothing is transposed between one binary layer and the next.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnnfx.numerics.bits import pack_bits, row_bytes
from bnnfx.ops import signatures
from bnnfx.ops.checks import require, require_convolution
from bnnfx.ops.epilogue import Epilogue, epilogues
from bnnfx.ops.packed_op import PackedOp, define
from bnnfx.ops.window import accumulators, geometry, output_size

NOTHING = torch.tensor([-0.0])
"""A bias that changes no number.

It also stands for a single 0.0: ONNX Runtime leaves out the addition of that, which would make 0.0 of -0.0, so that a
body would differ from its kernel.
"""


class _FusedConv2d:
    """Reference and shape function of the operator with one epilogue."""

    def __init__(self, epilogue: Epilogue) -> None:
        self.epilogue = epilogue
        self.tensors = ("x", "weight", *epilogue.tensors)

    def reference(self, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
        stream, given = self._stream(arguments)
        results: dict[str, np.ndarray[Any, Any]] = {"float": stream}
        if "bits" in self.epilogue.outputs:
            results["bits"] = pack_bits(stream >= given["threshold"].cpu().numpy())
        tensors = tuple(torch.from_numpy(results[name]).to(given["x"].device) for name in self.epilogue.outputs)
        return tensors if len(tensors) > 1 else tensors[0]

    def compared(self, *arguments: Any) -> Tensor:
        """The float stream minus the threshold."""
        stream, given = self._stream(arguments)
        return torch.from_numpy(stream - given["threshold"].cpu().numpy())

    def _stream(self, arguments: tuple[Any, ...]) -> tuple[np.ndarray[Any, np.dtype[np.float32]], dict[str, Tensor]]:
        given = dict(zip(self.tensors, arguments, strict=False))
        x, weight = given["x"], given["weight"]
        channels, strides, pads, dilations, groups, low = arguments[len(self.tensors) :]
        name, copies = self.epilogue.name, self.epilogue.copies
        outputs = copies * int(weight.shape[0])
        require_convolution(name, x, weight, channels, groups, low, {})
        for key in self.epilogue.tensors:
            if key != "residual":
                rule = f"{key} is float32[1] or float32[{outputs}]"
                fits = given[key].dtype == torch.float32 and given[key].shape in ((1,), (outputs,))
                require(fits, name, rule, **{key: given[key]})
        if self.epilogue.adds:
            shape = (x.shape[0], *output_size(x, weight, strides, pads, dilations), outputs)
            residual = given["residual"]
            fits = residual.dtype == torch.float32 and residual.shape == shape
            require(fits, name, f"residual is float32{list(shape)} like the result", residual=residual, x=x)
        integers = accumulators(x, weight, channels, geometry(strides, pads, dilations), groups, low, copies=copies)
        tensors = (given[key].cpu().numpy() for key in self.epilogue.tensors)
        with np.errstate(invalid="ignore"):  # what `where` does not take may be 0 * inf
            stream = self.epilogue.apply(np, integers.astype(np.float32), *tensors)
        return np.ascontiguousarray(stream), given

    def shape(self, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
        x, weight = arguments[:2]
        _, strides, pads, dilations, *_ = arguments[len(self.tensors) :]
        rows, columns = output_size(x, weight, strides, pads, dilations)
        outputs = self.epilogue.copies * int(weight.shape[0])
        results = {
            "float": x.new_empty((x.shape[0], rows, columns, outputs), dtype=torch.float32),
            "bits": x.new_empty((x.shape[0], rows, columns, row_bytes(outputs)), dtype=torch.uint8),
        }
        tensors = tuple(results[name] for name in self.epilogue.outputs)
        return tensors if len(tensors) > 1 else tensors[0]


def define_fused_conv2d(epilogue: Epilogue) -> PackedOp:
    """Define the operator with one epilogue, and put it into `FUSED_CONV2D`."""
    op = _FusedConv2d(epilogue)
    compared = op.compared if "bits" in epilogue.outputs else None
    FUSED_CONV2D[epilogue] = define(signatures.fused_conv2d(epilogue), op.reference, op.shape, compared)
    return FUSED_CONV2D[epilogue]


FUSED_CONV2D: dict[Epilogue, PackedOp] = {}
"""`binary_conv2d_<steps>(x, weight, scale, bias, ..., channels, strides, pads, dilations, groups, low)`, by epilogue.

`uint8[N, H, W, row_bytes(channels)]` and `uint8[O, kh, kw, row_bytes(channels / groups)]` to the float stream
`float32[N, OH, OW, P]` and/or the packed bits `stream >= threshold`, `uint8[N, OH, OW, row_bytes(P)]`, where P is O, or
2 * O with the step `Twice`. Each step is rounded on its own, in the order of the name; a residual is
`float32[N, OH, OW, P]`, other tensors are `float32[P]` or `float32[1]`. A 0 bit of x is `low`, -1 or 0.
"""

for _epilogue in epilogues():
    define_fused_conv2d(_epilogue)
