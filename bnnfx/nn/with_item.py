"""An assignment to a part of a tensor, as a function of the tensor."""

from typing import Any

from torch import Tensor

from bnnfx.nn.one_node import one_node


@one_node
def with_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """What `x` is after `x[index] = value`.

    >>> import torch
    >>> with_item(torch.zeros(3), slice(1, None), 2)
    tensor([0., 2., 2.])
    """
    result = x.clone()
    result[index] = value
    return result
