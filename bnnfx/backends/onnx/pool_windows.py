"""Pools that round the number of their windows up, spelled so that nothing has to be rounded.

With `ceil_mode`, torch drops a last window that would start past the map and its padding in front; ONNX has said so
since opset 22 only, and its shape inference and runtimes follow one or the other. And where an average counts padding,
a window that reaches past the padding is divided by its part within; runtimes disagree there, too. So the windows are
counted by torch, and what the last one needs becomes padding at the end, which no average counts.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from bnnfx.errors import ExportError

_POOLS = {"MaxPool", "AveragePool"}
_DIVISOR = 6  # its place among the arguments


def spell_out_windows(model: ir.Model) -> None:
    """Replace `ceil_mode` of all pools by padding, in place; their results have the shapes that torch gave them.

    Raises:
        ExportError: a size of a map is not known before the model runs.
    """
    for node in list(model.graph.all_nodes()):
        if node.domain == "" and node.op_type in _POOLS and node.attributes.get_int("ceil_mode"):
            _spell_out(node)


def refuse_divisors(graph: fx.Graph) -> None:
    """Raise if an average has a divisor of its own, which ONNX lacks and torch's exporter leaves out without a word.

    Args:
        graph: of the program that is exported, of operators `aten`.

    Raises:
        ExportError: one has.
    """
    for node in graph.nodes:
        if node.target in (torch.ops.aten.avg_pool2d.default, torch.ops.aten.avg_pool3d.default):
            divisor = node.kwargs.get("divisor_override", node.args[_DIVISOR] if len(node.args) > _DIVISOR else None)
            if divisor is not None:
                raise ExportError(
                    f"The pool '{node.name}' has divisor_override={divisor}, and ONNX divides by the size of a window; "
                    "multiply an average without it by size / divisor."
                )


def _spell_out(node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    kernel = node.attributes.get_ints("kernel_shape")
    assert kernel is not None
    rank = len(kernel)
    sizes, counts = _sizes(node, x, rank), _sizes(node, node.outputs[0], rank)
    ones = [1] * rank
    strides, dilations = (node.attributes.get_ints(name, ones) for name in ("strides", "dilations"))
    pads = node.attributes.get_ints("pads", [0] * 2 * rank)
    begins, ends = pads[:rank], pads[rank:]
    # From the beginning of the first window to the end of the last one.
    reach = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(counts, strides, dilations, kernel, strict=True)]
    needed = [max(end, r - size - begin) for end, r, size, begin in zip(ends, reach, sizes, begins, strict=True)]
    counted = node.op_type == "AveragePool" and node.attributes.get_int("count_include_pad") and any(pads)
    # A pool's own padding is less than its kernel, for ONNX Runtime; a dilated window may need more.
    if counted:
        _pad_before(node, pads, rank)
        begins, needed = [0] * rank, [n - end for n, end in zip(needed, ends, strict=True)]
    elif any(n >= k for n, k in zip(needed, kernel, strict=True)):
        _pad_before(node, [*begins, *needed], rank)
        begins, needed = [0] * rank, [0] * rank
    if node.op_type == "AveragePool":
        node.attributes.pop("count_include_pad", None)
    node.attributes.pop("ceil_mode")
    node.attributes["pads"] = ir.AttrInt64s("pads", [*begins, *needed])


def _sizes(node: ir.Node, value: ir.Value, rank: int) -> list[int]:
    sizes = list(value.shape or ())[-rank:]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < rank:
        raise ExportError(
            f"The pool '{node.name}' with ceil_mode works on an axis whose size is open, so that its windows cannot be "
            "counted; use ceil_mode=False, or pool axes other than the batch."
        )
    return known


def _pad_before(node: ir.Node, pads: Sequence[int], rank: int) -> None:
    """Let the pool read a padded map: with what never wins a maximum, or zeros."""
    x = node.inputs[0]
    assert x is not None and x.dtype is not None and x.shape is not None and node.graph is not None
    if node.op_type == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].uses():
        raise ExportError(
            f"The pool '{node.name}' returns indices, which its padding would shift; use ceil_mode=False."
        )
    number = x.dtype.numpy()
    lowest = -np.inf if np.issubdtype(number, np.floating) else np.iinfo(number).min
    fill = np.array(lowest if node.op_type == "MaxPool" else 0, number)
    axes = np.arange(len(x.shape) - rank, len(x.shape))
    inputs = [x]
    for what, array in (("pads", np.array(pads, np.int64)), ("fill", fill), ("axes", axes)):
        value = ir.val(f"{node.name}_{what}", const_value=ir.tensor(array))
        node.graph.register_initializer(value)
        inputs.append(value)
    begins, ends = pads[:rank], pads[rank:]
    grown = [int(size) + b + e for size, b, e in zip(x.shape[-rank:], begins, ends, strict=True)]  # type: ignore[arg-type]
    pad = ir.node("Pad", inputs, name=f"{node.name}_pad")
    (padded,) = pad.outputs
    padded.dtype, padded.shape = x.dtype, ir.Shape([*x.shape[:-rank], *grown])
    node.graph.insert_before(node, pad)
    node.replace_input_with(0, padded)
