"""The two layouts of a float map in a packed graph, the permutations between them, and tokens read as maps."""

import math
from collections.abc import MutableMapping

import torch
from torch import Tensor, fx

from bnnfx.graph.dataflow import calls

TO_NHWC = [0, 2, 3, 1]
TO_NCHW = [0, 3, 1, 2]

Shapes = MutableMapping[fx.Node, torch.Size]


def permute(node: fx.Node, order: list[int]) -> fx.Node:
    """A node that permutes the axes of `node`, at the insert point."""
    return node.graph.call_function(torch.permute, (node, order))


def permutes(node: object, order: list[int]) -> bool:
    """Whether a node permutes axes in this order."""
    return isinstance(node, fx.Node) and calls(node, torch.permute) and node.args[1] == order


# Tokens [N, ..., C] of three axes or more are maps that are channels last: one axis behind the batch is a row of a map
# with one, and of three or more all but the last are rows. Nothing moves in memory, and no size is needed but where
# several axes become rows.


def tokens_as_map(values: Tensor) -> Tensor:
    """`[N, ..., C]`, of three axes or more, to `[N, C, H, W]`.

    >>> tokens_as_map(torch.zeros(2, 5, 3)).shape
    torch.Size([2, 3, 1, 5])
    """
    rows = values.unsqueeze(1) if values.ndim == 3 else values.flatten(1, -3)
    return rows.permute(TO_NCHW)


def read_as_map(tokens: fx.Node, shapes: Shapes) -> fx.Node:
    """The map that tokens are, at the insert point; their shape must be known."""
    batch, *between, columns, channels = shapes[tokens]
    rows = tokens
    if len(between) != 1:
        view, axes = (torch.flatten, (1, -3)) if between else (torch.unsqueeze, (1,))
        rows = tokens.graph.call_function(view, (tokens, *axes))
    result = permute(rows, TO_NCHW)
    shapes[rows] = torch.Size((batch, math.prod(between), columns, channels))
    shapes[result] = torch.Size((batch, channels, math.prod(between), columns))
    return result


def read_as_tokens(source: fx.Node, shape: torch.Size, shapes: Shapes) -> fx.Node:
    """The tokens of this shape that a map is, at the insert point."""
    _, *between, columns, channels = shape
    rows = result = permute(source, TO_NHWC)
    shapes[rows] = torch.Size((shape[0], math.prod(between), columns, channels))
    if len(between) != 1:
        view, axes = (torch.unflatten, (1, between)) if between else (torch.squeeze, (1,))
        result = source.graph.call_function(view, (rows, *axes))
        shapes[result] = shape
    return result


def map_of_tokens(tokens: object, shapes: Shapes) -> fx.Node | None:
    """The map of which these are the tokens, if they are those of one."""
    rows = tokens
    squeezed = calls(tokens, torch.squeeze) and len(shapes.get(tokens, ())) == 3  # type: ignore[call-overload]
    if squeezed or calls(tokens, torch.unflatten):
        rows = _viewed(tokens, (1,))
    return _permuted(rows, TO_NHWC)


def tokens_of_map(node: object) -> fx.Node | None:
    """The tokens of which a node is the map, if it is that of some."""
    rows = _permuted(node, TO_NCHW)
    if calls(rows, torch.unsqueeze):
        return _viewed(rows, (1,)) or rows
    return (_viewed(rows, (1, -3)) or rows) if calls(rows, torch.flatten) else rows


def _permuted(node: object, order: list[int]) -> fx.Node | None:
    """What a node gives in this order of axes."""
    source = node.args[0] if isinstance(node, fx.Node) and permutes(node, order) else None
    return source if isinstance(source, fx.Node) else None


def _viewed(node: object, axes: tuple[int, ...]) -> fx.Node | None:
    """What a view works on, if these are the axes that it changes."""
    if not isinstance(node, fx.Node) or node.kwargs or node.args[1 : 1 + len(axes)] != axes:
        return None
    source = node.args[0]
    return source if isinstance(source, fx.Node) else None
