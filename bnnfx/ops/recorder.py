"""A step of an epilogue as a list of operations, for whatever writes it down in another language.

Nothing but the standard library is imported here, because the build of the kernel library reads this file.
"""

import struct
from dataclasses import dataclass

from bnnfx.ops.steps import Step

Operand = str | float


@dataclass(frozen=True)
class Operation:
    """One operation on float32, or on what a comparison gave.

    Attributes:
        kind: "add", "subtract", "multiply", "divide", "greater", "less", or "where".
        operands: what it takes: names (`x`, a constant of the step, an earlier result), or numbers.
        result: the name of what it gives.
    """

    kind: str
    operands: tuple[Operand, ...]
    result: str


def operations(step: Step) -> list[Operation]:
    """What a step does to `x`, in order; the last result is that of the step.

    >>> from bnnfx.ops.steps import STEPS
    >>> for operation in operations(STEPS["prelu"]):
    ...     print(operation.result, operation.kind, *operation.operands)
    result0 greater x 0.0
    result1 multiply x slope
    result2 where result0 x result1
    """
    recorder = _Recorder()
    result = step.meaning(recorder, *(_Value(recorder, name) for name in ("x", *step.constants)))
    if not recorder.operations or result.name != recorder.operations[-1].result:
        raise ValueError(f"The step {step.name} has to end with an operation, whose result it gives.")
    return recorder.operations


class _Recorder:
    """The namespace `xp` of a step that is written down."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def note(self, kind: str, *operands: "_Value | float") -> "_Value":
        names = tuple(o.name if isinstance(o, _Value) else _number(o) for o in operands)
        self.operations.append(Operation(kind, names, f"result{len(self.operations)}"))
        return _Value(self, self.operations[-1].result)

    def where(self, condition: "_Value", there: "_Value | float", elsewhere: "_Value | float") -> "_Value":
        return self.note("where", condition, there, elsewhere)


class _Value:
    def __init__(self, recorder: _Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name

    def __add__(self, other: "_Value | float") -> "_Value":
        return self.recorder.note("add", self, other)

    def __sub__(self, other: "_Value | float") -> "_Value":
        return self.recorder.note("subtract", self, other)

    def __mul__(self, other: "_Value | float") -> "_Value":
        return self.recorder.note("multiply", self, other)

    def __truediv__(self, other: "_Value | float") -> "_Value":
        return self.recorder.note("divide", self, other)

    def __gt__(self, other: "_Value | float") -> "_Value":
        return self.recorder.note("greater", self, other)

    def __lt__(self, other: "_Value | float") -> "_Value":
        return self.recorder.note("less", self, other)


def _number(value: float) -> float:
    """A number, which every language spells and rounds alike."""
    if struct.unpack("f", struct.pack("f", value))[0] != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{value} is not exact in float32, or infinite; make it a constant of the step.")
    return float(value)
