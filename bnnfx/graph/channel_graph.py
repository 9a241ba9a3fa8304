"""Which channel axes of a network have to have the same width, and which cannot change at all.

An axis is the output channels of a convolution or the output features of a linear layer. Axes are the nodes of an
undirected graph whose edges are ties (a residual add, a layer called twice); a connected component changes its width as
one. `bnnfx.graph.channel_flow` fills it from a traced network.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import networkx as nx
from torch import nn


@dataclass(frozen=True)
class Part:
    """A run of channels of a value: `repeat` neighbours for each channel of an axis."""

    axis: str
    repeat: int = 1


@dataclass(frozen=True)
class Channels:
    """What the channels of a value are.

    Attributes:
        parts: where they come from, in order; several behind a concatenation.
        rank: number of axes of the value, None if it is not known.
        last: whether the channels are the last axis, as linear layers have it, and not axis 1.
        positions: how many pixels each channel has, as a map or, behind a flatten, as neighbouring features; None if it
            is not known.
    """

    parts: tuple[Part, ...]
    rank: int | None
    last: bool = False
    positions: int | None = None

    @property
    def is_map(self) -> bool:
        """Whether the channels are axis 1 of a tensor with more axes behind it."""
        return not self.last


@dataclass(frozen=True)
class Layer:
    """A module whose size follows channels.

    Attributes:
        module: the module itself.
        inputs: what it reads; None if the number of its input channels is given from outside.
        outputs: what it gives; for a normalization, what it reads.
    """

    module: nn.Module
    inputs: Channels | None
    outputs: Channels


@dataclass(frozen=True)
class WidthClass:
    """Axes that change their width as one.

    Attributes:
        axes: the names of their layers, in graph order.
        width: as the float model has it.
        multiple: what a width must be a multiple of, because of grouped convolutions.
        fixed: why the width cannot change, or None.
    """

    axes: tuple[str, ...]
    width: int
    multiple: int
    fixed: str | None


class ChannelGraph:
    """Axes, their ties, and the modules that are as wide as they are.

    Attributes:
        layers: every module that has to follow, by qualified name, in graph order.

    >>> graph = ChannelGraph()
    >>> a, b = (graph.add_axis(name, 8, rank=4) for name in ("stem", "conv"))
    >>> graph.tie(a, b, "added in 'add'")
    >>> graph.fix(b, "'conv' is an output of the model")
    >>> list(graph.classes())
    [WidthClass(axes=('stem', 'conv'), width=8, multiple=1, fixed="'conv' is an output of the model")]
    """

    def __init__(self) -> None:
        self.layers: dict[str, Layer] = {}
        self._axes: nx.Graph = nx.Graph()

    def add_axis(self, name: str, width: int, rank: int | None, last: bool = False) -> Channels:
        """The channels of a value that a layer makes; its positions are not known, or 1 in a row of features."""
        if name not in self._axes:
            self._axes.add_node(name, width=width, multiple=1, fixed=None)
        return Channels((Part(name),), rank, last, 1 if last else None)

    def width(self, channels: Channels, widths: Mapping[str, int] | None = None) -> int:
        """How many channels these are, with other widths of some axes if they are given.

        Behind a flatten these are features, whose `positions` must be known.
        """
        current: dict[str, int] = {**dict(self._axes.nodes(data="width")), **(widths or {})}
        features: int = sum(current[part.axis] * part.repeat for part in channels.parts)
        if channels.is_map:
            return features
        assert channels.positions is not None
        return features * channels.positions

    def resolved(self, channels: Channels, width: int) -> Channels | None:
        """The same channels with their positions, given that they are so many features; None if that cannot be."""
        if channels.last and channels.positions is None:
            positions, rest = divmod(width, self.width(replace(channels, positions=1)))
            return None if rest or not positions else replace(channels, positions=positions)
        return channels if self.width(channels) == width else None

    def tie(self, one: Channels, other: Channels, reason: str) -> None:
        """Make two values equally wide, part by part; where their parts do not correspond, fix both for `reason`."""
        pairs = list(zip(one.parts, other.parts, strict=False))
        alike = (
            len(one.parts) == len(other.parts)
            and (one.rank, one.last) == (other.rank, other.last)
            and all(a.repeat == b.repeat and self._width(a) == self._width(b) for a, b in pairs)
        )
        if not alike:
            self.fix(one, reason)
            self.fix(other, reason)
        for a, b in pairs if alike else ():
            if a.axis != b.axis:
                self._axes.add_edge(a.axis, b.axis)

    def fix(self, channels: Channels, reason: str) -> None:
        """Say that these cannot change; the first reason is kept."""
        for part in channels.parts:
            axis = self._axes.nodes[part.axis]
            axis["fixed"] = axis["fixed"] or reason

    def require_multiple(self, channels: Channels, multiple: int, reason: str) -> None:
        """Keep every part a multiple of a number of groups; parts that are none today are fixed for `reason`."""
        for part in channels.parts:
            axis = self._axes.nodes[part.axis]
            if axis["width"] % multiple:
                self.fix(channels, reason)
            axis["multiple"] = math.lcm(axis["multiple"], multiple)

    def classes(self) -> Iterator[WidthClass]:
        """The axes, grouped by their ties, in graph order."""
        order = {axis: index for index, axis in enumerate(self._axes)}
        for component in nx.connected_components(self._axes):
            names = sorted(component, key=order.__getitem__)
            axes = [self._axes.nodes[name] for name in names]
            yield WidthClass(
                tuple(names),
                axes[0]["width"],
                math.lcm(*(axis["multiple"] for axis in axes)),
                next((axis["fixed"] for axis in axes if axis["fixed"]), None),
            )

    def _width(self, part: Part) -> int:
        width: int = self._axes.nodes[part.axis]["width"]
        return width
