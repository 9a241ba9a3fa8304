"""What is `x * scale + bias` with one scale and one bias per channel, however it is spelled."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from bnnfx.graph.dataflow import calls, constant
from bnnfx.graph.operators import call_of, operator_of
from bnnfx.nn.frozen_norm import frozen_batch_norm


@dataclass(frozen=True)
class Affine:
    """One per-channel affine map of a value.

    Attributes:
        source: the value.
        scale: `float64[C]`, or `float64[1]` for all channels.
        bias: likewise.
    """

    source: fx.Node
    scale: Tensor
    bias: Tensor

    def behind(self, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and bias, in double, of this map behind `z * scale + bias`."""
        return scale.double() * self.scale, bias.double() * self.scale + self.bias


def affine_of(gm: fx.GraphModule, node: object, axes: int | None) -> Affine | None:
    """The affine map that a node is; None if it is none, or not one per channel.

    Args:
        gm: a graph whose batch norms are frozen.
        node: any node.
        axes: the number of axes of its result, of which the second has the channels; None if it is not known.
    """
    if not isinstance(node, fx.Node):
        return None
    if calls(node, frozen_batch_norm):
        return _frozen(gm, node, axes)
    row = operator_of(gm, node)
    if row.name not in ("add", "sub", "mul", "div") or axes is None:
        return None
    call = call_of(gm, node)
    sources = [operand for operand in call.operands if _is_value(operand)]
    constants = [_per_channel(gm, operand, axes) for operand in call.operands if not _is_value(operand)]
    if call.arguments or len(sources) != 1 or len(constants) != 1 or constants[0] is None:
        return None
    source, value = sources[0], constants[0]
    assert isinstance(source, fx.Node)
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    if row.name == "add":
        return Affine(source, one, value)
    if row.name == "mul":
        return Affine(source, value, zero)
    if call.operands[0] is source:
        return Affine(source, one, -value) if row.name == "sub" else Affine(source, 1 / value, zero)
    return Affine(source, -one, value) if row.name == "sub" else None


def _is_value(operand: object) -> bool:
    return isinstance(operand, fx.Node) and operand.op != "get_attr"


def _per_channel(gm: fx.GraphModule, operand: object, axes: int) -> Tensor | None:
    """A constant as `float64[C]`; None if it differs along another axis than that of the channels."""
    if isinstance(operand, int | float):
        return torch.tensor([float(operand)], dtype=torch.float64)
    value = constant(gm, operand)
    sizes = (1,) * (axes - value.ndim) + tuple(value.shape)
    alike = value.is_floating_point() and value.ndim <= axes and all(n == 1 for i, n in enumerate(sizes) if i != 1)
    return value.double().reshape(-1) if alike else None


def _frozen(gm: fx.GraphModule, node: fx.Node, axes: int | None) -> Affine | None:
    """`A = gamma / sqrt(var + eps)` and `beta - mean A`."""
    source, mean, var, gamma, beta, epsilon, *axis = node.args
    assert isinstance(source, fx.Node) and isinstance(epsilon, float)
    if axis and axes != 2:
        return None  # the channels are the last axis
    factor = 1 / torch.sqrt(constant(gm, var).double() + epsilon)
    factor = factor if gamma is None else constant(gm, gamma).double() * factor
    offset = -constant(gm, mean).double() * factor
    return Affine(source, factor, offset if beta is None else offset + constant(gm, beta).double())
