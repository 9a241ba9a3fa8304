"""Quantization error: how far the float weights of binary layers are from the bits that stand for them.

With the best scale per filter, the relative error `min_a ||w - a b||^2 / ||w||^2` of a filter w with bits b is
`1 - cos(w, b)^2`. The bits nearest to w are its signs, at a cosine of `||w||_1 / (sqrt(N) ||w||_2)`: sqrt(2/pi) =
0.798 for Gaussian weights, whatever their spread.

A rotation needs a control. A random rotation makes any filter nearly Gaussian, and so brings a heavy-tailed one to
0.798 by itself; what RBNN's rotation has learned is what it adds to that.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from bnnfx.analysis.measured_parameters import binary_layers, current_signs
from bnnfx.analysis.weight_histogram import WeightHistogram, histograms
from bnnfx.arguments import require_whole
from bnnfx.nn import BinaryLayer
from bnnfx.nn.weight import Rotation
from bnnfx.tables import as_text

GAUSSIAN_COSINE = math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class Alignment:
    """Filters against bits.

    Attributes:
        cosine: mean over the filters.
        error: squared distance with the best scale per filter, over the squared norm; the sum over the layer of both.
    """

    cosine: float
    error: float

    @property
    def angle(self) -> float:
        """The angle of the mean cosine, in degrees."""
        return math.degrees(math.acos(max(-1.0, min(1.0, self.cosine))))

    def to_dict(self) -> dict[str, float]:
        """Plain figures."""
        return {**asdict(self), "angle": self.angle}


@dataclass(frozen=True)
class LayerError:
    """One binary layer.

    Attributes:
        name: qualified.
        filters: how many; each has its own scale.
        fan_in: weights per filter.
        weight: the float weight against its own signs: as the scheme prepares it (XNOR-Net: centred and clamped; RBNN:
            standardized), before any rotation.
        random: the same under random rotations, the control. None for schemes that do not rotate, as the next.
        rotated: the same under the layer's rotation (RBNN: `V = R1^T X R2`).
        used: what the forward pass binarizes against its bits: `weight`, in RBNN `w2 + A (V - w2)`.
        own_scale_error: squared distance of the prepared weight from bits times the layer's own scale, over the squared
            norm. None for schemes that rotate, whose scale belongs to no weight.
        histograms: of the values: `weight`, and for schemes that rotate `rotated` and `used`, over one range.
    """

    name: str
    filters: int
    fan_in: int
    weight: Alignment
    random: Alignment | None
    rotated: Alignment | None
    used: Alignment
    own_scale_error: float | None
    histograms: dict[str, WeightHistogram]

    def to_dict(self) -> dict[str, Any]:
        """Plain figures."""
        alignments = {key: getattr(self, key) for key in ("weight", "random", "rotated", "used")}
        return {
            "name": self.name,
            "filters": self.filters,
            "fan_in": self.fan_in,
            **{key: None if value is None else value.to_dict() for key, value in alignments.items()},
            "own_scale_error": self.own_scale_error,
            "histograms": {key: histogram.to_dict() for key, histogram in self.histograms.items()},
        }


@dataclass(frozen=True)
class QuantizationError:
    """What `quantization_error` found, by qualified name of the layer; prints as a table."""

    layers: dict[str, LayerError]

    def __getitem__(self, name: str) -> LayerError:
        """One layer."""
        return self.layers[name]

    def __str__(self) -> str:
        """One row per layer, cosines and the errors that go with them."""
        table = Table("layer", "filters", "cosine", "error", "own scale", "random rotation", "rotated", "used", "angle")
        for name, layer in self.layers.items():
            own = "" if layer.own_scale_error is None else f"{layer.own_scale_error:.3f}"
            rotations = ("" if a is None else f"{a.cosine:.3f}" for a in (layer.random, layer.rotated))
            table.add_row(
                name,
                f"{layer.filters} x {layer.fan_in}",
                f"{layer.weight.cosine:.3f}",
                f"{layer.weight.error:.3f}",
                own,
                *rotations,
                f"{layer.used.cosine:.3f}",
                f"{layer.used.angle:.1f}°",
            )
        return as_text(table, f"Gaussian weights: cosine {GAUSSIAN_COSINE:.3f}, error {1 - GAUSSIAN_COSINE**2:.3f}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain figures for JSON."""
        return {"layers": [layer.to_dict() for layer in self.layers.values()], "gaussian_cosine": GAUSSIAN_COSINE}


