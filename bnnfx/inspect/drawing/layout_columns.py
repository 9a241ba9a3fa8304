"""Cutting a long picture into columns, as text is, between blocks where that is possible."""

import itertools
from collections.abc import Sequence


def columns_of(heights: Sequence[float], wanted: int, costs: Sequence[float]) -> list[range]:
    """Cut layers into at most `wanted` columns of about the same height.

    Args:
        heights: of the layers.
        wanted: how many columns.
        costs: what it costs to cut in front of each layer, in units of the mean height of a column, squared.

    Returns:
        The layers of each column.

    >>> columns_of([1, 1, 1, 1], 2, [0, 0, 0, 0])
    [range(0, 2), range(2, 4)]
    >>> columns_of([1, 1, 1, 1], 2, [0, 0, 1, 0])
    [range(0, 1), range(1, 4)]
    """
    count = len(heights)
    wanted = min(wanted, count)
    unit = (sum(heights) / wanted) ** 2
    sums = [0.0]
    for height in heights:
        sums.append(sums[-1] + height)
    # best[end]: the least cost of the layers before `end`, and where the last column starts
    best: list[tuple[float, int]] = [(0.0, 0)] + [(sums[end] ** 2, 0) for end in range(1, count + 1)]
    steps = [best]
    for _ in range(wanted - 1):
        best = [
            min(
                (steps[-1][start][0] + costs[start] * unit * (start > 0) + (sums[end] - sums[start]) ** 2, start)
                for start in range(max(1, end))
            )
            for end in range(count + 1)
        ]
        steps.append(best)
    cuts, end = [count], count
    for step in reversed(steps):
        start = step[end][1]
        if start < end:
            cuts.append(start)
        end = start
    cuts = sorted({0, *cuts})
    return [range(a, b) for a, b in itertools.pairwise(cuts)]
