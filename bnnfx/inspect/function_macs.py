"""Multiply-accumulates of layers and matrix products that are called as functions, as torch's own counter has them."""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from bnnfx.nn.mode import CallByMode
from bnnfx.private_interfaces import TRILINEAR

Shape = tuple[int, ...]


def _by_vector(matrix: Shape, vector: Shape, **_: Any) -> int:
    return 2 * prod(matrix)


def _bilinear(x: Shape, weight: Shape, y: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    """`x^T W y`: the weight with one input, and the result of that with the other."""
    return 2 * prod(out_shape) * (weight[-2] + 1) * weight[-1]


_NOT_COUNTED = {torch.ops.aten.mv: _by_vector, torch.ops.aten.dot: _by_vector, TRILINEAR: _bilinear}
"""What the counter leaves out; it counts a multiplication and an addition as two."""


def function_macs(node: fx.Node, module: nn.Module | None, shapes: Mapping[fx.Node, torch.Size]) -> int | None:
    """Of a call, for the whole batch, given the shapes of what it reads; None where it reads computed numbers.

    Args:
        node: the call, of a function or a method, or of a `CallByMode`.
        module: the latter.
        shapes: of the values.
    """
    if not all(source in shapes for source in node.all_input_nodes):
        return None
    arguments: Any = (node.args, dict(node.kwargs))
    function: Any = getattr(Tensor, node.target) if isinstance(node.target, str) and module is None else node.target
    if isinstance(module, CallByMode):
        function, arguments = module.function, module.arguments(False, node.args, node.kwargs)
    args, kwargs = fx.node.map_arg(arguments, lambda source: torch.empty(shapes[source], device="meta"))
    with FlopCounterMode(display=False, custom_mapping=_NOT_COUNTED) as counter:
        function(*args, **kwargs)
    return int(counter.get_total_flops()) // 2
