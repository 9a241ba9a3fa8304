"""Flips of weight signs during training, of three kinds that must not be mixed up.

* `since_start`: share of bits that differ from those at the start of the observation.
* `step`: share of bits that differ from those at the update before, averaged over updates.
* `rotation`: share of weights whose sign the rotation of RBNN turns over, `sgn(w) != sgn(rotated w)`. A random rotation
  turns over half of them, so a value near 0.5 says nothing about training.

The bits of the first two are those that the forward pass uses: in RBNN they also change when `bnnfx.Schedule`
recomputes a rotation.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from rich.table import Table
from torch import Tensor, nn

from bnnfx.analysis.measured_parameters import binary_layers, current_signs
from bnnfx.arguments import read_json, require_whole
from bnnfx.file_writing import write_whole
from bnnfx.nn import BinaryLayer
from bnnfx.tables import as_text


@dataclass(frozen=True)
class LayerFlips:
    """Shares of one layer, in [0, 1].

    Attributes:
        since_start: bits that differ from those at the start.
        step: bits that changed from one update to the next, mean over the updates; 0 before the first.
        rotation: signs that the scheme's rotation turns over; None for a scheme without one.
    """

    since_start: float
    step: float
    rotation: float | None


@dataclass(frozen=True)
class FlipRecord:
    """One line of the history.

    Attributes:
        update: how many updates there had been.
        layers: shares by qualified name; `step` is the mean over the updates since the record before.
    """

    update: int
    layers: Mapping[str, LayerFlips]


@dataclass
class FlipHistory:
    """A log of records, which JSON keeps as it is."""

    records: list[FlipRecord] = field(default_factory=list)

    def save(self, path: str | Path) -> Path:
        """Write it as JSON; an existing file is replaced as a whole.

        Raises:
            ExportError: it cannot be written.
        """
        return write_whole(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: it cannot be read, or holds something else.
        """
        content = read_json(path)
        try:
            records = content["records"]
            return cls([FlipRecord(r["update"], {n: LayerFlips(**x) for n, x in r["layers"].items()}) for r in records])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is no history of flips: {type(error).__name__}: {error}.") from error


class FlipRate:
    """Track how the bits of every binary layer change, from the moment it is made.

    Args:
        gm: a trainable graph of `bnnfx.convert`, or any module that contains binary layers. Nothing in it is changed.
        every: how many updates make one record of the history.

    Attributes:
        history: the records so far, to be saved as a log.
        updates: how often `update` was called.

    Raises:
        ValueError: there is no binary layer, or `every` is below 1.

    >>> from bnnfx.nn import BinaryLinear
    >>> layer = BinaryLinear(4, 1, bias=False)
    >>> flips = FlipRate(layer)
    >>> with torch.no_grad():
    ...     _ = layer.weight[0, 0].neg_()
    >>> flips.update()
    >>> flips.per_layer()[""]
    LayerFlips(since_start=0.25, step=0.25, rotation=None)
    """

    def __init__(self, gm: nn.Module, *, every: int = 1) -> None:
        self.history = FlipHistory()
        self.updates = 0
        self._every = require_whole("every", every, least=1)
        self._layers = binary_layers(gm, "FlipRate")
        self._start = {name: _bits(layer) for name, layer in self._layers.items()}
        self._last = dict(self._start)
        # sums stay on the layer's device: reading them after every update would wait for a GPU
        self._flipped = {name: bits.new_zeros((), dtype=torch.int64) for name, bits in self._start.items()}
        self._recorded = dict(self._flipped)

    @torch.no_grad()
    def update(self) -> None:
        """Compare the bits with those of the last call; to be called after every step of the optimizer."""
        for name, layer in self._layers.items():
            bits = _bits(layer)
            self._flipped[name] = self._flipped[name] + (bits != self._last[name]).sum()
            self._last[name] = bits
        self.updates += 1
        if self.updates % self._every == 0:
            shares = self._shares({n: self._flipped[n] - self._recorded[n] for n in self._layers}, self._every)
            self.history.records.append(FlipRecord(self.updates, shares))
            self._recorded = dict(self._flipped)

    def per_layer(self) -> dict[str, LayerFlips]:
        """The shares by qualified name, as of the last update; `step` is the mean over all updates."""
        return self._shares(self._flipped, self.updates)

    @torch.no_grad()
    def _shares(self, flipped: Mapping[str, Tensor], updates: int) -> dict[str, LayerFlips]:
        shares = {}
        for name, layer in self._layers.items():
            bits = self._last[name]
            since = float((bits != self._start[name]).double().mean())
            step = int(flipped[name]) / (bits.numel() * updates) if updates else 0.0
            shares[name] = LayerFlips(since, step, _rotation_flips(layer))
        return shares

    def __str__(self) -> str:
        """One row per layer, and one for all their bits together."""
        table = Table("layer", "bits", "since start", "per step", "by rotation")
        rows = self.per_layer()
        for name, row in rows.items():
            rotation = "" if row.rotation is None else f"{row.rotation:.1%}"
            size = self._start[name].numel()
            table.add_row(name, f"{size:,}", f"{row.since_start:.1%}", f"{row.step:.3%}", rotation)
        sizes = {name: bits.numel() for name, bits in self._start.items()}
        total = sum(sizes.values())
        means = [
            sum(getattr(row, kind) * sizes[n] for n, row in rows.items()) / total for kind in ("since_start", "step")
        ]
        table.add_section()
        table.add_row("all", f"{total:,}", f"{means[0]:.1%}", f"{means[1]:.3%}", "")
        note = "A random rotation turns over 50 % of the signs."
        return as_text(
            table, f"{self.updates} updates.", *([note] if any(r.rotation is not None for r in rows.values()) else [])
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain figures for JSON: the shares as of now; `history` has the course."""
        return {"updates": self.updates, "layers": {name: asdict(row) for name, row in self.per_layer().items()}}


def _bits(layer: BinaryLayer) -> Tensor:
    return current_signs(layer)[1] > 0


def _rotation_flips(layer: BinaryLayer) -> float | None:
    rotation = layer.binarizer.rotation(layer.binarizer.prepare(layer.weight))
    return None if rotation is None else float(((rotation.before >= 0) != (rotation.after >= 0)).double().mean())
