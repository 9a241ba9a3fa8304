"""Whether an activation binarizer is the comparison that it says it is."""

import torch
from torch import Tensor

from bnnfx.errors import Refusal, first_line
from bnnfx.nn.activation import ActivationBinarizer

_MAP_AXES = 4
_PIXELS = 4  # rows and columns
_VALUES = 4096  # enough for each kind of value to occur many times
_REMEDY = (
    "let binarize give exactly the upper one of levels where x >= threshold(x), else the lower one, as "
    "bnnfx.nn.sign.steps does: lower compares with threshold and does nothing else"
)


@torch.no_grad()
def comparison_fault(binarizer: ActivationBinarizer, shape: torch.Size) -> Refusal | None:
    """How a binarizer of two levels differs from `x >= threshold(x)` on a probe, or None if it does not.

    The probe holds random values around the threshold, the threshold and its neighbours, zeros of both signs and, where
    every value is compared by itself, infinities and NaN, which no threshold lets through.

    Args:
        binarizer: in evaluation mode, `float32`.
        shape: of what it reads. A batch of any size is given, and a smaller map where the threshold is the same at all
            its pixels.
    """
    try:
        x = _probe(binarizer, _probe_shape(binarizer, shape))
        threshold = _threshold(binarizer, x).expand(x.shape)
        obstacle = "is not a number" if bool(threshold.isnan().any()) else ""
    except (RuntimeError, IndexError) as error:
        obstacle = f"cannot be had: {first_line(error)[:-1]}"
    if obstacle:
        return Refusal(
            f"the threshold of {_name(binarizer)}, {obstacle}",
            "let threshold(x, rank) give what broadcasts to x; if it is computed from x, set pointwise = False",
        )
    low, high = binarizer.levels
    given, expected = binarizer(x), torch.where(x >= threshold, high, low)
    if given.shape != x.shape:
        return Refusal(f"{_name(binarizer)}, gives {list(given.shape)} for values {list(x.shape)}", _REMEDY)
    wrong = given != expected
    if not bool(wrong.any()):
        return None
    value, limit, one, other = (float(values[wrong][0]) for values in (x, threshold, given, expected))
    return Refusal(
        f"{_name(binarizer)}, gives {one:.9g} for {value:.9g}, where the comparison with its threshold, {limit:.9g}, "
        f"gives {other:g}",
        _REMEDY,
    )


def _threshold(binarizer: ActivationBinarizer, x: Tensor) -> Tensor:
    """As `lower` takes it."""
    return binarizer.constant_threshold(x.ndim) if binarizer.pointwise else binarizer.threshold(x, x.ndim).float()


def _name(binarizer: ActivationBinarizer) -> str:
    return f"its activation binarizer, {type(binarizer).__name__}"


def _probe_shape(binarizer: ActivationBinarizer, shape: torch.Size) -> torch.Size:
    limits = _threshold(binarizer, torch.zeros(shape)).shape
    limits = torch.Size((*(1,) * (len(shape) - len(limits)), *limits))
    channels, *pixels = shape[1:]
    if len(shape) == _MAP_AXES:
        pixels = [size if limit > 1 else min(size, _PIXELS) for size, limit in zip(pixels, limits[2:], strict=True)]
    sample = torch.Size((channels, *pixels))
    return torch.Size((max(2, -(-_VALUES // sample.numel())), *sample))


def _probe(binarizer: ActivationBinarizer, shape: torch.Size) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * 4 ** torch.randint(-3, 3, shape, generator=generator)
    if not binarizer.pointwise:
        return x  # a single infinity would make all of it NaN
    threshold = _threshold(binarizer, x).expand(shape)
    infinity = torch.full(shape, torch.inf)
    special = (
        threshold + x,
        threshold,
        torch.nextafter(threshold, infinity),
        torch.nextafter(threshold, -infinity),
        torch.full(shape, 0.0),
        torch.full(shape, -0.0),
        infinity,
        -infinity,
        torch.full(shape, torch.nan),
    )
    chosen = torch.randint(0, 2 * len(special), shape, generator=generator)
    for index, values in enumerate(special):
        x = torch.where(chosen == index, values, x)
    return x
