"""What the compiler knows of the operators of a float network: one row each, here and nowhere else.

A row says how an operator is spelled (module types, functions, methods) and answers every question that passes, reports
and the tracer ask. **What a row does not say has the pessimistic answer**, and an operator without a row is `OPAQUE`:
it mixes values, may change shape and sign, follows `train()` and `eval()` in an unknown way, and nothing moves past it.

Module types match exactly: a subclass of `nn.ReLU` is another operator, as it may compute something else. An in-place
spelling (`relu_`, `inplace=True`) is made functional by the tracer and needs no row.

Which of them a fused convolution can take over says the table of steps, `bnnfx.ops.steps`, by their module types.

A new operator is one row of `ROWS`. The rows of binary layers and activation binarizers are those of `bnnfx.nn`.
"""

import enum
import functools
import math
import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bnnfx.nn import ActivationBinarizer, BinaryLayer

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
        """An argument that is a number; None if it is computed in the graph."""
        value = self.get(name, default)
        value = default if value is None else value
        return float(value) if isinstance(value, int | float) else None


SignRule = Callable[[Call, Sequence[Sign]], Sign]
"""The sign of a result, from the call and the signs of its operands."""

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
        canonical: what a call in another spelling is rewritten to; None if it stays.
        axes: the number of axes of its input, with the batch, where that is fixed.
        keeps_shift: whether `f(x + c) = f(x) + c` for one c per channel.
        mode: see `Mode`.
        per_channel: whether its parameters differ between channels, so that it knows which axis they are.
        centres: of a norm, whether it centres the values of each channel.
        multiplies: whether it is a matrix product of its operands.
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
    canonical: Callable[[Call], Spelling | None] = field(default=lambda call: None)
    axes: int | None = None
    keeps_shift: Callable[[Call], bool] = field(default=lambda call: False)
    mode: Mode = Mode.UNKNOWN
    per_channel: Callable[[Call], bool] = field(default=lambda call: False)
    centres: bool = False
    multiplies: bool = False
    replaced: bool = False
    resizable: bool = False
    macs: Callable[[nn.Module, Sequence[Shape], Shape], int] | None = None


OPAQUE = Operator("an operator that is not known")
"""What has no row."""


# --- rules for signs ---


def both(call: Call, signs: Sequence[Sign]) -> Sign:
    """Both signs, whatever the input."""
    return Sign.BOTH


def never(call: Call, signs: Sequence[Sign]) -> Sign:
    """Never negative, whatever the input."""
    return Sign.NEVER_NEGATIVE


def keeps(call: Call, signs: Sequence[Sign]) -> Sign:
    """That of the input."""
    return signs[0] if signs else Sign.UNKNOWN


def _flips(call: Call, signs: Sequence[Sign]) -> Sign:
    """The other sign, or at least both where the input has both."""
    return Sign.BOTH if Sign.BOTH in signs[:1] else Sign.UNKNOWN


def _of_bounds(call: Call, signs: Sequence[Sign]) -> Sign:
    low, high = (
        next((n for name in names if (n := call.number(name, bound)) != bound), bound)
        for names, bound in ((("min", "min_val"), -math.inf), (("max", "max_val"), math.inf))
    )
    if call.module is not None or "min_val" in call.arguments or "max_val" in call.arguments:
        low, high = call.number("min_val", -1.0), call.number("max_val", 1.0)
    if low is None or high is None or high <= 0:
        return Sign.UNKNOWN
    return Sign.NEVER_NEGATIVE if low >= 0 else keeps(call, signs)


def _of_slope(call: Call, signs: Sequence[Sign]) -> Sign:
    slope = call.number("negative_slope", 0.01)
    if slope is None:
        return Sign.UNKNOWN
    return keeps(call, signs) if slope > 0 else Sign.NEVER_NEGATIVE


def _of_prelu(call: Call, signs: Sequence[Sign]) -> Sign:
    weight = call.get("weight")
    if not isinstance(weight, Tensor):
        return Sign.UNKNOWN
    return keeps(call, signs) if bool((weight > 0).any()) else Sign.NEVER_NEGATIVE


def _of_threshold(call: Call, signs: Sequence[Sign]) -> Sign:
    threshold, value = call.number("threshold", 0.0), call.number("value", 0.0)
    positive = threshold is not None and value is not None and threshold >= 0 and value >= 0
    return Sign.NEVER_NEGATIVE if positive else Sign.UNKNOWN


def _of_padding(call: Call, signs: Sequence[Sign]) -> Sign:
    value = call.number("value", 0.0)
    return keeps(call, signs) if (value is not None and value >= 0) or signs == [Sign.BOTH] else Sign.UNKNOWN


def _numbers(call: Call) -> list[float]:
    return [float(operand) for operand in call.operands if isinstance(operand, int | float)]


