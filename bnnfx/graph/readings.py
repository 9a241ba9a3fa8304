"""Values that are no map `[N, C, H, W]`, read as one: tokens `[N, ..., C]`, and sequences `[N, C, L]`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping
from typing import ClassVar

import torch
from torch import Tensor, fx

from bnnfx.graph.channels_last import TO_NCHW, TO_NHWC, permute, permutes
from bnnfx.graph.dataflow import calls, is_flatten, is_kind, is_replication, module_of
from bnnfx.graph.operators import Kind
from bnnfx.nn import BinaryLayer
from bnnfx.nn.frozen_norm import frozen_batch_norm
from bnnfx.nn.halves import shift_halves

Shapes = MutableMapping[fx.Node, torch.Size]


class Reading(ABC):
    """How values are read as a map, and a map as such values; nothing moves in memory.

    Attributes:
        channel_axis: which of the values' axes has the channels of the map, 1 or -1.
    """

    channel_axis: ClassVar[int]

    @abstractmethod
    def of(self, values: Tensor) -> Tensor:
        """The map that values are."""

    @abstractmethod
    def constant(self, value: Tensor) -> Tensor | None:
        """What broadcasts to the map as a constant does to the values; None if that has another place in memory."""

    @abstractmethod
    def read(self, values: fx.Node, shapes: Shapes) -> fx.Node:
        """The map that values are, at the insert point; their shape must be known."""

    @abstractmethod
    def back(self, source: fx.Node, shape: torch.Size, shapes: Shapes) -> fx.Node:
        """The values of this shape that a map is, at the insert point."""

    @abstractmethod
    def map_of(self, values: object, shapes: Shapes) -> fx.Node | None:
        """The map that these values are, if they are read from one."""

    def read_before(self, values: fx.Node, reader: fx.Node, shapes: Shapes) -> fx.Node | None:
        """The node in front of `reader` that reads these values as a map already, if there is one."""
        found = (node for user in values.users for node in (user, *user.users))
        return next((node for node in found if node < reader and self.values_of(node, shapes) is values), None)

    @abstractmethod
    def values_of(self, node: object, shapes: Shapes) -> fx.Node | None:
        """The values that a node reads as a map, if it does so."""


class Tokens(Reading):
    """`[N, ..., C]` of three axes or more are a map that is channels last.

    One axis behind the batch is a row of a map with one, and of three or more all but the last are rows. No size is
    needed but where several axes become rows.

    >>> Tokens().of(torch.zeros(2, 5, 3)).shape
    torch.Size([2, 3, 1, 5])
    """

    channel_axis = -1

    def of(self, values: Tensor) -> Tensor:
        """`[N, ..., C]` to `[N, C, H, W]`."""
        rows = values.unsqueeze(1) if values.ndim == 3 else values.flatten(1, -3)
        return rows.permute(TO_NCHW)

    def constant(self, value: Tensor) -> Tensor | None:
        """It varies with the last axis at most."""
        per_channel = value.numel() == (value.shape[-1] if value.ndim else 1)
        return value.reshape(-1, 1, 1) if per_channel else None

    def read(self, values: fx.Node, shapes: Shapes) -> fx.Node:
        """A view where there are not two axes between, and a permutation."""
        batch, *between, columns, channels = shapes[values]
        rows = values
        if len(between) != 1:
            view, axes = (torch.flatten, (1, -3)) if between else (torch.unsqueeze, (1,))
            rows = values.graph.call_function(view, (values, *axes))
        result = permute(rows, TO_NCHW)
        shapes[rows] = torch.Size((batch, math.prod(between), columns, channels))
        shapes[result] = torch.Size((batch, channels, math.prod(between), columns))
        return result

    def back(self, source: fx.Node, shape: torch.Size, shapes: Shapes) -> fx.Node:
        """A permutation, and a view."""
        _, *between, columns, channels = shape
        rows = result = permute(source, TO_NHWC)
        shapes[rows] = torch.Size((shape[0], math.prod(between), columns, channels))
        if len(between) != 1:
            view, axes = (torch.unflatten, (1, between)) if between else (torch.squeeze, (1,))
            result = source.graph.call_function(view, (rows, *axes))
            shapes[result] = shape
        return result

    def map_of(self, values: object, shapes: Shapes) -> fx.Node | None:
        """Behind a permutation, and a view."""
        rows = values
        squeezed = calls(values, torch.squeeze) and len(shapes.get(values, ())) == 3  # type: ignore[call-overload]
        if squeezed or calls(values, torch.unflatten):
            rows = _viewed(values, (1,))
        return _permuted(rows, TO_NHWC)

    def values_of(self, node: object, shapes: Shapes) -> fx.Node | None:
        """In front of a view, and a permutation."""
        rows = _permuted(node, TO_NCHW)
        if calls(rows, torch.unsqueeze):
            return _viewed(rows, (1,)) or rows
        return (_viewed(rows, (1, -3)) or rows) if calls(rows, torch.flatten) else rows


class Sequences(Reading):
    """`[N, C, L]` are a map of one row.

    >>> Sequences().of(torch.zeros(2, 3, 5)).shape
    torch.Size([2, 3, 1, 5])
    """

    channel_axis = 1

    def of(self, values: Tensor) -> Tensor:
        """`[N, C, L]` to `[N, C, 1, L]`."""
        return values.unsqueeze(2)

    def constant(self, value: Tensor) -> Tensor | None:
        """Whatever it varies with."""
        return value.unsqueeze(-2) if value.ndim > 1 else value

    def read(self, values: fx.Node, shapes: Shapes) -> fx.Node:
        """One more axis."""
        result = values.graph.call_function(torch.unsqueeze, (values, 2))
        batch, channels, length = shapes[values]
        shapes[result] = torch.Size((batch, channels, 1, length))
        return result

    def back(self, source: fx.Node, shape: torch.Size, shapes: Shapes) -> fx.Node:
        """Without that axis."""
        result = source.graph.call_function(torch.squeeze, (source, 2))
        shapes[result] = shape
        return result

    def map_of(self, values: object, shapes: Shapes) -> fx.Node | None:
        """Behind what takes the axis away."""
        is_sequence = calls(values, torch.squeeze) and len(shapes.get(values, ())) == 3  # type: ignore[call-overload]
        return _viewed(values, (2,)) if is_sequence else None

    def values_of(self, node: object, shapes: Shapes) -> fx.Node | None:
        """In front of what adds the axis."""
        values = _viewed(node, (2,)) if calls(node, torch.unsqueeze) else None
        return values if values is not None and len(shapes.get(values, ())) == 3 else None


TOKENS, SEQUENCES = Tokens(), Sequences()
READINGS: tuple[Reading, ...] = (TOKENS, SEQUENCES)
"""All that there are."""


def flattened_map(gm: fx.GraphModule, node: object, shapes: Mapping[fx.Node, torch.Size]) -> fx.Node | None:
    """The map, or the sequence that a layer gives, of which a value is the `flatten`; None if it is that of none."""
    source = node.args[0] if isinstance(node, fx.Node) and is_flatten(node) else None
    if not isinstance(source, fx.Node):
        return None
    axes = len(shapes.get(source, ()))
    return source if axes == 4 or (axes == 3 and _is_sequence_of_layer(gm, source)) else None


_KEEPS_CHANNELS = (frozen_batch_norm, shift_halves)


def _is_sequence_of_layer(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether axis 1 has the channels: of what a binary convolution gives, value by value, normalized or pooled."""
    kinds = (Kind.ELEMENTWISE, Kind.POOL, Kind.NORM)
    while is_kind(gm, node, *kinds) or is_replication(node) or any(calls(node, f) for f in _KEEPS_CHANNELS):
        node = node.all_input_nodes[0]
    layer = module_of(gm, node)
    given = isinstance(layer, BinaryLayer) and layer.channel_axis == 1
    return given or (calls(node, torch.squeeze) and node.args[1:] == (2,))


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
