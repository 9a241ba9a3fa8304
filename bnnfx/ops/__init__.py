"""The operators of packed graphs, `torch.ops.bnnfx.*`: schema, shape function, numpy reference.

The same file names what the ONNX node of domain `ai.bnnfx` is called, so a packed operator is defined in one place; its
standard-operator body is in `bnnfx.backends.onnx.functions` and its kernels are in `bnnfx/csrc`.

| torch | ONNX | computes |
|---|---|---|
| `bnnfx::pack`, `pack_nhwc` | `Pack`, `PackNhwc` | float map to bits |
| `bnnfx::binary_conv2d_threshold` | `BinaryConv2dThreshold` | bits to bits: accumulator >= threshold, flipped or not |
| `bnnfx::binary_conv2d_twice_threshold` | `BinaryConv2dTwiceThreshold` | the same with two thresholds, so two bits |
| `bnnfx::binary_conv2d_<steps>` | `BinaryConv2d<Steps>` | bits to float stream, bits, or both: see `epilogue` |
| `bnnfx::max_pool2d` | `MaxPool2d` | bits to bits: OR, or AND, over windows |
| `bnnfx::binary_conv2d` | - | bits to float map; inside `lower` only |

Float maps are `[N, C, H, W]`, float streams `[N, H, W, C]`, packed maps `uint8[N, H, W, 8 * ceil(C / 64)]`; see
`bnnfx.numerics.bits`.
"""

from bnnfx.ops.binary_conv2d import BINARY_CONV2D
from bnnfx.ops.binary_conv2d_threshold import BINARY_CONV2D_THRESHOLD
from bnnfx.ops.fused_conv2d import FUSED_CONV2D
from bnnfx.ops.max_pool2d import MAX_POOL2D
from bnnfx.ops.pack import PACK, PACK_NHWC
from bnnfx.ops.packed_op import OPSET_VERSION, PackedOp

PACKED_OPS: tuple[PackedOp, ...] = (
    PACK,
    PACK_NHWC,
    BINARY_CONV2D,
    *BINARY_CONV2D_THRESHOLD.values(),
    *FUSED_CONV2D.values(),
    MAX_POOL2D,
)
"""Every operator of op-set version `OPSET_VERSION`."""

BY_ONNX_NAME = {op.onnx_name: op for op in PACKED_OPS if op.onnx_name is not None}
"""The operators that ONNX files hold."""

__all__ = ["BY_ONNX_NAME", "OPSET_VERSION", "PACKED_OPS", "PackedOp"]