def _of_sum(call: Call, signs: Sequence[Sign]) -> Sign:
    """Never negative if nothing that is added is; of both signs if some operand is, and no constant is added."""
    numbers = _numbers(call)
    if all(sign is Sign.NEVER_NEGATIVE for sign in signs) and all(number >= 0 for number in numbers):
        return Sign.NEVER_NEGATIVE
    return Sign.BOTH if Sign.BOTH in signs and not any(numbers) else Sign.UNKNOWN


def _of_difference(call: Call, signs: Sequence[Sign]) -> Sign:
    return Sign.UNKNOWN if any(_numbers(call)) or len({*map(id, call.operands)}) < 2 else Sign.BOTH


def _of_product(call: Call, signs: Sequence[Sign]) -> Sign:
    """Of a value that takes both signs, and gates or numbers that have one."""
    numbers = _numbers(call)
    if len(call.operands) > 1 and call.operands[0] is call.operands[1]:
        return Sign.NEVER_NEGATIVE
    if signs.count(Sign.BOTH) == 1 and Sign.UNKNOWN not in signs and all(numbers):
        return Sign.BOTH
    positive = all(sign is Sign.NEVER_NEGATIVE for sign in signs) and all(number > 0 for number in numbers)
    return Sign.NEVER_NEGATIVE if positive else Sign.UNKNOWN


def _of_most(call: Call, signs: Sequence[Sign]) -> Sign:
    """The larger of several."""
    if Sign.NEVER_NEGATIVE in signs or any(number >= 0 for number in _numbers(call)):
        return Sign.NEVER_NEGATIVE
    return Sign.BOTH if {*signs} == {Sign.BOTH} and not _numbers(call) else Sign.UNKNOWN


def _of_least(call: Call, signs: Sequence[Sign]) -> Sign:
    """The smaller of several."""
    if {*signs} == {Sign.NEVER_NEGATIVE} and all(number >= 0 for number in _numbers(call)):
        return Sign.NEVER_NEGATIVE
    return Sign.BOTH if Sign.BOTH in signs and all(number > 0 for number in _numbers(call)) else Sign.UNKNOWN


def _of_any(call: Call, signs: Sequence[Sign]) -> Sign:
    """Of values side by side."""
    if signs and {*signs} == {Sign.NEVER_NEGATIVE}:
        return Sign.NEVER_NEGATIVE
    return Sign.BOTH if Sign.BOTH in signs else Sign.UNKNOWN


def _of_choice(call: Call, signs: Sequence[Sign]) -> Sign:
    """One of two values, as a condition says: `where(x > 0, x, 0)` is a ReLU."""
    positive = {*signs[1:]} <= {Sign.NEVER_NEGATIVE} and all(number >= 0 for number in _numbers(call))
    return Sign.NEVER_NEGATIVE if positive else Sign.UNKNOWN


def _of_power(call: Call, signs: Sequence[Sign]) -> Sign:
    exponent = call.operands[1] if len(call.operands) > 1 else None
    if isinstance(exponent, int | float) and exponent % 2 == 0:
        return Sign.NEVER_NEGATIVE
    return Sign.NEVER_NEGATIVE if signs and signs[0] is Sign.NEVER_NEGATIVE else Sign.UNKNOWN


def _of_values(call: Call, signs: Sequence[Sign]) -> Sign:
    """Of attention: averages of its values."""
    return signs[2] if len(signs) > 2 else Sign.UNKNOWN


# --- monotone, epilogue steps, affine, canonical spellings ---


def _up(call: Call) -> Tensor:
    return torch.tensor(1.0)


def _slope(call: Call) -> Tensor | None:
    slope = call.get("weight") if isinstance(call.module, nn.PReLU) else call.number("negative_slope", 0.01)
    if slope is None or isinstance(slope, fx.Node):
        return None
    return slope.detach() if isinstance(slope, Tensor) else torch.tensor(slope)


def _up_by_slope(call: Call) -> Tensor | None:
    slope = _slope(call)
    return torch.tensor(1.0) if slope is not None and bool((slope >= 0).all()) else None


def _counts_no_padding(call: Call) -> bool:
    counts = call.get("count_include_pad", True) and call.get("padding", 0) not in (0, (0, 0))
    return not counts and call.get("divisor_override") is None


def _gives_no_indices(call: Call) -> bool:
    return not call.get("return_indices", False)


def _built(kind: type[nn.Module], *names: str) -> Callable[[Call], Spelling | None]:
    """The module for a functional call, built of the arguments of these names."""

    def build(call: Call) -> Spelling | None:
        given = {key: value for key, value in call.arguments.items() if key != "inplace"}
        if call.module is not None or set(given) - set(names) or is_computed(given):
            return None
        if given.get("return_indices"):
            return None
        if given.get("stride", 0) in ([], None):
            given.pop("stride", None)
        return kind(**given), call.operands

    return build