@torch.no_grad()
def quantization_error(gm: nn.Module, *, bins: int = 64, seed: int = 0) -> QuantizationError:
    """Measure every binary layer of a model as it is now; nothing is changed.

    Args:
        gm: a trainable graph of `bnnfx.convert`, or any module that contains binary layers.
        bins: of the histograms.
        seed: of the random rotations; torch's own random state is kept.

    Returns:
        Cosine, angle and relative error per layer, before and after rotation where there is one, and histograms.

    Raises:
        ValueError: there is no binary layer, or one without values; or `bins` or `seed` is no such number.

    >>> from bnnfx.nn import BinaryLinear
    >>> layer = BinaryLinear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> round(quantization_error(layer)[""].weight.error, 3)  # (4 - 0) / (sqrt(2) sqrt(10)), squared, from 1
    0.2
    """
    bins, seed = require_whole("bins", bins, least=1), require_whole("seed", seed)
    layers = binary_layers(gm, "quantization_error")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return QuantizationError({name: _measure(name, layer, bins) for name, layer in layers.items()})


def _measure(name: str, layer: BinaryLayer, bins: int) -> LayerError:
    prepared, signs, scale = (x.cpu().double() for x in current_signs(layer))
    bits = signs.flatten(1)
    random = rotated = own = None
    rotation = layer.binarizer.rotation(prepared)
    if rotation is not None:
        values = {"weight": rotation.before, "rotated": rotation.after, "used": rotation.used}
        rotated = alignment(rotation.after, _signs(rotation.after))
        random = _random_control(rotation)
    else:
        values = {"weight": prepared.flatten(1)}
        norm = float(values["weight"].square().sum())
        own = float((values["weight"] - scale.reshape(-1, 1) * bits).square().sum()) / norm if norm else 0.0
    return LayerError(
        name,
        filters=bits.shape[0],
        fan_in=bits.shape[1],
        weight=alignment(values["weight"], _signs(values["weight"])),
        random=random,
        rotated=rotated,
        used=alignment(values.get("used", values["weight"]), bits),
        own_scale_error=own,
        histograms=histograms(values, bins),
    )


def alignment(filters: Tensor, bits: Tensor) -> Alignment:
    """Filters `float64[O, N]` against bits +-1 of the same shape; a filter of zeros has cosine 0 and no error.

    >>> alignment(torch.tensor([[1.0, 1.0], [2.0, 0.0]]).double(), torch.ones(2, 2).double())
    Alignment(cosine=0.853..., error=0.333...)
    """
    norms = filters.norm(dim=1)
    product = (filters * bits).sum(1) / math.sqrt(filters.shape[1])  # the length of the part along the bits
    cosines = torch.where(norms > 0, product / norms, 0.0)
    total = float(norms.square().sum())
    left = float((norms.square() - product.square()).clamp_min(0).sum())
    return Alignment(float(cosines.mean()), left / total if total else 0.0)


def _signs(filters: Tensor) -> Tensor:
    return torch.where(filters >= 0, 1.0, -1.0).to(filters.dtype)


def _random_control(rotation: Rotation, draws: int = 3) -> Alignment:
    found = [alignment(filters, _signs(filters)) for filters in (rotation.at_random() for _ in range(draws))]
    return Alignment(sum(a.cosine for a in found) / draws, sum(a.error for a in found) / draws)
