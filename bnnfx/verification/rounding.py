"""How far rounding may move each value of a graph, from the sizes of the terms that it is the sum of.

The magnitude of a sum says nothing of its error: where large terms cancel, the sum is small and its error is not. A sum
of n terms makes n roundings, each of a partial sum that is no larger than T, the sum of the magnitudes of the terms.
With roundings that are independent and as often up as down, its error has a standard deviation of at most
`sqrt(n) u T`, with `u = 2**-24`, in whatever order it is added up (Higham and Mary, A new approach to probabilistic
rounding error analysis, SIAM J. Sci. Comput. 41, 2019; the bound that holds in any case, `n u T`, grows so much from
layer to layer that it would excuse any output of a deep network). Beside every value of the graph a bound of that
deviation is computed, by the graph's own operators:

* inputs, constants and the values of bits are exact: both forms are given the same;
* layers and products of matrices: `sqrt(n) u T`, with T the operator itself on magnitudes, and the deviations of their
  input, as independent: the operator on squares;
* batch norms, sums and products of two values: the deviation of each operand times what multiplies it, added up as if
  they went together, and u times the magnitude of every intermediate value;
* a binary layer, whose accumulators are integers: the same of `accumulator * scale + bias`, and of its residual;
* what moves, picks or averages values, the operator on the deviations: those of a map may go together (a rounded scale
  is off everywhere alike), so that a mean does not lessen them;
* a function of single values: what it makes of the error of its argument, at both ends of the interval; what is no step
  of an epilogue (`bnnfx.ops.steps`) is approximated, with terms as large as its argument and 1;
* anything else: twice what its result was seen to move in that sample when its inputs are moved by their errors and one
  rounding, with random signs.

The error that is granted is `SPREAD` deviations. Two forms of one model approximate one and the same true value, so
what they differ by is at most the sum of their errors.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from bnnfx.graph.dataflow import calls, drops, is_freezable, module_of, packed_op
from bnnfx.graph.inplace import may_write, written
from bnnfx.graph.operators import BATCH_NORM_TENSORS, Kind, Mode, call_of, operator_of
from bnnfx.graph.shapes import leaves_of
from bnnfx.nn import ActivationBinarizer, BinaryLayer
from bnnfx.nn.comparison import compare
from bnnfx.nn.frozen_norm import frozen_batch_norm
from bnnfx.ops import PackedOp
from bnnfx.ops.steps import step_of

UNIT = 2.0**-24
"""What one rounding of `float32` is off at most, as a share of the result."""

SPREAD = 8
"""How many standard deviations an error may have: one of 10**15 has more, were it normally distributed."""

_SMALLEST = 2.0**-149
"""What rounding is off where numbers have no more digits to lose."""

_STEPS = 4  # in a batch norm, and what libraries promise of exp and the like
_STEEPEST = 1.5  # hardswish; of the other steps prelu alone can be steeper than 1, by its slope
_DRAWS = 2
_LINEAR_REDUCTIONS = ("mean", "sum", "amax", "amin", "cumsum")


def error_of(deviation: Tensor) -> Tensor:
    """The error that is granted to a value with this deviation."""
    return SPREAD * (deviation + _SMALLEST)


class Deviations:
    """The deviation of every float value that an interpreter holds, for as long as it holds the value."""

    def __init__(self, gm: fx.GraphModule, interpreter: fx.Interpreter) -> None:
        self.gm = gm
        self.interpreter = interpreter
        self._known: dict[fx.Node, Any] = {}
        """Shaped as the value; a node that is not there has an exact one."""
        self._generator = torch.Generator().manual_seed(0)

    def of(self, argument: Any) -> Any:
        """The deviation of the value of a node; 0.0 of an exact one, and of what is no node."""
        return self._known.get(argument, 0.0) if isinstance(argument, fx.Node) else 0.0

    def note(self, node: fx.Node, value: Any) -> None:
        """Find the deviation of a value that has just been computed."""
        if any(_is_float(x) for x in leaves_of(value)):
            try:
                with torch.random.fork_rng(devices=[]):  # an operator that draws numbers draws those of the value again
                    deviation = self._deviation(node, value)
            except Exception:  # an operator that takes no other values than these
                deviation = self._unmeasured(node, value)
            changed = written(self.gm, node) if may_write(self.gm, node) else None
            for target in (node, changed):
                if target is not None and deviation is not None:
                    self._known[target] = deviation
        for gone in self.interpreter.user_to_last_uses.get(node, ()):
            self._known.pop(gone, None)

    def of_stream(self, node: fx.Node, op: PackedOp, stream: Tensor) -> Tensor:
        """The deviation of the float map that a packed convolution computes, whether it gives it or not."""
        given = dict(zip(op.tensors, node.args, strict=False))
        bias: Tensor = self._value(given["bias"]).abs()
        if not op.signature.exported:  # inside `lower`, where maps are channels first
            bias = bias[:, None, None]
        if "residual" not in given:
            return UNIT * _STEPS * (stream.abs() + bias)
        residual: Tensor = self._value(given["residual"])
        sizes = (stream - residual).abs() + stream.abs() + bias
        steepest = 1.0
        if op.signature.variant["after"]:  # what the step made of the sum is all that is known of the sum
            sizes = sizes + residual.abs()
            slopes = [float(self._value(x).abs().max()) for name, x in given.items() if name.startswith("slope")]
            steepest = max([_STEEPEST, *slopes])
        before: Tensor = self.of(given["residual"])
        return steepest * (before + UNIT * _STEPS * sizes)

    def _deviation(self, node: fx.Node, value: Any) -> Any:
        """None if the value is exact."""
        module, op = module_of(self.gm, node), packed_op(node)
        if not node.all_input_nodes or isinstance(module, ActivationBinarizer) or calls(node, compare):
            return None
        if isinstance(module, BinaryLayer):
            return self._binary_layer(module, value)
        if op is not None:
            stream = value[0] if isinstance(value, tuple) else value
            deviation = self.of_stream(node, op, stream)
            return (deviation, *value[1:]) if isinstance(value, tuple) else deviation
        if isinstance(node.target, type):  # of a named tuple, or a dataclass
            return self._on(node, self._deviation_or_nothing)
        row, call = operator_of(self.gm, node), call_of(self.gm, node)
        exact = not any(source in self._known for source in node.all_input_nodes)
        moves = drops(self.gm, node) or row.identity or row.kind in (Kind.MOVE, Kind.CONCAT)
        if exact and (moves or all(source.op == "get_attr" for source in node.all_input_nodes)):
            return None
        if may_write(self.gm, node) or node.target is getattr:
            return self._unmeasured(node, value)
        if drops(self.gm, node) or row.identity:
            return self._known.get(node.all_input_nodes[0])
        unit = _unit(value)
        if moves:
            return _magnitudes(self._on(node, self._deviation_or_nothing))
        if is_freezable(self.gm, node) or calls(node, frozen_batch_norm):
            return self._batch_norm(node, module, value, unit)
        if row.kind is Kind.LAYER and row.mode is Mode.SAME:
            found = self._layer(node, module, unit)
        elif row.multiplies and len(call.operands) == 2:
            found = self._product(node, call.operands, unit)
        elif row.kind is Kind.POOL:
            own = (
                0.0
                if row.monotone(call) is not None
                else _window(call.get("kernel_size"), self._value(node.args[0]), value)
            )
            found = self._average(node, own, unit)
        elif row.kind is Kind.RESAMPLE:
            found = self._average(node, float(max(value.shape)) ** 2, unit)  # a position is off by that many units
        elif row.kind is Kind.REDUCE and row.name in _LINEAR_REDUCTIONS and isinstance(value, Tensor):
            found = self._average(node, self._value(node.all_input_nodes[0]).numel() / max(1, value.numel()), unit)
        elif row.kind is Kind.JOIN and not call.arguments and len(call.operands) == 2:
            found = self._join(row.name, call.operands, value, unit)
        else:
            found = None
        return self._measured(node, value, unit) if found is None else found

    def _binary_layer(self, layer: BinaryLayer, value: Tensor) -> Tensor:
        sizes = value.abs()
        if layer.bias is not None:
            nothing = value.new_zeros((1,) * value.ndim)
            sizes = sizes + layer.rescale(nothing, value.new_zeros(layer.width)).abs()
        return UNIT * _STEPS * sizes

    def _batch_norm(self, node: fx.Node, module: nn.Module | None, value: Tensor, unit: float) -> Tensor:
        if module is not None:
            mean, var, gamma, beta = (getattr(module, name) for name in BATCH_NORM_TENSORS)
            numbers: Any = (module.eps, operator_of(self.gm, node).channel_axis)
        else:
            operands, numbers = node.args[1:5], node.args[5:]
            mean, var, gamma, beta = (None if operand is None else self._value(operand) for operand in operands)
        gamma, beta = (None if x is None else x.abs() for x in (gamma, beta))
        x, nothing = self._value(node.args[0]), torch.zeros_like(mean)
        sizes = frozen_batch_norm(x.abs(), -mean.abs(), var, gamma, beta, *numbers)
        own = unit * _STEPS * sizes
        before = self.of(node.args[0])
        if not isinstance(before, Tensor):
            return own
        return own + frozen_batch_norm(before, nothing, var, gamma, None, *numbers)

    def _layer(self, node: fx.Node, module: nn.Module | None, unit: float) -> Tensor | None:
        transposed = operator_of(self.gm, node).transposed
        if module is None:
            weight = self._value(node.all_input_nodes[1])
            if any(source in self._known for source in node.all_input_nodes[1:]):
                return None  # the weight is computed
            magnitudes = self._on(node, lambda source: _magnitudes(self._value(source)))
            squares = self._squares(node)
        else:
            parameters = dict(module.named_parameters())
            if not {"weight"} <= parameters.keys() <= {"weight", "bias"}:
                return None
            weight = parameters["weight"]
            sizes = {name: parameter.abs() for name, parameter in parameters.items()}
            arguments = tuple(_magnitudes(self._value(argument)) for argument in node.args)
            magnitudes, squares = functional_call(module, sizes, arguments), None
            if any(source in self._known for source in node.all_input_nodes):
                if len(node.all_input_nodes) > 1:
                    return None
                only = {name: torch.zeros_like(x) if name == "bias" else x.square() for name, x in parameters.items()}
                squares = functional_call(module, only, (self.of(node.args[0]).square(),))
        own = unit * math.sqrt(_fan_in(weight, transposed)) * magnitudes
        return own if squares is None else (own.square() + squares).sqrt()  # type: ignore[no-any-return]

    def _squares(self, node: fx.Node) -> Tensor | None:
        """What a function with a weight makes of the variance of its first operand."""
        x, *rest = node.all_input_nodes
        if x not in self._known:
            return None
        bias = {source for source in rest[1:] if self._value(source).ndim == 1}

        def of(source: fx.Node) -> Any:
            value = self.of(x) if source is x else self._value(source)
            return torch.zeros_like(value) if source in bias else value.square()

        return self._on(node, of)  # type: ignore[no-any-return]

    def _product(self, node: fx.Node, operands: Sequence[Any], unit: float) -> Tensor | None:
        """Of two matrices; each part as if the other were exact."""
        if not all(isinstance(operand, fx.Node) for operand in operands):
            return None
        terms = self._value(operands[0]).shape[-1]
        magnitudes = self._on(node, lambda source: _magnitudes(self._value(source)))
        variance = (unit * math.sqrt(terms) * magnitudes).square()
        for operand in {*operands} & self._known.keys():

            def of(source: fx.Node, operand: fx.Node = operand) -> Any:
                return (self.of(operand) if source is operand else self._value(source)).square()

            variance = variance + self._on(node, of)
        return variance.sqrt()  # type: ignore[no-any-return]

    def _average(self, node: fx.Node, terms: float, unit: float) -> Any:
        known = any(source in self._known for source in node.all_input_nodes)
        moved = _magnitudes(self._on(node, self._deviation_or_nothing)) if known else 0.0
        if not terms:
            return moved if known else None
        return moved + unit * math.sqrt(terms) * self._on(node, lambda source: _magnitudes(self._value(source))).abs()

    def _join(self, name: str, operands: Sequence[Any], value: Tensor, unit: float) -> Tensor | None:
        (a, b), (x, y) = map(self.of, operands), map(self._value, operands)
        if name in ("add", "sub", "rsub"):
            return unit * value.abs() + a + b  # type: ignore[no-any-return]
        if name == "mul":
            return unit * value.abs() + abs(x) * b + abs(y) * a  # type: ignore[no-any-return]
        if name == "div" and not isinstance(b, Tensor):
            return unit * value.abs() + a / abs(y)  # type: ignore[no-any-return]
        if name in ("maximum", "minimum"):
            return torch.zeros_like(value) + a + b  # type: ignore[no-any-return]
        return None

    def _measured(self, node: fx.Node, value: Any, unit: float) -> Any:
        """From what the node makes of inputs that are off by their errors."""
        alone = operator_of(self.gm, node).kind is Kind.ELEMENTWISE
        step = step_of(module_of(self.gm, node)) is not None
        results = _leaves(value)
        moved = [torch.zeros_like(x) if _is_float(x) else x for x in results]
        for sign in (1.0, -1.0) if alone else (None,) * _DRAWS:
            other = _leaves(self._on(node, functools.partial(self._moved, sign=sign, unit=0.0 if step else unit)))
            if [x.shape for x in other if _is_float(x)] != [x.shape for x in moved if _is_float(x)]:
                return self._unmeasured(node, value)
            for i, (x, y) in enumerate(zip(results, other, strict=True)):
                if _is_float(x):
                    moved[i] = torch.maximum(moved[i], (x - y).abs().nan_to_num(0.0, 0.0, 0.0))
        own: Any = 0.0 if step or not alone else abs(self._value(node.all_input_nodes[0])).clamp(min=1.0)
        changes = iter(moved if alone else [2 * _most_per_sample(x) if _is_float(x) else x for x in moved])

        def deviation(x: Any) -> Any:
            change = next(changes)
            return change / SPREAD + unit * _STEPS * (x.abs() + own) if _is_float(x) else x

        return _map(value, deviation)

    def _unmeasured(self, node: fx.Node, value: Any) -> Any:
        """Of what cannot be run again: as if all that goes in were in every value."""
        inputs = [x for source in node.all_input_nodes for x in _leaves(self._value(source)) if _is_float(x)]
        deviations = [x for source in node.all_input_nodes for x in _leaves(self.of(source)) if _is_float(x)]
        most = UNIT * _STEPS * max((float(x.abs().max()) for x in inputs if x.numel()), default=0.0)
        most += max((float(x.max()) for x in deviations if x.numel()), default=0.0)
        return _map(value, lambda x: UNIT * _STEPS * x.abs() + most if _is_float(x) else x)

    def _moved(self, source: fx.Node, sign: float | None, unit: float) -> Any:
        """The value of a node, off by its error: all of it to one side, or each to a random one."""
        known = self._known.get(source)
        deviations = None if known is None else iter(_leaves(known))

        def move(x: Any) -> Any:
            deviation = 0.0 if deviations is None else next(deviations)
            if not _is_float(x):
                return x
            signs = torch.randint(0, 2, x.shape, generator=self._generator) * 2 - 1 if sign is None else sign
            return x + (signs * SPREAD * (deviation + unit * x.abs())).to(x.dtype)

        return _map(self.interpreter.env[source], move)

    def _value(self, argument: Any) -> Any:
        return self.interpreter.env[argument] if isinstance(argument, fx.Node) else argument

    def _deviation_or_nothing(self, source: fx.Node) -> Any:
        known, value = self._known.get(source), self.interpreter.env[source]
        return _map(value, lambda x: torch.zeros_like(x) if _is_float(x) else x) if known is None else known

    def _on(self, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
        """What the node gives for other values of its inputs."""
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), value_of)
        return getattr(self.interpreter, node.op)(node.target, args, kwargs)


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    return fx.node.map_aggregate(value, function)


def _leaves(value: Any) -> list[Any]:
    leaves: list[Any] = []
    _map(value, leaves.append)
    return leaves


def _magnitudes(value: Any) -> Any:
    return _map(value, lambda x: x.abs() if _is_float(x) else x)


def _unit(value: Any) -> float:
    """What one rounding of the result is off, as a share of it."""
    return max(torch.finfo(x.dtype).eps / 2 for x in _leaves(value) if _is_float(x))


def _fan_in(weight: Tensor, transposed: bool) -> int:
    """How many products there are in a sum, and the bias."""
    return weight.numel() // max(1, weight.shape[int(transposed)]) + 1


def _window(kernel_size: Any, x: Tensor, value: Any) -> float:
    """How many values an average has at most."""
    if isinstance(kernel_size, int):
        return float(kernel_size ** (x.ndim - 2))
    if isinstance(kernel_size, tuple | list):
        return float(math.prod(kernel_size))
    sizes = zip(x.shape[2:], _leaves(value)[0].shape[2:], strict=False)
    return float(math.prod(min(before, before // max(1, after) + 2) for before, after in sizes))  # windows may overlap


def _most_per_sample(x: Tensor) -> Tensor:
    return x.amax(tuple(range(1, x.ndim)), keepdim=True) if x.ndim > 1 and x.numel() else x