def is_computed(arguments: Any) -> bool:
    """Whether a value of the graph is among arguments."""
    found: list[fx.Node] = []
    fx.node.map_arg(arguments, found.append)
    return bool(found)


def _clamp_module(call: Call) -> Spelling | None:
    low, high = (call.get(name) for name in ("min", "max"))
    if call.module is not None or not all(bound is None or isinstance(bound, int | float) for bound in (low, high)):
        return None
    if high is None and low == 0:
        return nn.ReLU(), call.operands
    if low is None or high is None or not low < high:
        return None
    return nn.ReLU6() if (low, high) == (0, 6) else nn.Hardtanh(low, high), call.operands


def _softmax(call: Call) -> Spelling | None:
    plain = call.get("dtype") is None and call.get("_stacklevel", 3) == 3 and not is_computed(call.get("dim"))
    return (nn.Softmax(call.get("dim")), call.operands) if call.module is None and plain else None


def _threshold(call: Call) -> Spelling | None:
    return (nn.ReLU(), call.operands) if call.get("threshold") == call.get("value") == 0 else None


def _dropout(kind: type[nn.Module]) -> Callable[[Call], Spelling | None]:
    """The module follows `train()` and `eval()`; the function has to say that it does: see `bnnfx.nn.mode`."""

    def build(call: Call) -> Spelling | None:
        probability = call.get("p", 0.5)
        if call.module is not None or call.get("training", True) is not FOLLOWS or is_computed(probability):
            return None
        return kind(probability), call.operands

    return build


def _plain(function: Callable[..., Any]) -> Callable[[Call], Spelling | None]:
    """The same function in one spelling, where two operands are all that is given."""

    def spell(call: Call) -> Spelling | None:
        same = call.node.target is function or call.arguments or len(call.operands) != 2
        return None if same else (function, call.operands)

    return spell


def _cat(call: Call) -> Spelling | None:
    """`torch.concat(xs, 1)`, `torch.cat(xs, dim=1)`, `torch.cat(tensors=xs, axis=1)`, with the axis in second place."""
    if (call.node.target is torch.cat and not call.node.kwargs) or "out" in call.arguments:
        return None
    return torch.cat, (*call.operands, call.get("axis", call.get("dim", 0)))


def _flatten(call: Call) -> Spelling | None:
    if call.node.target is torch.flatten and not call.node.kwargs:
        return None
    return torch.flatten, (
        *call.operands,
        call.get("start_dim", 0 if call.module is None else 1),
        call.get("end_dim", -1),
    )


def _reshape(call: Call) -> Spelling | None:
    """`x.view(x.size(0), -1)`, `x.reshape(x.shape[0], -1)` keep the batch and flatten the rest: `torch.flatten`.

    Any other `view` or `reshape` is `torch.reshape`, which takes a map in whatever order it lies in memory.
    """
    node = call.node
    if not node.args:
        return None  # the tensor itself as a keyword
    source, rest = node.args[0], node.args[1:]
    shape = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
    if len(shape) == 2 and shape[1] == -1 and _is_batch_size(shape[0], source):
        return torch.flatten, (source, 1, -1)
    if node.kwargs or node.target is torch.reshape or not shape or isinstance(shape[0], torch.dtype):
        return None
    if len(rest) == 1 and _is_size(rest[0]):
        return torch.reshape, (source, rest[0])
    if len(rest) == 1 and isinstance(rest[0], fx.Node):
        return None  # one number, or a size: the graph does not tell
    return torch.reshape, (source, tuple(shape))


def _is_size(value: object) -> bool:
    """Whether `value` is `y.size()` or `y.shape`."""
    if not isinstance(value, fx.Node):
        return False
    is_shape = value.op == "call_function" and value.target is getattr and value.args[1] == "shape"
    return is_shape or (value.op == "call_method" and value.target == "size" and len(value.args) == 1)


def _is_batch_size(value: object, source: object) -> bool:
    """Whether `value` is `source.size(0)`, `source.size()[0]` or `source.shape[0]`."""
    if not isinstance(value, fx.Node):
        return False
    if value.op == "call_method" and value.target == "size":
        return value.args == (source, 0)
    if value.op != "call_function" or value.target is not operator.getitem or value.args[1] != 0:
        return False
    whole = value.args[0]
    return _is_size(whole) and whole.args[0] is source  # type: ignore[union-attr]


# --- multiply-accumulates ---


def _layer_macs(module: Any, inputs: Sequence[Shape], output: Shape) -> int:
    width = module.out_channels if hasattr(module, "out_channels") else module.out_features
    return math.prod(output) // int(width) * int(module.weight.numel())


def _transposed_macs(module: Any, inputs: Sequence[Shape], output: Shape) -> int:
    return math.prod(inputs[0]) // int(module.in_channels) * int(module.weight.numel())


