"""What a row of the table of operators says: every question asked of an operator, and its pessimistic answer."""

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

Shape = tuple[int, ...]


class Kind(enum.Enum):
    """How the values of a result depend on those of the input, from the most to the least that can be relied on."""

    ELEMENTWISE = "value by value, with parameters that are numbers or one per channel; the shape stays"
    JOIN = "value by value of several tensors or numbers, broadcast"
    MOVE = "moves values, or picks some of them: another shape or order, no other value"
    POOL = "of each channel, a value between the least and the most in a window"
    RESAMPLE = "each channel by itself, on a grid of another size; padding adds values"
    NORM = "centres or scales values by statistics: where it centres, both signs occur"
    LAYER = "sums of products with a weight"
    CONCAT = "several tensors behind one another"
    REDUCE = "one value of all those along some axes"
    SIZE = "reads the shape, none of the values"
    OPAQUE = "unknown"


class Sign(enum.Enum):
    """Which signs the values of a tensor have, as far as the graph tells."""

    BOTH = "takes both signs"
    NEVER_NEGATIVE = "is never negative"
    UNKNOWN = "may have one sign only"


class Mode(enum.Enum):
    """What `train()` and `eval()` change."""

    SAME = "nothing"
    DROPS = "in evaluation it gives its input; in training it drops values"
    STATISTICS = "in training it uses the statistics of the batch"
    UNKNOWN = "unknown"


class Follows:
    """Stands for an argument `training` that follows `train()` and `eval()`."""


FOLLOWS = Follows()


@dataclass(frozen=True)
class Call:
    """One call of an operator, however it is spelled.

    Attributes:
        node: the node.
        module: the module that it calls, or None.
        operands: the tensors (or numbers in their place) that it works on, in order.
        arguments: its other arguments by name, without those that are not given; of a module, read off the module.
    """

    node: fx.Node
    module: nn.Module | None
    operands: tuple[Any, ...]
    arguments: Mapping[str, object]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument by the name that the row gives it."""
        if self.module is not None:
            return getattr(self.module, name, default)
        return self.arguments.get(name, default)

    def number(self, name: str, default: float) -> float | None:
        """An argument that is a number; None if it is computed in the graph, or a tensor."""
        value = self.get(name, default)
        value = default if value is None else value
        return float(value) if isinstance(value, int | float) and not math.isnan(value) else None

    def numbers(self) -> list[float]:
        """The operands that are numbers."""
        return [float(operand) for operand in self.operands if isinstance(operand, int | float)]


SignRule = Callable[[Call, Sequence[Sign]], Sign]
"""The sign of a result, from the call and the signs of its operands that are tensors, where none depends on another."""

AxesRule = Callable[[Call, Sequence[int | None]], int | None]
"""The number of axes of a result, from the call and those of its operands that are tensors; None is not known."""

Spelling = tuple[nn.Module | Callable[..., Any], tuple[Any, ...]]
"""A module or function to call, and its arguments."""


@dataclass(frozen=True)
class Operator:
    """One row.

    Attributes:
        name: for reports.
        kind: see `Kind`.
        modules: the module types that are this operator, exactly.
        functions: the functions that are; of a library that need not be installed, as "module.name".
        methods: the methods of `Tensor` that are.
        operands: the names of the leading arguments that are tensors.
        parameters: the names of the arguments behind them, in the functions' order; a module has attributes of these
            names.
        sign: the sign of the result.
        monotone: how a value moves with its input: 1 up, -1 down, per channel or for all; None if it may do both.
        batch_norm: whether it normalizes each channel over the batch and keeps running statistics, with which it is
            `x * scale + bias` per channel in evaluation.
        channel_axis: of a batch norm, which axis holds the channels, 1 or -1.
        canonical: what a call in another spelling is rewritten to; None if it stays.
        axes: the number of axes of its input, with the batch, where that is fixed.
        result_axes: the number of axes of its result.
        identity: whether its result has the values of its input, in both modes.
        fresh: whether its result lies in memory of its own, and never in that of an input.
        keeps_shift: whether `f(x + c) = f(x) + c` for one c per channel.
        mode: see `Mode`.
        per_channel: whether its parameters differ between channels, so that it knows which axis they are.
        centres: of a norm, whether it centres the values of each channel.
        multiplies: whether it is a matrix product of its operands.
        scales: whether it multiplies what it works on, or divides it, value by value.
        transposed: of a layer, whether each input is multiplied by every weight, and not each output made of them.
        replaced: whether schemes replace it beside binary layers: the ReLUs.
        resizable: whether `bnnfx.graph.resize` can change its number of channels.
        macs: multiply-accumulates of a call, for the whole batch, from the shapes of its tensors and of its result.
    """

    name: str
    kind: Kind = Kind.OPAQUE
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Callable[..., Any] | str, ...] = ()
    methods: tuple[str, ...] = ()
    operands: tuple[str, ...] = ("input",)
    parameters: tuple[str, ...] = ()
    sign: SignRule = field(default=lambda call, signs: Sign.UNKNOWN)
    monotone: Callable[[Call], Tensor | None] = field(default=lambda call: None)
    batch_norm: bool = False
    channel_axis: int = 1
    canonical: Callable[[Call], Spelling | None] = field(default=lambda call: None)
    axes: int | None = None
    result_axes: AxesRule = field(default=lambda call, axes: None)
    identity: bool = False
    fresh: bool = False
    keeps_shift: Callable[[Call], bool] = field(default=lambda call: False)
    mode: Mode = Mode.UNKNOWN
    per_channel: Callable[[Call], bool] = field(default=lambda call: False)
    centres: bool = False
    multiplies: bool = False
    scales: bool = False
    transposed: bool = False
    replaced: bool = False
    resizable: bool = False
    macs: Callable[[nn.Module, Sequence[Shape], Shape], int] | None = None


OPAQUE = Operator("an operator that is not known")
"""What has no row."""


# numbers of axes


def same_axes(call: Call, axes: Sequence[int | None]) -> int | None:
    """As many as the first operand has."""
    return axes[0] if axes else None


def broadcast_axes(call: Call, axes: Sequence[int | None]) -> int | None:
    """As many as the operand with the most, where all are known."""
    known = [count for count in axes if count is not None]
    return max(known) if len(known) == len(axes) > 0 else None


def axes_of_arguments(call: Call, axes: Sequence[int | None]) -> int | None:
    """One per size or axis that is given: `x.reshape(2, 3)`, `x.permute((0, 2, 1))`."""
    given = call.node.args[1:]
    listed = given[0] if len(given) == 1 else given
    return len(listed) if isinstance(listed, list | tuple) else None


def flattened_axes(call: Call, axes: Sequence[int | None]) -> int | None:
    """Those from `start_dim` to `end_dim` become one."""
    start, end = call.get("start_dim", 0 if call.module is None else 1), call.get("end_dim", -1)
    count = axes[0] if axes else None
    if count is None or not isinstance(start, int) or not isinstance(end, int):
        return None
    return count - (end % count - start % count)
