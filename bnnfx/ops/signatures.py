"""The table of packed operators: what each is called, what it takes and gives, and which kernel computes it.

A row makes the schema of the torch operator, the signature of the ONNX function, and a row of the C++ library's table.

Nothing but the standard library is imported here, because the build of the kernel library reads this file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bnnfx.ops.epilogue import Epilogue, epilogues
from bnnfx.ops.steps import STEPS

ONNX_DOMAIN = "ai.bnnfx"
OPSET_VERSION = 1
"""Version of the operator definitions, in torch and in ONNX; a change of any operator's meaning raises it."""


@dataclass(frozen=True)
class Input:
    """A tensor that an operator takes.

    Attributes:
        name: of the argument.
        type: of its elements: "float32", "uint8" or "int32".
        constant: whether it belongs to the trained network, so that kernels prepare it once, when a session is made.
    """

    name: str
    type: str
    constant: bool = True


@dataclass(frozen=True)
class Signature:
    """One row.

    Attributes:
        name: of the torch operator in namespace `bnnfx`.
        inputs: the tensors, which come first; in torch and in ONNX.
        outputs: what it gives, in order: "float" for a float map, "bits" for packed bits.
        attributes: what follows the tensors, "int" or "ints" each. In torch, `pads` are one number per axis.
        kernel: the class in `bnnfx/csrc/kernels` that computes it; None where nodes run as their bodies.
        variant: what tells apart the operators of one kernel: integers that it is made with.
        in_place: the input, if any, in whose memory the first output may be written.
        exported: whether ONNX files hold it; if not, it occurs inside `lower` only.
        channels_last: whether a float map that comes in is `[N, H, W, C]`, not `[N, C, H, W]`.
    """

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, str] = field(default_factory=dict)
    kernel: str | None = None
    variant: Mapping[str, int] = field(default_factory=dict)
    in_place: str | None = None
    exported: bool = True
    channels_last: bool = False

    @property
    def onnx_name(self) -> str | None:
        """Op type in domain `ai.bnnfx`, such as `MaxPool2d`; None for an operator that no file holds."""
        return "".join(part.capitalize() for part in self.name.split("_")) if self.exported else None

    @property
    def schema(self) -> str:
        """Of the torch operator, behind its name."""
        types = {"int": "int", "ints": "SymInt[]"}
        arguments = [f"Tensor {tensor.name}" for tensor in self.inputs]
        arguments += [f"{types[kind]} {name}" for name, kind in self.attributes.items()]
        results = ", ".join("Tensor" for _ in self.outputs)
        return f"({', '.join(arguments)}) -> {f'({results})' if len(self.outputs) > 1 else results}"


_BITS = Input("x", "uint8", constant=False)
_FLOATS = Input("x", "float32", constant=False)
_THRESHOLD = Input("threshold", "float32", constant=False)
_WEIGHT = Input("weight", "uint8")
_WINDOW = {"strides": "ints", "pads": "ints", "dilations": "ints"}
_CONVOLUTION = {"channels": "int", **_WINDOW, "groups": "int", "low": "int"}

PACK = Signature("pack", (_FLOATS, _THRESHOLD), ("bits",), kernel="Pack")
PACK_NHWC = Signature("pack_nhwc", (_FLOATS, _THRESHOLD), ("bits",), kernel="PackNhwc", channels_last=True)
BINARY_CONV2D = Signature(
    "binary_conv2d",
    (_BITS, _WEIGHT, Input("scale", "float32"), Input("bias", "float32")),
    ("float",),
    {**_CONVOLUTION, "copies": "int"},
    exported=False,
)
MAX_POOL2D = Signature(
    "max_pool2d",
    (_BITS, Input("and_mask", "uint8")),
    ("bits",),
    {"kernel_shape": "ints", **_WINDOW, "ceil_mode": "int"},
    kernel="MaxPool2d",
)


def _threshold(name: str, copies: int) -> Signature:
    inputs = (_BITS, _WEIGHT, Input("threshold", "int32"), Input("flip", "uint8"))
    return Signature(name, inputs, ("bits",), _CONVOLUTION, kernel="BinaryConv2dThreshold", variant={"copies": copies})


BINARY_CONV2D_THRESHOLD = {
    1: _threshold("binary_conv2d_threshold", 1),
    2: _threshold("binary_conv2d_twice_threshold", 2),
}
"""By the number of copies of the accumulators."""


def fused_conv2d(epilogue: Epilogue) -> Signature:
    """The convolution with this epilogue."""
    tensors = (Input(name, "float32", constant=name != "residual") for name in epilogue.tensors)
    numbers = {name: number for number, name in enumerate(("", *STEPS))}
    return Signature(
        epilogue.name,
        (_BITS, _WEIGHT, *tensors),
        epilogue.outputs,
        _CONVOLUTION,
        kernel="BinaryConv2d",
        variant={
            "copies": epilogue.copies,
            "before": numbers[epilogue.before],
            "adds": int(epilogue.adds),
            "after": numbers[epilogue.after],
            "stores": int("float" in epilogue.outputs),
            "compares": int("bits" in epilogue.outputs),
        },
        # each value of the stream is stored where, and after, its value of the residual was read
        in_place="residual" if epilogue.adds and "float" in epilogue.outputs else None,
    )


SIGNATURES: tuple[Signature, ...] = (
    PACK,
    PACK_NHWC,
    BINARY_CONV2D,
    *BINARY_CONV2D_THRESHOLD.values(),
    *map(fused_conv2d, epilogues()),
    MAX_POOL2D,
)
"""Every operator of op-set version `OPSET_VERSION`."""
