"""The one spelling of each operation that passes reason about: what a call in another one is rewritten to."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from bnnfx.graph.operators.facts import FOLLOWS, Call, Spelling


def built(kind: type[nn.Module], *names: str) -> Callable[[Call], Spelling | None]:
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


def clamp_module(call: Call) -> Spelling | None:
    """`clamp` between two numbers: `nn.ReLU`, `nn.ReLU6` or `nn.Hardtanh`."""
    low, high = (call.get(name) for name in ("min", "max"))
    if call.module is not None or not all(bound is None or isinstance(bound, int | float) for bound in (low, high)):
        return None
    if high is None and low == 0:
        return nn.ReLU(), call.operands
    if low is None or high is None or not low < high:
        return None
    return nn.ReLU6() if (low, high) == (0, 6) else nn.Hardtanh(low, high), call.operands


def softmax(call: Call) -> Spelling | None:
    """`F.softmax` along a given axis: `nn.Softmax`."""
    plain = call.get("dtype") is None and call.get("_stacklevel", 3) == 3 and not is_computed(call.get("dim"))
    return (nn.Softmax(call.get("dim")), call.operands) if call.module is None and plain else None


def threshold(call: Call) -> Spelling | None:
    """A threshold of zero whose value is zero: `nn.ReLU`."""
    return (nn.ReLU(), call.operands) if call.get("threshold") == call.get("value") == 0 else None


def dropout(kind: type[nn.Module]) -> Callable[[Call], Spelling | None]:
    """The module follows `train()` and `eval()`; the function has to say that it does: see `bnnfx.nn.mode`."""

    def build(call: Call) -> Spelling | None:
        probability = call.get("p", 0.5)
        if call.module is not None or call.get("training", True) is not FOLLOWS or is_computed(probability):
            return None
        return kind(probability), call.operands

    return build


def plain(function: Callable[..., Any]) -> Callable[[Call], Spelling | None]:
    """The same function in one spelling, where two operands are all that is given."""

    def spell(call: Call) -> Spelling | None:
        same = call.node.target is function or call.arguments or len(call.operands) != 2
        return None if same else (function, call.operands)

    return spell


def cat(call: Call) -> Spelling | None:
    """`torch.concat(xs, 1)`, `torch.cat(xs, dim=1)`, `torch.cat(tensors=xs, axis=1)`, with the axis in second place."""
    if (call.node.target is torch.cat and not call.node.kwargs) or "out" in call.arguments:
        return None
    return torch.cat, (*call.operands, call.get("axis", call.get("dim", 0)))


def flatten(call: Call) -> Spelling | None:
    """`x.flatten(1)`, `nn.Flatten()`: `torch.flatten` with both axes given."""
    if call.node.target is torch.flatten and not call.node.kwargs:
        return None
    return torch.flatten, (
        *call.operands,
        call.get("start_dim", 0 if call.module is None else 1),
        call.get("end_dim", -1),
    )


def permute(call: Call) -> Spelling | None:
    """`x.permute(0, 2, 1)`, `torch.permute(x, dims=(0, 2, 1))`: `torch.permute` with a list of all axes from 0 up."""
    given = call.node.args[1:] or (call.get("dims"),)
    dims = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
    if not dims or not all(isinstance(axis, int) for axis in dims):
        return None
    order = [axis % len(dims) for axis in dims if isinstance(axis, int)]
    same = call.node.target is torch.permute and not call.node.kwargs and call.node.args[1] == order
    return None if same else (torch.permute, (*call.operands, order))


def reshape(call: Call) -> Spelling | None:
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
