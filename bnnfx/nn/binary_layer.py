"""What a binary layer is, and the registry of their kinds: everything that passes, analysis and reports ask of one."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from bnnfx.errors import Refusal
from bnnfx.nn.last_axis_norm import LastAxisBatchNorm
from bnnfx.nn.weight import ScaledSign, WeightBinarizer
from bnnfx.numerics.convolution import Geometry

MapShape = tuple[int, int, int]
"""Channels, rows and columns of one sample."""


@dataclass(frozen=True)
class MapConvolution:
    """A layer as the convolution of a 2-D map with zero padding, which is how it is packed; pairs are rows, columns.

    Attributes:
        channels: of the map, of all groups.
        kernel: the weight `[O, ...]` is that of this convolution, reshaped to `[O, channels / groups, *kernel]`.
        window: stride, padding and dilation.
        groups: as in `torch.nn.Conv2d`.
    """

    channels: int
    kernel: tuple[int, int]
    window: Geometry = field(default_factory=Geometry)
    groups: int = 1


class BinaryLayer(nn.Module):
    """Base of the binary layers: binarize the weight, accumulate integers, then scale and add the bias.

    A kind of layer derives from this class and from its float layer, in this order, and is registered by
    `register_layer`; parameter names are those of the float layer. The weight is `[O, ...]`. Without a `binarizer` it
    is that of XNOR-Net, `ScaledSign`.

    Attributes:
        float_type: the float layer; `register_layer` sets it.
        axes: how many axes its input has, with the batch, where nothing tells; `takes` says which others it can have.
        layout: what they are, for messages.
        channel_axis: which of them holds the channels, 1 or -1, in the input and in the output.
        width_names: names of the attributes that say how many channels it reads and gives.
        batch_norm: what normalizes its output.
    """

    float_type: ClassVar[type[nn.Module]]
    axes: ClassVar[int]
    layout: ClassVar[str]
    channel_axis: ClassVar[int] = 1
    width_names: ClassVar[tuple[str, str]] = ("in_channels", "out_channels")
    batch_norm: ClassVar[type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]]

    weight: Any  # as torch's layers declare them
    bias: Any
    binarizer: WeightBinarizer

    def __init__(self, *args: Any, binarizer: WeightBinarizer | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.binarizer = binarizer or ScaledSign()

    @classmethod
    def from_float(cls, layer: nn.Module, binarizer: WeightBinarizer) -> Self:
        """Take over a float layer: its settings, and the same parameter objects under the same names."""
        binary = cls.__new__(cls)
        state = {name: copy.copy(value) if isinstance(value, dict) else value for name, value in vars(layer).items()}
        vars(binary).update(state)
        binary.binarizer = binarizer.train(layer.training)
        return binary

    @classmethod
    def takes(cls, axes: int) -> bool:
        """Whether its input can have so many axes."""
        return axes == cls.axes

    @classmethod
    def norm(cls, axes: int | None) -> type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]:
        """The batch norm of its inputs and outputs, where these have so many axes; None is not known."""
        return cls.batch_norm if cls.channel_axis == 1 or axes == 2 else LastAxisBatchNorm

    @classmethod
    def refuses(cls, layer: nn.Module) -> Refusal | None:
        """Why this float layer, of type `float_type`, has settings that the binary one cannot have; None if it can."""
        return None

    def accumulate(self, x: Tensor, signs: Tensor) -> Tensor:
        """The integer part: `x` and `signs` hold +-1 (or 0 and 1), the result holds integers."""
        raise NotImplementedError

    def as_map(self, sizes: tuple[int, ...]) -> MapShape:
        """The 2-D map that an input is, by the sizes of its axes behind the batch.

        Where the channels are axis 1, the map has the same values in the same order, and a batch of more than one axis
        is flattened in front of it. Where they are the last axis, the axes between are rows and columns.
        """
        raise NotImplementedError

    def convolution(self, of: MapShape) -> MapConvolution:
        """The layer as a convolution of a map of this shape.

        The map is `as_map` of its input. Where the channels are the last axis it may also be the map whose `flatten` is
        the input.
        """
        raise NotImplementedError

    @property
    def width(self) -> int:
        """How many channels it gives."""
        return len(self.weight)

    def binary_weight(self) -> tuple[Tensor, Tensor]:
        """The signs +-1 (shape of the weight) and the scale `float[O]` that the forward pass uses."""
        weight: Tensor = self.weight
        if self.binarizer.projects:
            if self.training:
                # .data: the projection is no step of autograd, and a layer that is called twice projects twice
                self.weight.data.copy_(self.binarizer.prepare(self.weight.detach()))
            else:
                weight = self.binarizer.prepare(weight)
        signs, scale = self.binarizer(weight)
        return signs, scale

    def rescale(self, accumulator: Tensor, scale: Tensor) -> Tensor:
        """The float part: `accumulator * scale + bias`, in this order."""
        shape = (-1,) + (1,) * (self.weight.ndim - 2)
        scaled = accumulator * scale.view(shape)
        return scaled if self.bias is None else scaled + self.bias.view(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to +-1 activations."""
        signs, scale = self.binary_weight()
        return self.rescale(self.accumulate(x, signs), scale)

    def on_epoch(self, progress: float) -> None:
        """Pass the training schedule on to the weight binarizer."""
        self.binarizer.on_epoch(progress)

    def between_epochs(self) -> None:
        """Let the weight binarizer recompute what it derives from the weight once per epoch."""
        with torch.no_grad():
            self.binarizer.between_epochs(self.weight)


BINARY_LAYERS: dict[type[nn.Module], type[BinaryLayer]] = {}
"""Which float layer becomes which binary layer; `register_layer` fills it."""

_Kind = TypeVar("_Kind", bound=type[BinaryLayer])


def register_layer(float_type: type[nn.Module]) -> Callable[[_Kind], _Kind]:
    """Make a kind of binary layer known: the one that layers of exactly this float type become.

    Raises:
        ValueError: another kind has this float type.
    """

    def register(kind: _Kind) -> _Kind:
        if float_type in BINARY_LAYERS:
            raise ValueError(f"{BINARY_LAYERS[float_type].__name__} is registered already for {float_type.__name__}.")
        kind.float_type = float_type
        BINARY_LAYERS[float_type] = kind
        return kind

    return register


def layer_kind(module: object) -> type[BinaryLayer] | None:
    """What is known of a float layer, or a binary one, by its exact type; None for any other module.

    >>> layer_kind(nn.Conv2d(3, 8, 3)).layout
    '(N, C, H, W)'
    """
    return type(module) if isinstance(module, BinaryLayer) else BINARY_LAYERS.get(type(module))  # type: ignore[arg-type]
