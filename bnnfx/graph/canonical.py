"""One spelling for each operation that passes reason about: the table of aliases and what replaces them.

`CanonicalizeCalls` rewrites by this table and the contract of stage CANONICAL is that nothing in it is left. Functions
that are not listed stay as they are: a float operation that no pass has to recognise.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from bnnfx.graph.dataflow import module_of

Arguments = dict[str, Any]
"""Arguments of a call by their names in the canonical module or function, without the tensor itself."""

_FUNCTIONS_TO_MODULES: dict[Callable[..., Any], type[nn.Module]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.relu_: nn.ReLU,
    F.relu6: nn.ReLU6,
    F.hardtanh: nn.Hardtanh,
    F.leaky_relu: nn.LeakyReLU,
    F.max_pool2d: nn.MaxPool2d,
    torch.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.dropout: nn.Dropout,
    torch.sigmoid: nn.Sigmoid,
    F.sigmoid: nn.Sigmoid,
    F.softmax: nn.Softmax,
}
_METHODS_TO_MODULES: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "relu_": nn.ReLU, "sigmoid": nn.Sigmoid}
_POSITIONS: dict[type[nn.Module], tuple[str, ...]] = {
    # the functions' positional order, where it is not that of the module's constructor
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.Hardtanh: ("min_val", "max_val", "inplace"),
    nn.LeakyReLU: ("negative_slope", "inplace"),
    nn.Dropout: ("p", "training", "inplace"),
    nn.ReLU: ("inplace",),
    nn.ReLU6: ("inplace",),
    nn.Softmax: ("dim", "_stacklevel", "dtype"),
    nn.Sigmoid: (),
}
_ADDS: tuple[object, ...] = (torch.add, operator.iadd, "add", "add_", "__add__", "__iadd__", "__radd__")
_CATS: tuple[object, ...] = (torch.cat, torch.concat, torch.concatenate)


def alias_of(gm: fx.GraphModule, node: fx.Node) -> str | None:
    """How a node is spelled if it has another, canonical spelling, else None."""
    if canonical_call(gm, node) is None:
        return None
    return str(node.target) if node.op == "call_method" else f"{getattr(node.target, '__name__', node.target)}"


def canonical_call(gm: fx.GraphModule, node: fx.Node) -> tuple[nn.Module | Callable[..., Any], tuple[Any, ...]] | None:
    """What a node should be instead: a module or function to call, and its arguments. None if it is canonical."""
    if node.op == "call_module":
        module = module_of(gm, node)
        if isinstance(module, nn.Flatten):
            return torch.flatten, (node.args[0], module.start_dim, module.end_dim)
        return None
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _ADDS and _plain_add(node):
        return operator.add, node.args[:2]
    if node.target in _CATS:
        return _cat(node)
    if node.target in ("flatten", "view", "reshape", torch.flatten, torch.reshape):
        return _reshape(node)
    kind = _module_kind(node)
    return None if kind is None else _module(gm, node, kind)


def _module_kind(node: fx.Node) -> type[nn.Module] | None:
    if node.op == "call_method":
        return _METHODS_TO_MODULES.get(str(node.target))
    return _FUNCTIONS_TO_MODULES.get(node.target)  # type: ignore[arg-type]


def _plain_add(node: fx.Node) -> bool:
    return len(node.args) == 2 and not node.kwargs and node.target is not operator.add


def _module(
    gm: fx.GraphModule, node: fx.Node, kind: type[nn.Module]
) -> tuple[nn.Module | Callable[..., Any], tuple[Any, ...]] | None:
    arguments: Arguments = dict(zip(_POSITIONS[kind], node.args[1:], strict=False)) | dict(node.kwargs)
    source = node.args[0] if node.args else arguments.pop("input", None)
    arguments.pop("input", None)
    arguments.pop("inplace", None)  # made functional before
    if any(isinstance(value, fx.Node) for value in arguments.values()) or not isinstance(source, fx.Node):
        return None  # an argument that is computed in the graph: not a module
    if kind is nn.Dropout and arguments.pop("training", True) != gm.training:
        return None  # always on, or always off: it does not follow train() and eval()
    if kind is nn.MaxPool2d and arguments.get("return_indices"):
        return None
    if kind is nn.Softmax and (arguments.pop("dtype", None) is not None or arguments.pop("_stacklevel", 3) != 3):
        return None
    if kind in (nn.MaxPool2d, nn.AvgPool2d) and arguments.get("stride") == []:
        del arguments["stride"]
    return kind(**arguments), (source,)


def _cat(node: fx.Node) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """`torch.concat(xs, 1)`, `torch.cat(xs, dim=1)`, `torch.cat(tensors=xs, axis=1)`, with the axis in second place."""
    if (node.target is torch.cat and not node.kwargs) or "out" in node.kwargs:
        return None
    arguments = {"dim": 0, **dict(zip(("tensors", "dim"), node.args, strict=False)), **node.kwargs}
    return torch.cat, (arguments["tensors"], arguments.get("axis", arguments["dim"]))


def _reshape(node: fx.Node) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """`x.flatten(1)`, `x.view(x.size(0), -1)`, `x.reshape(x.shape[0], -1)`: all keep the batch and flatten the rest.

    Any other `view` or `reshape` is `torch.reshape`, which takes a map in whatever order it lies in memory.
    """
    if node.target is torch.flatten and not node.kwargs:
        return None
    if not node.args:
        return None  # the tensor itself as a keyword
    source, rest = node.args[0], node.args[1:]
    if node.target in ("flatten", torch.flatten):
        start = node.kwargs.get("start_dim", rest[0] if rest else 0)
        end = node.kwargs.get("end_dim", rest[1] if len(rest) > 1 else -1)
        return torch.flatten, (source, start, end)
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
