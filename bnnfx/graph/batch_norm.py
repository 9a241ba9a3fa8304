"""A frozen batch norm as the affine function that it is."""

import torch
from torch import Tensor, fx

from bnnfx.graph.dataflow import constant


def behind_affine(gm: fx.GraphModule, batch_norm: fx.Node, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and bias of `batch_norm(z * scale + bias)`, per channel, in double.

    With `A = gamma / sqrt(var + eps)` they are `scale * A` and `(bias - mean) * A + beta`.
    """
    mean, var = (constant(gm, node).double() for node in batch_norm.args[1:3])
    gamma, beta = (
        torch.full_like(mean, default) if node is None else constant(gm, node).double()
        for node, default in zip(batch_norm.args[3:5], (1.0, 0.0), strict=True)
    )
    epsilon = batch_norm.args[7]
    assert isinstance(epsilon, float)
    factor = gamma / torch.sqrt(var + epsilon)
    return scale.double() * factor, (bias.double() - mean) * factor + beta
