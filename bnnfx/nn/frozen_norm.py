"""What a batch norm is in a lowered graph: its inference function over constants, which no `train()` turns back."""

from torch import Tensor
from torch.nn import functional as F

from bnnfx.nn.one_node import one_node


@one_node
def frozen_batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float, axis: int = 1
) -> Tensor:
    """`(x - mean) / sqrt(var + epsilon) * gamma + beta` per channel, with the bits of the module.

    The channels are axis 1, or the last one if `axis` is -1: the two norms that there are.

    >>> import torch
    >>> frozen_batch_norm(torch.tensor([[3.0]]), torch.tensor([1.0]), torch.tensor([4.0]), None, None, 0.0)
    tensor([[1.]])
    """
    rows = x.reshape(-1, x.shape[-1]) if axis == -1 else x
    return F.batch_norm(rows, mean, var, gamma, beta, False, 0.0, epsilon).reshape(x.shape)
