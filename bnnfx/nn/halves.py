"""Maps of 2 C channels that stand for one map of C: what `bnnfx.split` puts at the borders of the part it splits.

Channels are in blocks, [all of half 1, all of half 2]. What a map v becomes is `[v - 1/4, v + 1/4]`, and what a ternary
activation becomes is a pair of binary ones; both have v as the mean of their halves. Replication without a shift is
`torch.cat([v, v], 1)`.
"""

import torch
from torch import Tensor

from bnnfx.nn.one_node import one_node

SHIFT = 0.25
"""How far the halves are from the map that they stand for. Source: BinaryDuo (arXiv 2002.06517), the authors' code."""


@one_node
def shift_halves(x: Tensor, shift: float, axis: int = 1) -> Tensor:
    """Subtract `shift` from the first half of the channels and add it to the second: the shape stays.

    >>> shift_halves(torch.zeros(1, 4), 0.25)
    tensor([[-0.2500, -0.2500,  0.2500,  0.2500]])
    """
    half = x.shape[axis] // 2
    shifts = torch.cat([x.new_full((half,), -shift), x.new_full((half,), shift)])
    return x + shifts.reshape(-1, *(1,) * (x.ndim - 1 - axis % x.ndim))


@one_node
def mean_of_halves(x: Tensor, axis: int = 1) -> Tensor:
    """The map that two halves stand for: `[N, 2 C, ...]` to `[N, C, ...]`.

    >>> mean_of_halves(torch.tensor([[0.0, 1.0, 1.0, 1.0]]))
    tensor([[0.5000, 1.0000]])
    """
    axis %= x.ndim
    return torch.unflatten(x, axis, (2, -1)).mean(axis)


@one_node
def halves_by_group(x: Tensor, groups: int) -> Tensor:
    """Reorder `[N, 2 C, ...]` for a grouped layer, which wants both halves of a group's channels side by side.

    >>> halves_by_group(torch.arange(8).view(1, 8), groups=2)
    tensor([[0, 1, 4, 5, 2, 3, 6, 7]])
    """
    return torch.unflatten(x, 1, (2, groups, -1)).transpose(1, 2).flatten(1, 3)


def halves_in_blocks(x: Tensor, groups: int) -> Tensor:
    """The order that `halves_by_group` changed.

    >>> halves_in_blocks(torch.tensor([[0, 1, 4, 5, 2, 3, 6, 7]]), groups=2)
    tensor([[0, 1, 2, 3, 4, 5, 6, 7]])
    """
    return torch.unflatten(x, 1, (groups, 2, -1)).transpose(1, 2).flatten(1, 3)
