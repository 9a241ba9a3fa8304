"""The words on a node: what it is, in a line or two, and what else is worth knowing."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from bnnfx.graph.dataflow import constant, module_of, packed_op
from bnnfx.nn import ActivationBinarizer, BinaryLayer, layer_kind
from bnnfx.ops import PackedOp

if TYPE_CHECKING:
    from bnnfx.inspect.drawing.graph_view import Kind


def is_constant(node: fx.Node) -> bool:
    """Whether a node only reads a constant, which is then a detail of its readers."""
    return node.op == "get_attr"


def constants_of(node: fx.Node) -> list[fx.Node]:
    """The constants that a node reads."""
    return [source for source in node.all_input_nodes if is_constant(source)]


def kind_of(gm: fx.GraphModule, node: fx.Node) -> "Kind":
    """What a node computes with."""
    if node.op == "placeholder":
        return "input"
    if node.op == "output":
        return "output"
    module = module_of(gm, node)
    if isinstance(module, ActivationBinarizer):
        return "binarizer"
    if isinstance(module, BinaryLayer):
        return "binary"
    return "float" if packed_op(node) is None else "packed"


def lines_of(gm: fx.GraphModule, node: fx.Node, title: str) -> tuple[str, ...]:
    """Title, operation and its sizes; for a packed convolution also the steps of its epilogue."""
    op = packed_op(node)
    if op is not None:
        name, steps = epilogue_of(op.onnx_name or str(op.target))
        first = " ".join(part for part in (title, name, _packed_sizes(gm, node, op)) if part)
        return (first, steps) if steps else (first,)
    operation = _operation(gm, node)
    said = re.fullmatch(rf"{re.escape(operation)}(_\d+)?", title, re.IGNORECASE) is not None
    return (" ".join(part for part in (title, "" if said else operation, _sizes(module_of(gm, node))) if part),)


def details_of(gm: fx.GraphModule, node: fx.Node) -> Mapping[str, str]:
    """By caption: the target, the settings, the parameters and the constants."""
    details = {"operation": _operation(gm, node)}
    if node.op in ("call_module", "call_function", "call_method"):
        details["target"] = str(node.target) if isinstance(node.target, str) else _qualified(node.target)
    module, op = module_of(gm, node), packed_op(node)
    if module is not None:
        if module.extra_repr():
            details["settings"] = module.extra_repr()
        count = sum(parameter.numel() for parameter in module.parameters())
        if count:
            details["parameters"] = f"{count:,}"
    if op is not None:
        settings = zip(op.attributes, node.args[op.inputs :], strict=False)
        details["settings"] = ", ".join(f"{name}={value}" for name, value in settings)
    names = dict(zip(node.args, op.tensors, strict=False)) if op is not None else {}
    for source in constants_of(node):
        caption = str(names.get(source, source.name))
        details[caption] = _described(gm, source)
    return {caption: text for caption, text in details.items() if text}


def _operation(gm: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "placeholder":
        return "input"
    if node.op == "call_module":
        return type(module_of(gm, node)).__name__
    op = packed_op(node)
    if op is not None and op.onnx_name is not None:
        return op.onnx_name
    return str(getattr(node.target, "__name__", node.target))


def _qualified(target: object) -> str:
    module = getattr(target, "__module__", None)
    name = str(getattr(target, "__name__", target))
    return f"{module}.{name}" if module and not str(target).startswith("bnnfx.") else str(target)


def _described(gm: fx.GraphModule, source: fx.Node) -> str:
    try:
        tensor = constant(gm, source)
    except AttributeError:  # not a tensor
        return str(source.target)
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _sizes(module: nn.Module | None) -> str:
    """Kernel, channels, and where they are not 1: stride, dilation, groups."""
    kind = layer_kind(module)
    if kind is not None and kind.channel_axis == -1:
        return "→".join(str(getattr(module, name)) for name in kind.width_names)
    parts = []
    kernel = getattr(module, "kernel_size", None)
    if kernel is not None:
        parts.append(_times(kernel))
    if module is not None and hasattr(module, "in_channels"):
        parts.append(f"{module.in_channels}→{module.out_channels}")
    for mark, setting in (("/", "stride"), ("d", "dilation"), ("g", "groups")):
        value = getattr(module, setting, None) if kernel is not None else None
        if value is not None and _times(value) not in ("1", "1×1"):
            parts.append(mark + _short(value))
    return " ".join(parts)


def _packed_sizes(gm: fx.GraphModule, node: fx.Node, op: PackedOp) -> str:
    given = dict(zip((*op.tensors, *op.attributes), node.args, strict=False))
    weight = given.get("weight")
    parts = []
    if isinstance(weight, fx.Node) and is_constant(weight):
        outputs, rows, columns, _ = constant(gm, weight).shape
        parts += [f"{rows}×{columns}", f"{given['channels']}→{outputs}"]
    elif "kernel_shape" in given:
        parts.append(_times(given["kernel_shape"]))
    for mark, setting in (("/", "strides"), ("d", "dilations"), ("g", "groups")):
        value = given.get(setting)
        if value is not None and _times(value) not in ("1", "1×1"):
            parts.append(mark + _short(value))
    return " ".join(parts)


def epilogue_of(onnx_name: str) -> tuple[str, str]:
    """The operation, and its epilogue if it is a fused convolution: `("BinaryConv2d", "add, clamp → float + bits")`."""
    head = "BinaryConv2d"
    if not onnx_name.startswith(head):
        return onnx_name, ""
    steps = [word.lower() for word in re.findall("[A-Z][a-z]*", onnx_name[len(head) :])]
    results = [step for step in steps if step in ("float", "bits")] or ["bits"]  # a threshold gives bits
    rest = ", ".join(step for step in steps if step not in results)
    return head, f"{rest} → {' + '.join(results)}".strip()


def _times(value: object) -> str:
    return "×".join(map(str, value)) if isinstance(value, Sequence | torch.Size) else str(value)


def _short(value: object) -> str:
    """One number where all axes have the same."""
    sizes = {str(size) for size in value} if isinstance(value, Sequence | torch.Size) else {str(value)}
    return sizes.pop() if len(sizes) == 1 else _times(value)