def _bilinear_macs(module: Any, inputs: Sequence[Shape], output: Shape) -> int:
    """`x1^T W x2`: the weight with one input, and the result of that with the other."""
    rows = math.prod(output) // int(module.out_features)
    return rows * (int(module.weight.numel()) + int(module.out_features) * int(module.in2_features))


def _recurrent_macs(module: Any, inputs: Sequence[Shape], output: Shape) -> int:
    """Every weight matrix once per step of each sequence."""
    steps = math.prod(inputs[0][:-1])
    return steps * sum(int(weight.numel()) for name, weight in module.named_parameters() if name.startswith("weight"))


def _attention_macs(module: Any, inputs: Sequence[Shape], output: Shape) -> int:
    """The four projections, scores of every query with every key, and their products with the values."""
    query, key = inputs[0], inputs[1] if len(inputs) > 1 else inputs[0]
    value = inputs[2] if len(inputs) > 2 else key
    width, batched = int(module.embed_dim), len(query) == 3
    axis = 1 if batched and module.batch_first else 0
    batch = query[1 - axis] if batched else 1
    queries, keys = query[axis], key[axis]
    projections = queries * width * 2 * width + keys * width * (key[-1] + value[-1])
    return batch * (projections + 2 * queries * keys * width)


# --- the rows ---


def _unary(name: str, sign: SignRule, *, monotone: Callable[[Call], Tensor | None] | None = None) -> Operator:
    """A function of one number without arguments, wherever torch has it under this name."""
    functions = [found for place in (torch, F, torch.special) if (found := getattr(place, name, None)) is not None]
    functions += [getattr(operator, name)] if name in ("abs", "neg", "pos") else []
    methods = (name,) if hasattr(Tensor, name) else ()
    rise: dict[str, Any] = {} if monotone is None else {"monotone": monotone}
    return Operator(
        name, Kind.ELEMENTWISE, functions=tuple(functions), methods=methods, sign=sign, mode=Mode.SAME, **rise
    )


def _activation(
    kind: type[nn.Module], sign: SignRule, parameters: str = "", *, functions: tuple[Any, ...] = (), **facts: Any
) -> Operator:
    """An activation function: a module, and the function and method of its name in lower case."""
    name = kind.__name__.lower()
    places = (F, torch)
    found = [f for place in places if (f := getattr(place, name, None)) is not None] + list(functions)
    names = tuple(parameters.split())
    facts.setdefault("canonical", _built(kind, *names))
    methods = (name,) if hasattr(Tensor, name) else ()
    parameters_ = (*names, "inplace")
    return Operator(
        *(name, Kind.ELEMENTWISE, (kind,), tuple(found), methods),
        parameters=parameters_,
        sign=sign,
        mode=facts.pop("mode", Mode.SAME),
        **facts,
    )


def _pool(kind: type[nn.Module], function: Callable[..., Any], axes: int, parameters: str, **facts: Any) -> Operator:
    names = tuple(parameters.split())
    facts.setdefault("canonical", _built(kind, *names))
    facts.setdefault("sign", keeps)
    return Operator(
        kind.__name__,
        Kind.POOL,
        (kind,),
        (function, *facts.pop("functions", ())),
        parameters=names,
        axes=axes,
        mode=Mode.SAME,
        **facts,
    )


_MAX_POOL = "kernel_size stride padding dilation ceil_mode return_indices"
_AVG_POOL = "kernel_size stride padding ceil_mode count_include_pad divisor_override"


def _convolution(kind: type[nn.Module], axes: int, transposed: bool = False) -> Operator:
    return Operator(
        kind.__name__,
        Kind.LAYER,
        (kind,),
        sign=both,
        axes=axes,
        mode=Mode.SAME,
        resizable=True,
        macs=_transposed_macs if transposed else _layer_macs,
    )


def _layer(kind: type[nn.Module], **facts: Any) -> Operator:
    return Operator(kind.__name__, Kind.LAYER, (kind,), **{"sign": both, "mode": Mode.SAME, **facts})


def _dropping(kind: type[nn.Module], function: Callable[..., Any] | None) -> Operator:
    return Operator(
        kind.__name__,
        Kind.ELEMENTWISE,
        (kind,),
        () if function is None else (function,),
        parameters=("p", "training", "inplace"),
        sign=keeps,
        mode=Mode.DROPS,
        canonical=_dropout(kind),
        keeps_shift=lambda call: False,
    )


def _norm(kind: type[nn.Module], *functions: Any, **facts: Any) -> Operator:
    return Operator(kind.__name__, Kind.NORM, (kind,), functions, **{"sign": both, "centres": True, **facts})


def _batch_norm_row(kind: type[nn.Module], axes: int | None) -> Operator:
    return _norm(kind, batch_norm=True, axes=axes, mode=Mode.STATISTICS, resizable=True)


