"""What a subclass of a layer computes, found by value: whether it is the layer itself, behind which padding."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bnnfx.errors import Refusal
from bnnfx.graph.random_state import same_random_state
from bnnfx.nn import BINARY_LAYERS

Sides = tuple[tuple[int, int], ...]
"""Zeros in front of and behind each axis of a map."""

_SCALES = ((1.0, 1.0), (30.0, 0.01), (0.01, 30.0))
"""Of inputs and of parameters: a clamp or a normalization of either shows in one of them."""

_MOST_PADDINGS = 64


@dataclass(frozen=True)
class PlainLayer:
    """A layer of torch that computes what a subclass does, with the same parameters.

    Attributes:
        module: the layer; its own padding is the one of `sides` where that is the same on both.
        sides: zeros in front of it, on each side of every axis; empty where there are none, or they are its own.
        any_size: whether this holds for inputs of other sizes, too.
    """

    module: nn.Module
    sides: Sides
    any_size: bool


def float_type(layer: nn.Module) -> type[nn.Module] | None:
    """The type of layer that we know, of which this one is a subclass; None if it is none, or of that very type."""
    if type(layer) in BINARY_LAYERS or isinstance(layer, tuple(BINARY_LAYERS.values())):
        return None
    return next((kind for kind in BINARY_LAYERS if isinstance(layer, kind)), None)


def plain_layer(layer: nn.Module, shapes: Sequence[torch.Size]) -> PlainLayer | Refusal:
    """The layer of torch that a subclass is, on inputs of these shapes; else what it does instead.

    It is compared on random inputs and with random parameters of several sizes, in both modes, so that what it makes of
    its weight, or of values, is seen.
    """
    kind, name = float_type(layer), type(layer).__name__
    assert kind is not None
    unused = [key for key in layer.state_dict() if key not in ("weight", "bias")]
    alone = f"use nn.{kind.__name__} itself, and do what the subclass adds in a module around it"
    found: list[PlainLayer] = []
    for shape in shapes:
        plain = _plain_on(layer, kind, shape)
        if plain is None:
            return _what_else(layer, kind, shape) or Refusal(
                f"{name} computes something else than nn.{kind.__name__} with its weight and bias", alone
            )
        found.append(plain)
    if any(plain.sides != found[0].sides or str(plain.module) != str(found[0].module) for plain in found):
        return Refusal(f"{name} pads its calls differently", "give each call a layer of its own")
    if unused:
        return Refusal(f"{name} has {unused[0]!r} beside weight and bias, and does not use it", f"drop it, or {alone}")
    any_size = all(plain.any_size for plain in found)
    return PlainLayer(found[0].module, found[0].sides, any_size)


def _plain_on(layer: nn.Module, kind: type[nn.Module], shape: torch.Size) -> PlainLayer | None:
    shape = torch.Size((1, *shape[1:]))
    trials = [(training, *scales) for training in (True, False) for scales in _SCALES]
    expected = _run(layer, shape, *trials[0])
    if expected is None:
        return None
    for sides in _paddings(layer, shape, expected.shape):
        module = _made(layer, kind, sides)
        front = () if all(before == behind for before, behind in sides) else sides
        if module is not None and all(_agree(layer, module, front, shape, *trial) for trial in trials):
            return PlainLayer(module, front, _fits_other_sizes(layer, module, front, shape, trials[-1]))
    return None


def _made(layer: Any, kind: type[nn.Module], sides: Sides) -> nn.Module | None:
    """A layer of torch with the settings and the parameters of a subclass, padded alike on both sides or not at all."""
    bias = layer.bias is not None
    if kind is nn.Linear:
        made: Any = nn.Linear(layer.in_features, layer.out_features, bias, device="meta")
    else:
        alike = all(before == behind for before, behind in sides)
        padding = tuple(before for before, _ in sides) if alike else (0,) * len(sides)
        window = (layer.kernel_size, layer.stride, padding, layer.dilation, layer.groups)
        made = kind(layer.in_channels, layer.out_channels, *window, bias, device="meta")
    if made.weight.shape != layer.weight.shape:
        return None
    made.weight, made.bias = layer.weight, layer.bias
    return made.train(layer.training)  # type: ignore[no-any-return]


def _paddings(layer: Any, shape: torch.Size, result: torch.Size) -> Iterator[Sides]:
    """How a convolution that makes a result of this size could be padded, the usual ways first."""
    if isinstance(layer, nn.Linear):
        yield ()
        return
    axes = []
    for place, (size, made) in enumerate(zip(shape[2:], result[2:], strict=True)):
        stride, reach = layer.stride[place], layer.dilation[place] * (layer.kernel_size[place] - 1) + 1
        least = (made - 1) * stride + reach - size
        own = layer.padding[place] if isinstance(layer.padding, tuple) else 0
        fronts = dict.fromkeys((own, max(least, 0) // 2, *range(max(least, 0) + stride)))
        ways = []
        for front in fronts:
            alike = (size + 2 * front - reach) // stride + 1 == made
            behind = front if alike else least - front
            if behind >= 0 and size + front + behind >= reach:
                ways.append((front, behind))
        axes.append(ways)
    # the most usual of every axis together, before one of them is unusual
    chosen = sorted(itertools.product(*(range(len(ways)) for ways in axes)), key=lambda places: (sum(places), places))
    for places in chosen[:_MOST_PADDINGS]:
        yield tuple(ways[place] for ways, place in zip(axes, places, strict=True))


def _run(layer: nn.Module, shape: torch.Size, training: bool, of_input: float, of_weight: float) -> Tensor | None:
    """What a layer makes of random numbers, with random parameters; None if it fails."""
    with torch.no_grad(), same_random_state():
        try:
            given = _randomized(layer, of_weight).train(training)
            result = given(of_input * torch.randn(shape, dtype=torch.float64, device=_device(layer)))
        except Exception:  # whatever it is, it is no plain layer
            return None
    return result if isinstance(result, Tensor) and result.ndim == len(shape) else None


def _agree(
    layer: nn.Module, module: nn.Module, sides: Sides, shape: torch.Size, training: bool, of_input: float, weight: float
) -> bool:
    """Whether both compute the same of the same random numbers, but for rounding."""
    expected = _run(layer, shape, training, of_input, weight)
    if expected is None:
        return False
    with torch.no_grad(), same_random_state():
        given = {key: value.detach() for key, value in _randomized(layer, weight).named_parameters()}
        x = of_input * torch.randn(shape, dtype=torch.float64, device=_device(layer))
        kept: dict[str, Tensor] = {key: given[key] for key in ("weight", "bias") if key in given}
        found = torch.func.functional_call(module, kept, (F.pad(x, as_pad(sides)) if sides else x,))
    if found.shape != expected.shape:
        return False
    terms = kept["weight"][0].numel() + 1
    largest = terms * float(x.abs().max()) * max(float(value.abs().max()) for value in kept.values())
    return bool(((found - expected).abs() <= 4 * terms * torch.finfo(torch.float64).eps * largest).all())


def _fits_other_sizes(
    layer: Any, module: nn.Module, sides: Sides, shape: torch.Size, trial: tuple[bool, float, float]
) -> bool:
    """Whether both agree on larger maps, up to as many values more as a window moves by."""
    if isinstance(layer, nn.Linear):
        return True
    more = range(1, max(layer.stride) + 1)
    larger = [torch.Size((*shape[:2], *(size + count for size in shape[2:]))) for count in more]
    return all(_agree(layer, module, sides, size, *trial) for size in larger)


def _randomized(layer: nn.Module, scale: float) -> nn.Module:
    """A copy in double whose parameters and buffers are random numbers."""
    copied = copy.deepcopy(layer).double()
    for value in (*copied.parameters(), *copied.buffers()):
        if value.is_floating_point():
            value.data = scale * torch.randn(value.shape, dtype=value.dtype, device=value.device)
    return copied


def _device(layer: Any) -> torch.device:
    device: torch.device = layer.weight.device
    return device


def as_pad(sides: Sides) -> tuple[int, ...]:
    """As `F.pad` has them, the last axis first."""
    return tuple(count for pair in reversed(sides) for count in pair)


class _Weights(TorchFunctionMode):
    """Notes the weights that layers are called with as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (F.conv1d, F.conv2d, F.linear):
            self.found.append(args[1] if len(args) > 1 else (kwargs or {})["weight"])
        return func(*args, **(kwargs or {}))


def _what_else(layer: nn.Module, kind: type[nn.Module], shape: torch.Size) -> Refusal | None:
    """That a subclass calls its layer once, with another weight than its own."""
    seen = _Weights()
    with torch.no_grad(), same_random_state(), seen:
        try:
            copied = _randomized(layer, 1.0)
            copied(torch.randn((1, *shape[1:]), dtype=torch.float64, device=_device(layer)))
        except Exception:
            return None
    own: Any = copied.weight
    if len(seen.found) != 1 or seen.found[0].shape != own.shape or torch.equal(seen.found[0], own):
        return None
    return Refusal(
        f"{type(layer).__name__} computes another weight at each call, from the one that it holds",
        f"compute that weight once, before convert, and give it to an nn.{kind.__name__} in its place",
    )
