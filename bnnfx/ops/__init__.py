"""The operators of packed graphs, `torch.ops.bnnfx.*`: signature, shape function, numpy reference.

`signatures` is the table of them and `steps` that of the steps of epilogues: everything about names, inputs and
attributes follows from these, here, in ONNX and in C++. Standard-operator bodies are in
`bnnfx.backends.onnx.functions`, kernels in `bnnfx/csrc/kernels`.

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

import importlib
import pkgutil

from bnnfx.ops.packed_op import BY_ONNX_NAME, BY_TARGET, OPSET_VERSION, PackedOp

for _module in pkgutil.iter_modules(__path__):  # each file that holds operators defines them
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["BY_ONNX_NAME", "BY_TARGET", "OPSET_VERSION", "PackedOp"]
