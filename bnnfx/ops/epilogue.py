"""Epilogues: which float steps a fused convolution takes between its accumulators and what it gives.

An operator is named for its steps, in their order:

    BinaryConv2d [Twice] [Clamp | Prelu | ShiftedPrelu] [Add [Clamp | Prelu | ShiftedPrelu]] (Float | Bits | FloatBits)

`Twice` puts a second copy of the accumulators behind the first: O filters give P = 2 * O channels; else P = O.

`bnnfx/csrc/conv/epilogue_variant.h` names the same operators to ONNX Runtime.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch

from bnnfx.numerics import float_steps as steps
from bnnfx.numerics.float_steps import Floats

NOTHING = torch.tensor([-0.0])
"""A bias that changes no number.

It also stands for a single 0.0: ONNX Runtime leaves out the addition of that, which would make 0.0 of -0.0, so that a
body would differ from its kernel.
"""


class Activation(enum.Enum):
    """An activation function inside an epilogue; the value is its part of the operator's name."""

    NONE = ""
    CLAMP = "clamp"
    PRELU = "prelu"
    SHIFTED_PRELU = "shifted_prelu"

    @property
    def constants(self) -> tuple[str, ...]:
        """Its constants: `float32[1]` or `float32[P]` each."""
        return _CONSTANTS[self]

    def apply(self, x: Floats, *constants: Floats) -> Floats:
        """The activation of `x`; a shifted PReLU is `prelu(x + shift_before) + shift_after`."""
        if self is Activation.CLAMP:
            return steps.clamp(x, *constants)
        if self is Activation.PRELU:
            return steps.prelu(x, *constants)
        if self is Activation.SHIFTED_PRELU:
            before, slope, after = constants
            return steps.prelu(x + before, slope) + after
        return x


_CONSTANTS = {
    Activation.NONE: (),
    Activation.CLAMP: ("low", "high"),
    Activation.PRELU: ("slope",),
    Activation.SHIFTED_PRELU: ("shift_before", "slope", "shift_after"),
}


@dataclass(frozen=True)
class Epilogue:
    """Scale and bias, then these steps.

    Attributes:
        before: the activation in front of the sum with the residual, or the only one.
        adds: whether a residual is added.
        after: the activation behind that sum; none without it.
        outputs: "float" for the float stream, "bits" for its comparison with a threshold, or both in this order.
        copies: how often the accumulators stand side by side, 1 or 2.
    """

    before: Activation = Activation.NONE
    adds: bool = False
    after: Activation = Activation.NONE
    outputs: tuple[str, ...] = ("float",)
    copies: int = 1

    @property
    def name(self) -> str:
        """Of the torch operator, such as `binary_conv2d_add_float_bits`."""
        steps = ("twice" if self.copies == 2 else "", self.before.value, "add" if self.adds else "", self.after.value)
        return "_".join(part for part in ("binary_conv2d", *steps, *self.outputs) if part)

    @property
    def onnx_name(self) -> str:
        """Of the ONNX operator, such as `BinaryConv2dAddFloatBits`."""
        head, conv2d, *rest = self.name.split("_")
        return "".join(part.capitalize() for part in (head, conv2d, *rest))

    @property
    def tensors(self) -> tuple[str, ...]:
        """Its tensors behind x and weight, in order."""
        both = self.before is not Activation.NONE and self.after is not Activation.NONE
        after = tuple(f"{name}_2" if both else name for name in self.after.constants)
        residual = ("residual",) if self.adds else ()
        threshold = ("threshold",) if "bits" in self.outputs else ()
        return ("scale", "bias", *self.before.constants, *residual, *after, *threshold)

    def apply(self, accumulators: npt.NDArray[np.int32], *tensors: Floats) -> Floats:
        """The float stream `float32[N, OH, OW, P]` of P accumulators.

        `tensors` are those of the attribute, the threshold left out.
        """
        factor, bias, *rest = tensors
        count = len(self.before.constants)
        stream = self.before.apply(steps.scale(accumulators, factor, bias), *rest[:count])
        if self.adds:
            residual, *rest = rest[count:]
            stream = self.after.apply(stream + residual, *rest)
        return stream


def epilogues() -> Iterator[Epilogue]:
    """Every epilogue there is."""
    for copies, before, adds, after in product((1, 2), Activation, (False, True), Activation):
        if adds or after is Activation.NONE:
            for outputs in (("float",), ("bits",), ("float", "bits")):
                yield Epilogue(before, adds, after, outputs, copies)