def _move(name: str, *functions: Any, methods: tuple[str, ...] = (), **facts: Any) -> Operator:
    found = functions or ((getattr(torch, name),) if hasattr(torch, name) else ())
    methods = methods or ((name,) if hasattr(Tensor, name) else ())
    return Operator(name, Kind.MOVE, functions=found, methods=methods, **{"sign": keeps, "mode": Mode.SAME, **facts})


def _join(name: str, sign: SignRule, *functions: Any, methods: tuple[str, ...] = (), **facts: Any) -> Operator:
    facts.setdefault("operands", ("input", "other"))
    return Operator(name, Kind.JOIN, functions=functions, methods=methods, **{"sign": sign, "mode": Mode.SAME, **facts})


def _reduction(name: str, sign: SignRule = keeps) -> Operator:
    found = (getattr(torch, name),) if hasattr(torch, name) else ()
    methods = (name,) if hasattr(Tensor, name) else ()
    return Operator(*(name, Kind.REDUCE, (), found, methods), parameters=("dim", "keepdim"), sign=sign, mode=Mode.SAME)


FUNCTIONAL_BATCH_NORM = "batch norm as a function"

ROWS: tuple[Operator, ...] = (
    # activation functions
    _activation(nn.ReLU, never, monotone=_up, replaced=True),
    _activation(nn.ReLU6, never, monotone=_up, replaced=True),
    _activation(nn.Hardtanh, _of_bounds, "min_val max_val", monotone=_up),
    Operator(
        "clamp",
        Kind.ELEMENTWISE,
        functions=(torch.clamp, torch.clip),
        methods=("clamp", "clip"),
        parameters=("min", "max"),
        sign=_of_bounds,
        monotone=_up,
        canonical=_clamp_module,
        mode=Mode.SAME,
    ),
    Operator(
        "clamp_min",
        Kind.ELEMENTWISE,
        functions=(torch.clamp_min,),
        methods=("clamp_min",),
        parameters=("min",),
        sign=_of_bounds,
        monotone=_up,
        canonical=_clamp_module,
        mode=Mode.SAME,
    ),
    _activation(nn.LeakyReLU, _of_slope, "negative_slope", functions=(F.leaky_relu,), monotone=_up_by_slope),
    _activation(
        nn.PReLU,
        _of_prelu,
        canonical=lambda call: None,
        monotone=_up_by_slope,
        resizable=True,
        per_channel=lambda call: getattr(call.module, "num_parameters", 2) > 1,
    ),
    _activation(nn.Threshold, _of_threshold, "threshold value", canonical=_threshold),
    _activation(nn.ELU, keeps, "alpha"),
    _activation(nn.SELU, keeps),
    _activation(nn.CELU, keeps, "alpha"),
    _activation(nn.GELU, keeps, "approximate"),
    _activation(nn.SiLU, keeps),
    _activation(nn.Mish, keeps),
    _activation(nn.Hardswish, keeps),
    _activation(nn.Tanh, keeps),
    _activation(nn.Softsign, keeps),
    _activation(nn.Tanhshrink, keeps),
    _activation(nn.Hardshrink, keeps, "lambd", functions=(F.hardshrink,)),
    _activation(nn.Softshrink, keeps, "lambd", functions=(F.softshrink,)),
    _activation(nn.LogSigmoid, lambda call, signs: Sign.UNKNOWN),
    _activation(nn.Sigmoid, never),
    _activation(nn.Hardsigmoid, never),
    _activation(nn.Softplus, never, "beta threshold", functions=(F.softplus,)),
    _activation(nn.RReLU, keeps, "lower upper", canonical=lambda call: None, mode=Mode.UNKNOWN),
    Operator(
        "softmax",
        Kind.OPAQUE,
        (nn.Softmax, nn.Softmax2d),
        (F.softmax, torch.softmax),
        ("softmax",),
        parameters=("dim", "_stacklevel", "dtype"),
        sign=never,
        canonical=_softmax,
        mode=Mode.SAME,
    ),
    Operator("glu", Kind.OPAQUE, (nn.GLU,), (F.glu,), sign=keeps, mode=Mode.SAME),
    # functions of one number
    *(
        _unary(name, never)
        for name in ("abs", "absolute", "square", "exp", "exp2", "cosh", "sqrt", "rsqrt", "erfc", "i0")
        if hasattr(torch, name) or hasattr(torch.special, name)
    ),
    *(
        _unary(name, keeps)
        for name in (
            *("sinh", "asinh", "arcsinh", "atan", "arctan", "erf", "expm1", "sign", "sgn", "trunc", "fix", "round"),
            *("deg2rad", "rad2deg", "floor", "positive", "pos", "nan_to_num"),
        )
        if hasattr(torch, name) or hasattr(operator, name)
    ),
    *(_unary(name, _flips) for name in (*("neg", "negative", "sin", "tan", "ceil", "frac", "reciprocal"),)),
    *(
        _unary(name, lambda call, signs: Sign.UNKNOWN)
        for name in (
            *("log", "log2", "log10", "log1p", "cos", "logit", "digamma", "lgamma", "arccos", "acos", "arcsin", "asin"),
            *("arctanh", "atanh", "erfinv"),
        )
    ),
    *(
        Operator(*(f"cast by {name}", Kind.ELEMENTWISE, (), (), (name,)), sign=keeps, mode=Mode.SAME, monotone=_up)
        for name in ("double", "half", "bfloat16", "to", "type", "type_as", "cpu", "cuda")
    ),
    # functions of several numbers
    _join(
        "add", _of_sum, operator.add, torch.add, methods=("add", "__add__", "__radd__"), canonical=_plain(operator.add)
    ),
    _join(
        "sub",
        _of_difference,
        operator.sub,
        torch.sub,
        torch.subtract,
        methods=("sub", "subtract", "__sub__"),
        canonical=_plain(operator.sub),
    ),
    _join("rsub", _of_difference, torch.rsub, methods=("__rsub__",)),
    _join(
        "mul",
        _of_product,
        operator.mul,
        torch.mul,
        torch.multiply,
        methods=("mul", "multiply", "__mul__", "__rmul__"),
        canonical=_plain(operator.mul),
    ),
    _join(
        "div",
        _of_product,
        operator.truediv,
        torch.div,
        torch.divide,
        methods=("div", "divide", "__truediv__"),
        canonical=_plain(operator.truediv),
    ),
    _join("maximum", _of_most, torch.maximum, torch.fmax, methods=("maximum", "fmax")),
    _join("minimum", _of_least, torch.minimum, torch.fmin, methods=("minimum", "fmin")),
    _join("pow", _of_power, operator.pow, torch.pow, methods=("pow", "__pow__")),
    _join("where", _of_choice, torch.where, operands=("condition", "input", "other")),
    _join("logaddexp", lambda call, signs: Sign.UNKNOWN, torch.logaddexp, methods=("logaddexp",)),
    # values that move
    Operator(
        "identity",
        Kind.ELEMENTWISE,
        (nn.Identity,),
        (torch.clone, torch.detach),
        ("contiguous", "clone", "detach", "float"),
        sign=keeps,
        monotone=_up,
        mode=Mode.SAME,
        keeps_shift=lambda call: call.module is not None,
    ),
    Operator(
        *("flatten", Kind.MOVE, (nn.Flatten,), (torch.flatten,), ("flatten",)),
        parameters=("start_dim", "end_dim"),
        sign=keeps,
        canonical=_flatten,
        mode=Mode.SAME,
    ),
    _move("reshape", torch.reshape, methods=("reshape", "view"), canonical=_reshape),
    _move("reshape_as", methods=("reshape_as", "view_as")),
    Operator("unflatten", Kind.MOVE, (nn.Unflatten,), (torch.unflatten,), ("unflatten",), sign=keeps, mode=Mode.SAME),
    *(
        _move(name)
        for name in (
            *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "squeeze", "unsqueeze", "t"),
            *("chunk", "split", "tensor_split", "split_with_sizes", "unbind", "narrow", "select", "index_select"),
            *("flip", "roll", "rot90", "gather", "take_along_dim", "unfold", "repeat_interleave", "expand_as"),
            *("expand", "repeat", "tile", "broadcast_to", "adjoint", "fliplr", "flipud", "diagonal"),
        )
    ),
    _move("getitem", operator.getitem, methods=("__getitem__",)),
    _move("pixel_shuffle", F.pixel_shuffle, torch.pixel_shuffle),
    _move("pixel_unshuffle", F.pixel_unshuffle, torch.pixel_unshuffle),
    _move("channel_shuffle", F.channel_shuffle, torch.channel_shuffle),
    Operator("shuffle", Kind.MOVE, (nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), sign=keeps, mode=Mode.SAME),
    _move("im2col", F.unfold),
    # pooling
    _pool(
        *(nn.MaxPool2d, F.max_pool2d, 4, _MAX_POOL),
        functions=(torch.max_pool2d,),
        monotone=lambda call: torch.tensor(1.0) if _gives_no_indices(call) else None,
        keeps_shift=_gives_no_indices,
    ),
    _pool(nn.MaxPool1d, F.max_pool1d, 3, _MAX_POOL),
    _pool(nn.MaxPool3d, F.max_pool3d, 5, _MAX_POOL),
    _pool(nn.AvgPool2d, F.avg_pool2d, 4, _AVG_POOL, keeps_shift=_counts_no_padding),
    _pool(nn.AvgPool1d, F.avg_pool1d, 3, "kernel_size stride padding ceil_mode count_include_pad"),
    _pool(nn.AvgPool3d, F.avg_pool3d, 5, _AVG_POOL),
    _pool(nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d, 4, "output_size", keeps_shift=lambda call: True),
    _pool(nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d, 4, "output_size return_indices", keeps_shift=_gives_no_indices),
    _pool(nn.AdaptiveAvgPool1d, F.adaptive_avg_pool1d, 3, "output_size"),
    _pool(nn.AdaptiveMaxPool1d, F.adaptive_max_pool1d, 3, "output_size return_indices"),
    _pool(nn.AdaptiveAvgPool3d, F.adaptive_avg_pool3d, 5, "output_size"),
    _pool(nn.AdaptiveMaxPool3d, F.adaptive_max_pool3d, 5, "output_size return_indices"),
    # each channel by itself, on another grid
    Operator(
        "pad",
        Kind.RESAMPLE,
        (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
        (F.pad,),
        parameters=("pad", "mode", "value"),
        sign=_of_padding,
        mode=Mode.SAME,
    ),
    Operator(
        "reflection padding",
        Kind.RESAMPLE,
        (
            *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d),
            *(nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
        ),
        sign=keeps,
        mode=Mode.SAME,
    ),
    Operator(
        "interpolate",
        Kind.RESAMPLE,
        (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
        (F.interpolate, F.upsample, F.upsample_nearest, F.upsample_bilinear, F.grid_sample),
        sign=keeps,
        mode=Mode.SAME,
    ),
    Operator(
        "power average pooling",
        Kind.RESAMPLE,
        (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d),
        (F.lp_pool1d, F.lp_pool2d, F.lp_pool3d),
        mode=Mode.SAME,
    ),
    # what drops values in training
    _dropping(nn.Dropout, F.dropout),
    _dropping(nn.Dropout1d, F.dropout1d),
    _dropping(nn.Dropout2d, F.dropout2d),
    _dropping(nn.Dropout3d, F.dropout3d),
    _dropping(nn.AlphaDropout, F.alpha_dropout),
    _dropping(nn.FeatureAlphaDropout, F.feature_alpha_dropout),
    Operator(
        "stochastic depth",
        Kind.ELEMENTWISE,
        functions=("torchvision.ops.stochastic_depth.stochastic_depth",),
        parameters=("p", "mode", "training"),
        sign=keeps,
        mode=Mode.DROPS,
    ),
    # normalization
    _batch_norm_row(nn.BatchNorm1d, None),
    _batch_norm_row(nn.BatchNorm2d, 4),
    _batch_norm_row(nn.BatchNorm3d, 5),
    _batch_norm_row(nn.SyncBatchNorm, None),
    Operator(
        *(FUNCTIONAL_BATCH_NORM, Kind.NORM, (), (F.batch_norm,)),
        parameters=("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        sign=both,
        centres=True,
    ),
    _norm(nn.GroupNorm, F.group_norm, torch.group_norm, resizable=True, mode=Mode.SAME),
    _norm(nn.LayerNorm, F.layer_norm, torch.layer_norm, mode=Mode.SAME),
    *(
        _norm(kind, F.instance_norm, axes=axes, resizable=True, mode=Mode.STATISTICS)
        for kind, axes in ((nn.InstanceNorm1d, 3), (nn.InstanceNorm2d, 4), (nn.InstanceNorm3d, 5))
    ),
    _norm(nn.RMSNorm, F.rms_norm, sign=keeps, centres=False, mode=Mode.SAME),
    _norm(nn.LocalResponseNorm, F.local_response_norm, sign=keeps, centres=False, mode=Mode.SAME),
    Operator("normalize", Kind.NORM, functions=(F.normalize,), sign=keeps, mode=Mode.SAME),
    # layers with a weight
    _convolution(nn.Conv1d, 3),
    _convolution(nn.Conv2d, 4),
    _convolution(nn.Conv3d, 5),
    _convolution(nn.ConvTranspose1d, 3, transposed=True),
    _convolution(nn.ConvTranspose2d, 4, transposed=True),
    _convolution(nn.ConvTranspose3d, 5, transposed=True),
    _layer(nn.Linear, resizable=True, macs=_layer_macs),
    _layer(nn.Bilinear, macs=_bilinear_macs),
    *(_layer(kind, macs=_recurrent_macs, mode=Mode.UNKNOWN) for kind in (nn.RNN, nn.LSTM, nn.GRU)),
    *(_layer(kind, macs=_recurrent_macs) for kind in (nn.RNNCell, nn.LSTMCell, nn.GRUCell)),
    _layer(nn.MultiheadAttention, macs=_attention_macs, mode=Mode.UNKNOWN),
    Operator(
        "a layer that is called as a function",
        Kind.LAYER,
        functions=(
            *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
            *(F.linear, F.bilinear, F.multi_head_attention_forward),
        ),
        operands=("input", "weight", "bias"),
        sign=both,
        mode=Mode.SAME,
    ),
    Operator(
        "matmul",
        Kind.OPAQUE,
        functions=(
            *(operator.matmul, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
            torch.tensordot,
        ),
        methods=("matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm"),
        operands=("input", "other"),
        multiplies=True,
        mode=Mode.SAME,
    ),
    Operator(
        "attention",
        Kind.OPAQUE,
        functions=(F.scaled_dot_product_attention,),
        operands=("query", "key", "value"),
        sign=_of_values,
    ),
    # several tensors behind one another, one value of many
    Operator(
        *("cat", Kind.CONCAT, (), (torch.cat, torch.concat, torch.concatenate)),
        operands=("tensors",),
        parameters=("dim",),
        sign=_of_any,
        canonical=_cat,
        mode=Mode.SAME,
    ),
    Operator(
        *("stack", Kind.CONCAT, (), (torch.stack, torch.hstack, torch.vstack, torch.dstack)),
        operands=("tensors",),
        parameters=("dim",),
        sign=_of_any,
        mode=Mode.SAME,
    ),
    *(
        _reduction(name)
        for name in ("mean", "sum", "amax", "amin", "median", "max", "min", "cumsum", "cummax", "nanmean", "nansum")
    ),
    *(_reduction(name, never) for name in ("var", "std", "norm")),
    # sizes
    Operator("size", Kind.SIZE, functions=(getattr,), methods=("size", "dim", "numel", "ndimension"), mode=Mode.SAME),
)
"""Every operator that something is known of."""


BINARIZER = Operator(
    "binarizer",
    sign=lambda call, signs: Sign.NEVER_NEGATIVE if call.get("absorbs_relu") else Sign.BOTH,
    mode=Mode.SAME,
)
"""Any activation binarizer."""


DROPS_IN_TRAINING = Operator("drop path", Kind.ELEMENTWISE, sign=keeps, mode=Mode.DROPS)
"""A module that was seen to give its input in evaluation: the tracer marks it, see `bnnfx.frontend.trace`."""

DROPS_MARK = "_bnnfx_gives_its_input_in_evaluation"


def is_opaque(row: Operator) -> bool:
    """Whether nothing is known of an operator."""
    return row is OPAQUE


@functools.cache
def _index() -> tuple[dict[object, Operator], dict[str, Operator], dict[type, Operator]]:
    functions: dict[object, Operator] = {}
    methods: dict[str, Operator] = {}
    modules: dict[type, Operator] = {}
    for row in reversed(ROWS):  # of two rows with one spelling the first has it
        functions |= dict.fromkeys(row.functions, row)
        methods |= dict.fromkeys(row.methods, row)
        modules |= dict.fromkeys(row.modules, row)
    return functions, methods, modules


def operator_of_module(module: nn.Module | None) -> Operator:
    """The row of a module, by its exact type; of a binarizer or a binary layer, by what it is."""
    if isinstance(module, ActivationBinarizer):
        return BINARIZER
    if getattr(module, DROPS_MARK, False):
        return DROPS_IN_TRAINING
    return operator_of_type(module.float_type if isinstance(module, BinaryLayer) else type(module))


def operator_of_type(kind: type) -> Operator:
    """The row of a module type, exactly."""
    return _index()[2].get(kind, OPAQUE)


def operator_of_target(target: object) -> Operator:
    """The row of a function or, given its name, of a method of `Tensor`."""
    functions, methods, _ = _index()
    if isinstance(target, str):
        return methods.get(target, OPAQUE)
    named = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}"
    row = functions.get(target) if isinstance(target, Hashable) else None
    return row or functions.get(named) or OPAQUE


_SIZES = ("shape", "ndim", "dtype", "device")


def operator_of(gm: fx.GraphModule, node: object) -> Operator:
    """The row of what a node calls; `OPAQUE` for any other node."""
    if not isinstance(node, fx.Node):
        return OPAQUE
    if node.op == "call_module":
        return operator_of_module(gm.get_submodule(str(node.target)))
    if node.target is getattr and node.args[1] not in _SIZES:
        return OPAQUE
    return operator_of_target(node.target) if node.op in ("call_function", "call_method") else OPAQUE


def call_of(gm: fx.GraphModule, node: fx.Node) -> Call:
    """A call with its arguments by the names of the row."""
    row = operator_of(gm, node)
    if node.op == "call_module":
        return Call(node, gm.get_submodule(str(node.target)), (*node.args, *node.kwargs.values()), {})
    named = dict(node.kwargs)
    operands = [*node.args[: len(row.operands)]]
    operands += [named.pop(name) for name in (*row.operands[len(operands) :], "self", "input") if name in named]
    arguments = dict(zip(row.parameters, node.args[len(row.operands) :], strict=False))
    if len(node.args) > len(row.operands) + len(row.parameters):
        arguments["*"] = node.args[len(row.operands) + len(row.parameters) :]
    return Call(node, None, tuple(operands), arguments | named)


def modules_of(*kinds: Kind) -> tuple[type[nn.Module], ...]:
    """The module types of the rows of some kinds."""
    return tuple(module for row in ROWS if row.kind in kinds for module in row.modules)
