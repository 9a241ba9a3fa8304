"""Histograms of weights, as plain numbers that a report can draw."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightHistogram:
    """Counts in equal bins.

    Attributes:
        edges: the borders of the bins, ascending, one more than bins.
        counts: how many values fall between two borders; the last bin has its upper border in it.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists."""
        return {"edges": list(self.edges), "counts": list(self.counts)}


def histograms(values: dict[str, Tensor], bins: int = 64) -> dict[str, WeightHistogram]:
    """Histograms over one range that is symmetric around 0 and holds all the values, so that they can be overlaid.

    >>> histograms({"w": torch.tensor([-2.0, 0.5, 0.5, 1.0])}, bins=4)["w"]
    WeightHistogram(edges=(-2.0, -1.0, 0.0, 1.0, 2.0), counts=(1, 0, 2, 1))
    """
    flat = {name: x.detach().flatten().cpu().double() for name, x in values.items()}
    largest = max((float(x.abs().max()) for x in flat.values()), default=0.0) or 1.0
    result = {}
    for name, x in flat.items():
        counts, edges = torch.histogram(x, bins, range=(-largest, largest))
        result[name] = WeightHistogram(tuple(edges.tolist()), tuple(map(int, counts.tolist())))
    return result
