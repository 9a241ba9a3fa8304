"""Which row an operator has, by its module type, function or method."""

import functools
from collections.abc import Hashable

from torch import fx, nn

from bnnfx.graph.operators import signs
from bnnfx.graph.operators.facts import OPAQUE, Call, Kind, Mode, Operator, Sign, same_axes
from bnnfx.graph.operators.rows import ROWS
from bnnfx.nn import ActivationBinarizer, BinaryLayer
from bnnfx.nn.mode import CallByMode

BINARIZER = Operator(
    "binarizer",
    sign=lambda call, signs: Sign.NEVER_NEGATIVE if call.get("absorbs_relu") else Sign.BOTH,
    mode=Mode.SAME,
    result_axes=same_axes,
    fresh=True,
)
"""Any activation binarizer."""


DROPS_IN_TRAINING = Operator("drop path", Kind.ELEMENTWISE, sign=signs.keeps, mode=Mode.DROPS, result_axes=same_axes)
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
    if getattr(module, DROPS_MARK, False) or (isinstance(module, CallByMode) and _drops_by_mode(module)):
        return DROPS_IN_TRAINING
    if isinstance(module, CallByMode):
        row = operator_of_target(module.function)
        return row if row.kind is Kind.OPAQUE and not row.parameters else OPAQUE  # its arguments are not the module's
    return operator_of_type(module.float_type if isinstance(module, BinaryLayer) else type(module))


def _drops_by_mode(call: CallByMode) -> bool:
    """Whether a function that drops values does so in training, and in evaluation not."""
    by_mode = [[*given.values()] for given in (call.in_training, call.in_evaluation)]
    return by_mode == [[True], [False]] and operator_of_target(call.function).mode is Mode.DROPS


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
    return operator_of_call(node)


def operator_of_call(node: fx.Node) -> Operator:
    """The row of the function or the method that a node calls; `OPAQUE` for any other node, a module's among them."""
    if node.op not in ("call_function", "call_method") or (node.target is getattr and node.args[1] not in _SIZES):
        return OPAQUE
    return operator_of_target(node.target)


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
