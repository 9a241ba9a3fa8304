"""What modules and functions do with channels, as far as that does not depend on the rest of a network."""

import math
import operator
from typing import Any

from torch import fx, nn

from bnnfx.graph.channel_graph import Channels

_ADAPTIVE = ((nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d), (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a call, however it is spelled."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def adaptive_positions(module: nn.Module | None) -> int | None:
    """Pixels of an adaptive pool's result, if both sides are given."""
    axes = next((axes for axes, kinds in enumerate(_ADAPTIVE, 1) if isinstance(module, kinds)), 0)
    if not axes:
        return None
    size: Any = module.output_size  # type: ignore[union-attr]
    sides = size if isinstance(size, tuple | list) else (size,) * axes
    return None if None in sides else math.prod(sides)


def is_channel_axis(axis: int, channels: Channels) -> bool:
    """Whether an axis of a value, also counted from its end, is that of its channels."""
    if channels.rank is None:
        return channels.last and axis == -1
    return axis % channels.rank == (channels.rank - 1 if channels.last else 1)


def ignores_channels(node: fx.Node, channels: Channels) -> bool:
    """Whether only the batch size, or the size of a map, is read off a value."""

    def harmless(index: object) -> bool:
        if channels.rank is None or not isinstance(index, int | slice):
            return index == 0
        axes = range(channels.rank)[index]
        return not any(is_channel_axis(axis, channels) for axis in (axes if isinstance(axes, range) else (axes,)))

    if node.target == "dim" or node.args[1:] == ("ndim",):
        return True
    if node.target == "size" and len(node.args) == 2:
        return harmless(node.args[1])
    return all(user.target is operator.getitem and harmless(user.args[1]) for user in node.users)


def cuts_positions(index: object) -> bool:
    """Whether an index leaves batch and channels whole: `x[:, :, ::2, ::2]`."""
    return (
        isinstance(index, tuple)
        and len(index) > 1
        and index[:2] == (slice(None), slice(None))
        and all(isinstance(part, slice) for part in index)
    )


def pads_positions(node: fx.Node, rank: int | None) -> bool:
    """Whether `F.pad` leaves batch and channels as they are."""
    pads = argument(node, 1, "pad", None)
    return rank is not None and isinstance(pads, list | tuple) and len(pads) <= 2 * (rank - 2)
