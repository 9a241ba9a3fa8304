"""What is left of a binarizer in a lowered graph where a float layer reads it."""

import torch
from torch import Tensor

from bnnfx.nn.one_node import one_node


@one_node
def compare(x: Tensor, threshold: Tensor, low: float, high: float, axis: int = 1) -> Tensor:
    """`high` where x >= threshold, which broadcasts to it, else `low`; NaN gives `low`.

    `axis` says which holds the channels, for those who list the values of both forms of a graph in one order.

    >>> compare(torch.tensor([0.4, 0.5]), torch.tensor([0.5]), 0.0, 1.0)
    tensor([0., 1.])
    """
    return torch.where(x >= threshold, high, low)
