"""The steps of an epilogue: what a fused convolution can do to its float stream. One row each, and all else follows.

A step means the same everywhere, so its meaning is written once: as a function of a namespace `xp`, of the stream, and
of the step's constants. With `xp` numpy it computes the reference. Recorded (`bnnfx.ops.recorder`), it is written down
as the ONNX body, by `bnnfx.backends.onnx.functions`, and as the C++ of the kernels, by `bnnfx/csrc/generate.py`. There
are `+ - * /`, `>` and `<`, and `xp.where`, on float32, and numbers that float32 holds exactly; every operation is
rounded on its own.

Nothing but the standard library is imported here, because the build of the kernel library reads this file.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: its part of the names of operators, as in `binary_conv2d_clamp_float`.
        constants: the names of its constants, `float32[1]` or `float32[P]` each.
        meaning: `meaning(xp, x, *constants)` is its result.
        made_from: the modules of `torch.nn` that it stands for, by the names of their types, each with a function from
            a module to the values of the constants: a number, or a tensor with one per channel.
        shifts: the name of another step, if this one is that with constants added before and behind it.
    """

    name: str
    constants: tuple[str, ...]
    meaning: Callable[..., Any]
    made_from: Mapping[str, Callable[[Any], tuple[Any, ...]]] = field(default_factory=dict)
    shifts: str | None = None


def _clamp(xp: Any, x: Any, low: Any, high: Any) -> Any:
    """`low` where x is below it, `high` where x is above it; NaN and -0.0 stay (-0.0 is not below 0.0).

    ONNX has `Clip`, but runtimes do not agree on what that makes of NaN and of -0.0. `Where` of ONNX Runtime keeps a
    -0.0 of its last operand only, so no bound is -0.0.
    """
    return xp.where(x > high, high, xp.where(x < low, low, x))


def _prelu(xp: Any, x: Any, slope: Any) -> Any:
    """X where it is positive, else `x * slope`. Not ONNX's `PRelu`, for the same reason as with `_clamp`."""
    return xp.where(x > 0.0, x, x * slope)


def _shifted_prelu(xp: Any, x: Any, shift_before: Any, slope: Any, shift_after: Any) -> Any:
    """`prelu(x + shift_before) + shift_after`.

    ONNX Runtime drops the addition of a single 0.0, which makes 0.0 of -0.0; `lower` writes -0.0 in its place.
    """
    return _prelu(xp, x + shift_before, slope) + shift_after


def _hardswish(xp: Any, x: Any) -> Any:
    """`x * clamp(x + 3, 0, 6) / 6`, from left to right, as torch's CPU kernels compute it, with vectors and without.

    The other orders, `x * (clamp(x + 3, 0, 6) / 6)` and `x * clamp(x + 3, 0, 6) * (1 / 6)`, differ from torch in the
    last place of every fourth number or so.
    """
    return x * _clamp(xp, x + 3.0, 0.0, 6.0) / 6.0


STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        Step(
            "clamp",
            ("low", "high"),
            _clamp,
            made_from={
                "ReLU": lambda module: (0.0, math.inf),
                "ReLU6": lambda module: (0.0, 6.0),
                "Hardtanh": lambda module: (module.min_val + 0.0, module.max_val + 0.0),  # -0.0 becomes 0.0
            },
        ),
        Step(
            "prelu",
            ("slope",),
            _prelu,
            made_from={
                "LeakyReLU": lambda module: (module.negative_slope,),
                "PReLU": lambda module: (module.weight,),
            },
        ),
        Step("shifted_prelu", ("shift_before", "slope", "shift_after"), _shifted_prelu, shifts="prelu"),
        Step("hardswish", (), _hardswish, made_from={"Hardswish": lambda module: ()}),
    )
}
"""The steps by name, in the order in which kernels number them."""


def step_of(module: object) -> tuple[Step, tuple[Any, ...]] | None:
    """The step that a module of `torch.nn` is, and the values of its constants; None for any other module.

    The type has to be the very one: a subclass may do anything.
    """
    kind = type(module)
    if kind.__module__.startswith("torch.nn.modules."):
        for step in STEPS.values():
            if kind.__name__ in step.made_from:
                return step, step.made_from[kind.__name__](module)
    return None


def with_shifts(step: Step) -> Step | None:
    """The step that is this one with constants added before and behind it, if there is such a step."""
    return next((other for other in STEPS.values() if other.shifts == step.name), None)
