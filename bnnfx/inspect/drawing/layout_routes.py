"""The lines of edges: where they leave and enter nodes, the way between, and where their labels stand."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bnnfx.inspect.drawing.font import FONT, width_of
from bnnfx.inspect.drawing.geometry import APART, LANE, Box
from bnnfx.inspect.drawing.graph_view import Edge
from bnnfx.inspect.drawing.layout_layers import Item, Layers

Point = tuple[float, float]


@dataclass(frozen=True)
class Route:
    """The line of an edge: from the foot of its source to the head of its target."""

    edge: Edge
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Label:
    """What stands beside a line: the foot of its text, which starts there or ends there ("start", "end")."""

    value: str
    text: str
    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class Passage:
    """The lane on which a value goes from the foot of a column to the head of the next."""

    foot: float
    x: float
    head: float


@dataclass(frozen=True)
class Placed:
    """Everything that routes go around.

    Attributes:
        boxes: of nodes; of way points the line through their layer, without width.
        column: of every item.
        passages: by value and the column that it leaves.
        foot: the lower end of every item's layer, frames of blocks included.
        below_lanes: the y below all lanes at the heads of columns.
    """

    boxes: Mapping[Item, Box]
    column: Mapping[Item, int]
    passages: Mapping[tuple[str, int], Passage]
    foot: Mapping[Item, float]
    below_lanes: float


def routes_of(
    edges: Sequence[Edge], numbers: Mapping[str, int], layers: Layers, placed: Placed
) -> tuple[list[Route], list[Label]]:
    """The line of every edge, and one label per value, and one more at the head of a column that it goes on in."""
    ports = _Ports(edges, numbers, layers, placed)
    routes: list[Route] = []
    labels: dict[tuple[str, int], Label] = {}
    for index, edge in enumerate(edges):
        path = layers.paths[numbers[edge.source], numbers[edge.target]]
        aside = ports.twin[index] * 3.0
        points: list[Point] = [(ports.leaves[index], placed.boxes[path[0]].bottom)]
        for a, b in itertools.pairwise(path):
            box = placed.boxes[b]
            x = ports.enters[index] if b == path[-1] else box.middle + aside
            if placed.column[a] != placed.column[b]:
                passage = placed.passages[edge.value, placed.column[a]]
                ways = ((points[-1][0], passage.foot), (passage.x, passage.foot), (passage.x, passage.head))
                points += [*ways, (x, passage.head)]
                key = (edge.value, placed.column[b])
                labels.setdefault(key, Label(edge.value, edge.label, x + 3, placed.below_lanes + FONT - 2, "start"))
            points.append((x, box.y))
            if b != path[-1]:
                points.append((x, box.bottom))
        routes.append(Route(edge, tuple(points)))
    texts = [*ports.labels(), *labels.values()]
    return routes, [label for label in texts if label.text]


class _Ports:
    """Where on its nodes each edge leaves and enters, so that lines are straight if they can be and do not meet."""

    def __init__(self, edges: Sequence[Edge], numbers: Mapping[str, int], layers: Layers, placed: Placed) -> None:
        self._edges, self._numbers, self._placed = edges, numbers, placed
        self.twin = _twins(edges)
        # by the number of an edge, for edges of one value in one direction that of the first
        out: dict[Item, dict[int, float]] = defaultdict(dict)
        into: dict[Item, dict[int, float]] = defaultdict(dict)
        ports_of_value: dict[tuple[str, int], int] = {}
        keys = []
        self._bends: list[float] = []
        for index, edge in enumerate(edges):
            source, target = numbers[edge.source], numbers[edge.target]
            path = layers.paths[source, target]
            leaving = self._towards(source, path[1])
            key = ports_of_value.setdefault((edge.value, round(leaving)), index)
            keys.append((source, key))
            out[source][key] = leaving
            into[target][index] = self._towards(target, path[-2])
            # where the line goes sideways below its port, there is no room for a label
            same_column = placed.column[source] == placed.column[path[1]]
            self._bends.append(placed.boxes[path[1]].middle - leaving if same_column else 0.0)
        exits = {node: self._spread(node, wanted) for node, wanted in out.items()}
        entries = {node: self._spread(node, wanted) for node, wanted in into.items()}
        self.leaves = [exits[node][key] for node, key in keys]
        self.enters = [entries[numbers[edge.target]][index] for index, edge in enumerate(edges)]

    def labels(self) -> list[Label]:
        """One per value, at the port nearest to the middle of its node, on the side where no other line is."""
        at: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
        heads: dict[str, float] = defaultdict(float)  # of each node, the entry farthest to the right
        for edge, x in zip(self._edges, self.enters, strict=True):
            heads[edge.target] = max(heads[edge.target], x)
        ports: dict[str, set[float]] = defaultdict(set)
        edges = {edge.value: edge for edge in self._edges}
        for edge, x, bend, entry in zip(self._edges, self.leaves, self._bends, self.enters, strict=True):
            at[edge.value].append((x, bend, heads[edge.target] > entry))
            ports[edge.source].add(x)
        labels = []
        for value, edge in edges.items():
            item = self._numbers[edge.source]
            middle = self._placed.boxes[item].middle
            x, bend, meets = min(at[value], key=lambda port: abs(port[0] - middle))
            left = bend > 0 or (bend == 0 and (meets or any(port > x for port in ports[edge.source])))
            room = min((x - port for port in ports[edge.source] if port < x), default=x)
            left = left and room >= width_of(edge.label) + 3
            y = self._placed.foot[item] + FONT + 0.5
            labels.append(Label(value, edge.label, x - 3 if left else x + 3, y, "end" if left else "start"))
        return labels

    def _towards(self, node: Item, other: Item) -> float:
        """Where on `node` a line to or from `other` would be straight; its middle for one in another column."""
        box = self._placed.boxes[node]
        if self._placed.column[node] != self._placed.column[other]:
            return box.middle
        return min(max(self._placed.boxes[other].middle, box.x + 5), box.right - 5)

    def _spread(self, node: Item, wanted: Mapping[int, float]) -> dict[int, float]:
        box = self._placed.boxes[node]
        order = sorted(wanted, key=lambda key: (wanted[key], key))
        apart = min(APART, (box.width - 8) / max(1, len(order) - 1))
        places = spread([wanted[key] for key in order], apart, box.x + 4, box.right - 4)
        return dict(zip(order, places, strict=True))


def _twins(edges: Sequence[Edge]) -> list[int]:
    """How many edges between the same two nodes come before each edge."""
    seen: dict[tuple[str, str], int] = defaultdict(int)
    twins = []
    for edge in edges:
        twins.append(seen[edge.source, edge.target])
        seen[edge.source, edge.target] += 1
    return twins


def spread(wanted: Iterable[float], apart: float, low: float, high: float) -> list[float]:
    """The places nearest to the wanted ones, in the same order, that are `apart`, between `low` and `high`.

    The least sum of squared moves is an isotonic regression of what is wanted less the distances.

    >>> spread([5, 5], 4, 0, 10)
    [3.0, 7.0]
    """
    groups: list[tuple[float, int]] = []  # mean, how many
    for index, place in enumerate(wanted):
        mean, count = place - index * apart, 1
        while groups and groups[-1][0] > mean:
            other, more = groups.pop()
            mean, count = (mean * count + other * more) / (count + more), count + more
        groups.append((mean, count))
    flat = [mean for mean, count in groups for _ in range(count)]
    top = high - apart * (len(flat) - 1)
    return [min(max(place, low), max(low, top)) + index * apart for index, place in enumerate(flat)]


def passages_of(crossing: Mapping[str, float], foot: float, x: float, head: float) -> dict[str, Passage]:
    """Lanes that do not cross for values that leave a column, given where on its foot they stand."""
    order = sorted(crossing, key=lambda value: (crossing[value], value))
    return {
        value: Passage(foot + index * LANE, x + index * LANE, head + index * LANE) for index, value in enumerate(order)
    }
