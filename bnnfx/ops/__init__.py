"""The operators of packed graphs, `torch.ops.bnnfx.*`, one file each: schema, shape function, numpy reference.

The same file names what the ONNX node of domain `ai.bnnfx` is called, so a packed operator is defined in one place; its
standard-operator body is in `bnnfx.export.functions` and its kernels are in `bnnfx/csrc`.

| torch | ONNX | computes |
|---|---|---|
| `bnnfx::pack` | `Pack` | float map to bits |
| `bnnfx::binary_conv2d` | `BinaryConv2d` | bits to float map: accumulator * scale + bias |
| `bnnfx::binary_conv2d_threshold` | `BinaryConv2dThreshold` | bits to bits: accumulator >= threshold, flipped or not |
| `bnnfx::max_pool2d` | `MaxPool2d` | bits to bits: OR, or AND, over windows |

Float maps are `[N, C, H, W]`, packed maps `uint8[N, H, W, 8 * ceil(C / 64)]`; see `bnnfx.numerics.bits`.
"""

from bnnfx.ops.binary_conv2d import BINARY_CONV2D
from bnnfx.ops.binary_conv2d_threshold import BINARY_CONV2D_THRESHOLD
from bnnfx.ops.max_pool2d import MAX_POOL2D
from bnnfx.ops.pack import PACK
from bnnfx.ops.registry import OPSET_VERSION, PackedOp

PACKED_OPS: tuple[PackedOp, ...] = (PACK, BINARY_CONV2D, BINARY_CONV2D_THRESHOLD, MAX_POOL2D)
"""Every operator of op-set version `OPSET_VERSION`."""

__all__ = ["OPSET_VERSION", "PACKED_OPS", "PackedOp"]
