"""Where everything of a picture stands: nodes in layers from top to bottom, layers in columns, frames around blocks.

Lengths are in points. Of all numbers of columns, the one is taken that prints largest on a sheet of A4.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from bnnfx.inspect.drawing.font import width_of
from bnnfx.inspect.drawing.geometry import (
    A4,
    APART,
    ASIDE,
    BLOCK_FOOT,
    BLOCK_HEAD,
    BLOCK_SIDE,
    GAP,
    HEADER,
    LANE,
    LINE,
    MARGIN,
    Box,
)
from bnnfx.inspect.drawing.graph_view import GraphView
from bnnfx.inspect.drawing.layout_blocks import BlockTree, Span
from bnnfx.inspect.drawing.layout_columns import columns_of
from bnnfx.inspect.drawing.layout_layers import (
    Item,
    Layers,
    chains_of,
    layers_of,
    put_main_chain_left,
    straight_positions,
)
from bnnfx.inspect.drawing.layout_routes import Label, Passage, Placed, Route, passages_of, routes_of

_NARROWEST, _WIDEST = 60.0, 160.0
_WAY_POINT = 4.0
_PATIENCE = 2  # so many columns more without printing larger, and no more are tried
_CUT_IN_BLOCK = 0.3  # costs as much as this share of a column's height, squared
_CUT_OF_EDGE = 0.01


@dataclass(frozen=True)
class Frame:
    """The frame of a block, or of the part of it in one column (`part` counts from 0)."""

    path: str
    part: int
    box: Box


@dataclass(frozen=True)
class Layout:
    """A picture's geometry.

    Attributes:
        width: of the whole.
        height: of the whole.
        boxes: of the nodes, by name.
        routes: of the edges, in the order of the view.
        labels: of the values.
        frames: of the blocks, outer ones first.
    """

    width: float
    height: float
    boxes: Mapping[str, Box]
    routes: tuple[Route, ...]
    labels: tuple[Label, ...]
    frames: tuple[Frame, ...]

    @property
    def magnification(self) -> float:
        """The factor by which it fills a sheet of A4."""
        return min(A4[0] / self.width, A4[1] / self.height)

    @property
    def scale(self) -> float:
        """The factor by which it is made smaller to fit on a sheet of A4, at most 1."""
        return min(1.0, self.magnification)


def layout(view: GraphView) -> Layout:
    """Place a graph on one page."""
    numbers = {node.name: index for index, node in enumerate(view.nodes)}
    layers = layers_of(len(view.nodes), [(numbers[edge.source], numbers[edge.target]) for edge in view.edges])
    put_main_chain_left(layers)
    page = _Page(view, layers)
    best, since = page.layout(1), 0
    for count in range(2, len(layers.rows) + 1):
        tried, since = page.layout(count), since + 1
        if tried.magnification > best.magnification:
            best, since = tried, 0
        elif since == _PATIENCE:
            break
    return best


class _Page:
    def __init__(self, view: GraphView, layers: Layers) -> None:
        self._view, self._layers = view, layers
        self._numbers = {node.name: index for index, node in enumerate(view.nodes)}
        self._tree = BlockTree(view, layers)
        self._widths = self._node_widths()
        self._labelled: dict[Item, float] = {}
        for edge in view.edges:
            source, target = self._numbers[edge.source], self._numbers[edge.target]
            if self._tree.of(source) == self._tree.of(target):
                self._labelled[source] = width_of(edge.label)
        self._heights = {
            item: len(view.nodes[item].lines) * LINE + 4 if layers.is_node(item) else 0.0 for item in layers.rank
        }
        self._crossing = self._crossings()
        self._rows, self._costs = self._row_heights(), self._costs_of_cuts()

    def layout(self, count: int) -> Layout:
        """With this many columns, or fewer if there are not so many layers."""
        columns = columns_of(self._rows, count, self._costs)
        column = {item: index for index, ranks in enumerate(columns) for rank in ranks for item in self._row(rank)}
        crossing = [self._crossing[ranks[-1]] for ranks in columns]
        head = MARGIN + HEADER
        top = head + max(map(len, crossing)) * LANE
        boxes: dict[Item, Box] = {}
        foot: dict[Item, float] = {}
        passages: dict[tuple[str, int], Passage] = {}
        frames: list[Frame] = []
        x, bottom = MARGIN, top
        for index, ranks in enumerate(columns):
            spans = self._spans_in(ranks)
            placed, feet = self._place(ranks, spans, x, top + (LINE if index else 0))
            boxes |= placed
            foot |= feet
            framed = self._frames(spans, ranks, placed)
            frames += framed
            right = max(box.right for box in (*placed.values(), *(frame.box for frame in framed)))
            right = max(right, *(placed[item].middle + 40 for rank in ranks for item in self._row(rank)))
            end = max(feet.values())
            standing = {value: placed[item].middle for value, item in crossing[index].items()}
            lanes = passages_of(standing, end + GAP, right + ASIDE, head)
            passages |= {(value, index): lane for value, lane in lanes.items()}
            x = right + 2 * ASIDE + len(lanes) * LANE
            bottom = max([bottom, end, *(lane.foot for lane in lanes.values())])
        routes, labels = routes_of(
            self._view.edges, self._numbers, self._layers, Placed(boxes, column, passages, foot, top)
        )
        width = max([x - 2 * ASIDE, *(_end(label) for label in labels)]) + MARGIN
        named = {node.name: boxes[index] for index, node in enumerate(self._view.nodes)}
        return Layout(width, bottom + MARGIN, named, tuple(routes), tuple(labels), tuple(self._true(frames, named)))

    def _node_widths(self) -> dict[Item, float]:
        """As the longest line needs, and what stands beside the values; nodes of a vertical chain are equally wide."""
        chains = chains_of(self._layers, range(len(self._layers.rows)))
        longest: dict[Item, float] = defaultdict(float)
        for index, node in enumerate(self._view.nodes):
            lines = (width_of(line, 0 if number else len(node.title)) for number, line in enumerate(node.lines))
            longest[chains[index]] = max(longest[chains[index]], *lines)
        values: dict[Item, dict[str, float]] = defaultdict(dict)
        for edge in self._view.edges:
            values[self._numbers[edge.source]][edge.value] = width_of(edge.label)
        for index, widths in values.items():  # a label starts 3 beside its line, lines of several values are apart
            beside = 2 * max(widths.values()) + APART * (len(widths) - 1)
            longest[chains[index]] = max(longest[chains[index]], beside - 4)
        return {
            item: min(max(_NARROWEST, longest[chain] + 10), _WIDEST) if self._layers.is_node(item) else _WAY_POINT
            for item, chain in chains.items()
        }

    def _row(self, rank: int) -> list[Item]:
        return self._layers.rows[rank]

    def _row_heights(self) -> list[float]:
        spans = self._tree.spans
        return [
            max(self._heights[item] for item in self._row(rank))
            + GAP
            + self._head(spans, rank)
            + self._foot(spans, rank)
            for rank in range(len(self._layers.rows))
        ]

    def _costs_of_cuts(self) -> list[float]:
        costs = []
        for rank in range(len(self._layers.rows)):
            cut = [span for span in self._tree.spans.values() if span.first < rank <= span.last]
            crossing = len(self._crossing[rank - 1]) if rank else 0
            costs.append(_CUT_IN_BLOCK * len(cut) + _CUT_OF_EDGE * crossing)
        return costs

    def _crossings(self) -> list[dict[str, Item]]:
        """For every layer, the values that are read below it, and the items of the layer that they come from."""
        found: list[dict[str, Item]] = [{} for _ in self._layers.rows]
        for edge in self._view.edges:
            path = self._layers.paths[self._numbers[edge.source], self._numbers[edge.target]]
            for item in path[:-1]:
                found[self._layers.rank[item]].setdefault(edge.value, item)
        return found

    def _spans_in(self, ranks: range) -> dict[str, Span]:
        """The parts of the blocks in one column."""
        parts = {}
        for path, span in self._tree.spans.items():
            inside = [rank for rank in ranks if span.covers(rank)]
            if inside:
                parts[path] = Span(path, inside[0], inside[-1])
        return parts

    def _head(self, spans: Mapping[str, Span], rank: int) -> float:
        opened = (path for path, span in spans.items() if span.first == rank)
        return BLOCK_HEAD * max((self._tree.levels(path, spans, rank) for path in opened), default=0)

    def _foot(self, spans: Mapping[str, Span], rank: int) -> float:
        closed = (path for path, span in spans.items() if span.last == rank)
        return BLOCK_FOOT * max((self._tree.levels(path, spans, rank, first=False) for path in closed), default=0)

    def _place(
        self, ranks: range, spans: Mapping[str, Span], left: float, top: float
    ) -> tuple[dict[Item, Box], dict[Item, float]]:
        """The boxes of the items of a column, and the lower ends of their layers with the frames that end there."""
        middles = straight_positions(self._layers, ranks, self._space)
        depth = max((len(self._tree.around(item)) for item in middles), default=0)
        shift = left + depth * BLOCK_SIDE - min(middles[item] - self._widths[item] / 2 for item in middles)
        boxes, feet, y = {}, {}, top
        for rank in ranks:
            y += self._head(spans, rank)
            height = max(self._heights[item] for item in self._row(rank))
            foot = y + height + self._foot(spans, rank)
            for item in self._row(rank):
                width, own = self._widths[item], self._heights[item] or height
                x = middles[item] + shift - width / 2
                boxes[item] = Box(x, y + (height - own) / 2, width, own)
                feet[item] = foot
            y = foot + GAP
        return boxes, feet

    def _space(self, a: Item, b: Item) -> float:
        """Between the middles of neighbours: frames that only one of them is in take some, too."""
        frames = set(self._tree.around(a)) ^ set(self._tree.around(b))
        aside = ASIDE if self._layers.is_node(a) or self._layers.is_node(b) else LANE
        return (self._widths[a] + self._widths[b]) / 2 + aside + len(frames) * BLOCK_SIDE

    def _frames(self, spans: Mapping[str, Span], ranks: range, placed: Mapping[Item, Box]) -> list[Frame]:
        frames = []
        for path, span in sorted(spans.items()):
            members = list(self._tree.members(path, range(span.first, span.last + 1)))
            inside = [placed[item] for item in members]
            side = BLOCK_SIDE * self._tree.levels(path, spans)
            above = BLOCK_HEAD * self._tree.levels(path, spans, span.first)
            below = BLOCK_FOOT * self._tree.levels(path, spans, span.last, first=False)
            x, y = min(box.x for box in inside) - side, min(box.y for box in inside) - above
            right = max(max(box.right for box in inside), *(self._reach(item, placed) for item in members)) + side
            bottom = max(box.bottom for box in inside) + below
            frames.append(Frame(path, 0, Box(x, y, right - x, bottom - y)))
        return frames

    def _reach(self, item: Item, placed: Mapping[Item, Box]) -> float:
        """How far to the right the label of a value goes that leaves a node in its middle, inside its block."""
        inside = item in self._labelled and len(self._tree.around(item)) > 0
        return placed[item].middle + self._labelled[item] + 3 if inside else 0.0

    def _true(self, frames: list[Frame], named: Mapping[str, Box]) -> list[Frame]:
        """Only frames around nothing but their own nodes, and that cut no other frame."""
        kept: list[Frame] = []
        parts: dict[str, int] = defaultdict(int)
        for frame in frames:
            strangers = [
                named[node.name]
                for node in self._view.nodes
                if not f"{node.block}.".startswith(f"{frame.path}.") and frame.box.overlaps(named[node.name])
            ]
            cuts = [other for other in kept if frame.box.overlaps(other.box) and not other.box.contains(frame.box)]
            if not strangers and not cuts:
                kept.append(Frame(frame.path, parts[frame.path], frame.box))
                parts[frame.path] += 1
        return kept


def _end(label: Label) -> float:
    """The right end of a label."""
    return label.x + (width_of(label.text) if label.anchor == "start" else 0)
