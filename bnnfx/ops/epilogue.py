"""Epilogues: which float steps a fused convolution takes between its accumulators and what it gives.

An operator is named for its steps, in their order:

    BinaryConv2d [Twice] [step] [Add [step]] (Float | Bits | FloatBits)

where a step is one of `bnnfx.ops.steps`: Clamp, Prelu, ... `Twice` puts a second copy of the accumulators behind the
first: O filters give P = 2 * O channels; else P = O.

Nothing but the standard library is imported here, because the build of the kernel library reads this file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from bnnfx.ops.steps import STEPS


@dataclass(frozen=True)
class Epilogue:
    """Scale and bias, then these steps.

    Attributes:
        before: the name of the step in front of the sum with the residual, or of the only one; "" for none.
        adds: whether a residual is added.
        after: the name of the step behind that sum; "" for none, as without the sum.
        outputs: "float" for the float stream, "bits" for its comparison with a threshold, or both in this order.
        copies: how often the accumulators stand side by side, 1 or 2.
    """

    before: str = ""
    adds: bool = False
    after: str = ""
    outputs: tuple[str, ...] = ("float",)
    copies: int = 1

    @property
    def name(self) -> str:
        """Of the torch operator, such as `binary_conv2d_add_float_bits`."""
        steps = ("twice" if self.copies == 2 else "", self.before, "add" if self.adds else "", self.after)
        return "_".join(part for part in ("binary_conv2d", *steps, *self.outputs) if part)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Its tensors behind x and weight, in order; the constants of a second step have names that end in `_2`."""
        suffix = "_2" if self.before and self.after else ""
        residual = ("residual",) if self.adds else ()
        after = tuple(name + suffix for name in _constants(self.after))
        threshold = ("threshold",) if "bits" in self.outputs else ()
        return ("scale", "bias", *_constants(self.before), *residual, *after, *threshold)

    def apply(self, xp: Any, x: Any, *tensors: Any) -> Any:
        """The float stream `float32[N, OH, OW, P]` of accumulators `x` that are float32 already.

        Args:
            xp: the namespace of `x` and the tensors: numpy, or torch.
            x: P accumulators for each pixel.
            tensors: those of the attribute of this name; the threshold may be left out.
        """
        given = iter(tensors)

        def step(x: Any, name: str) -> Any:
            constants = [next(given) for _ in _constants(name)]
            return STEPS[name].meaning(xp, x, *constants) if name else x

        stream = x * next(given)  # rounded, so that it is not one operation with the sum
        stream = step(stream + next(given), self.before)
        return step(stream + next(given), self.after) if self.adds else stream


def _constants(step: str) -> tuple[str, ...]:
    return STEPS[step].constants if step else ()


def epilogues() -> Iterator[Epilogue]:
    """Every epilogue there is."""
    activations = ("", *STEPS)
    for copies, before, adds, after in product((1, 2), activations, (False, True), activations):
        if adds or not after:
            for outputs in (("float",), ("bits",), ("float", "bits")):
                yield Epilogue(before, adds, after, outputs, copies)
