"""What modules and functions do with channels, as far as that does not depend on the rest of a network."""

import math
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from bnnfx.graph.channel_graph import Channels
from bnnfx.graph.dataflow import CONVOLUTIONS, DROPOUTS, ELEMENTWISE, POOLS
from bnnfx.nn import ActivationBinarizer

RANKS: dict[type[nn.Module], int] = {
    **{nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5},
    **{nn.ConvTranspose1d: 3, nn.ConvTranspose2d: 4, nn.ConvTranspose3d: 5},
}
"""The number of axes of what a convolution reads, with the batch."""

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
RESIZABLE = (*CONVOLUTIONS, nn.Linear, *NORMS, nn.PReLU)
"""Modules whose number of channels can be changed, exactly of these types."""

KEEPING = (
    *(*ELEMENTWISE, *DROPOUTS, ActivationBinarizer, nn.Identity, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus),
    *(nn.LogSigmoid, nn.Softsign, nn.Mish, nn.CELU, nn.SELU, nn.Hardshrink, nn.Softshrink, nn.Threshold),
)
"""Modules that work value by value."""

RESAMPLING = (
    *(*POOLS, nn.MaxPool1d, nn.AvgPool1d, nn.MaxPool3d, nn.AvgPool3d, nn.LPPool2d, nn.Upsample, nn.ZeroPad2d),
    *(nn.ReflectionPad2d, nn.ReplicationPad2d, nn.LocalResponseNorm),
)
"""Modules that keep the channels of a map and may change its size."""

UNARY: set[object] = {
    *(torch.abs, torch.neg, torch.exp, torch.log, torch.sqrt, torch.tanh, torch.clamp, torch.square, torch.sign),
    *(operator.neg, operator.pow, F.gelu, F.silu, F.elu, F.mish, F.softplus, F.hardswish, F.hardsigmoid, F.tanh),
    *(F.logsigmoid, F.dropout, F.dropout2d),
    *("abs", "neg", "exp", "sqrt", "tanh", "clamp", "square", "sigmoid", "contiguous", "clone", "detach", "float"),
}
"""Functions and methods that work value by value, on one tensor."""

UNARY_NAMES = ("stochastic_depth",)  # of torchvision, which need not be installed
JOINING: set[object] = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.sub, torch.mul, torch.div, torch.maximum),
    *(torch.minimum, operator.isub, operator.imul, operator.itruediv, "sub", "mul", "div", "maximum", "minimum"),
    *("sub_", "mul_", "div_", torch.add, operator.iadd, "add", "add_"),
}
"""Functions and methods that work value by value, on several tensors or a tensor and numbers."""


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a call, however it is spelled."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def adaptive_positions(module: nn.Module) -> int | None:
    """Pixels of an adaptive pool's result, if both sides are given."""
    if not isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        return None
    size = module.output_size
    sides = size if isinstance(size, tuple | list) else (size, size)
    return None if None in sides else math.prod(sides)  # type: ignore[arg-type]


def is_channel_axis(axis: int, channels: Channels) -> bool:
    """Whether an axis of a value, also counted from its end, is that of its channels."""
    if channels.rank is None:
        return channels.last and axis == -1
    return axis % channels.rank == (channels.rank - 1 if channels.last else 1)


def reads_size(node: fx.Node) -> bool:
    """Whether a node reads the shape of a tensor, or its number of axes."""
    return node.target in ("size", "dim") or (node.target is getattr and node.args[1] in ("shape", "ndim"))


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
