"""Layers of a graph, top to bottom: the library ranks, orders and inserts way points; chains are then made straight."""

import bisect
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter

from bnnfx.inspect.drawing.extra import require_extra

Item = int
"""A node by its number, or a way point of an edge that spans layers, numbered behind the nodes."""


@dataclass
class Layers:
    """Nodes and way points in layers.

    Attributes:
        rows: the items of each layer, from left to right.
        rank: the layer of each item.
        paths: by edge (source, target): the items that it passes, both ends included, one per layer.
        count: how many nodes there are; items from here on are way points.
    """

    rows: list[list[Item]]
    rank: dict[Item, int]
    paths: dict[tuple[Item, Item], list[Item]]
    count: int

    def is_node(self, item: Item) -> bool:
        """Whether this is a node, not a way point."""
        return item < self.count

    @cached_property
    def heights(self) -> dict[Item, int]:
        """The longest way down from each node, in edges; 0 for way points."""
        below = defaultdict(list)
        for source, target in self.paths:
            below[source].append(target)
        height: dict[Item, int] = dict.fromkeys(self.rank, 0)
        for row in reversed(self.rows):
            for item in filter(self.is_node, row):
                height[item] = max((height[target] + 1 for target in below[item]), default=0)
        return height

    @cached_property
    def segments(self) -> dict[int, list[tuple[Item, Item]]]:
        """The pieces of edges below each layer."""
        below = defaultdict(list)
        for path in self.paths.values():
            for a, b in itertools.pairwise(path):
                below[self.rank[a]].append((a, b))
        return below


def layers_of(count: int, edges: Iterable[tuple[int, int]]) -> Layers:
    """Rank the nodes 0 to `count` - 1 of a graph without cycles, with few crossings of its edges.

    Sugiyama, Tagawa, Toda, "Methods for Visual Understanding of Hierarchical System Structures", 1981; by the library
    fast-sugiyama.
    """
    pairs = list(dict.fromkeys(edges))
    joined = sorted({end for pair in pairs for end in pair})
    number = {node: index for index, node in enumerate(joined)}  # without gaps, so that way points come behind
    result = Layers([], {}, {}, count)
    if pairs:
        library = require_extra("fast_sugiyama")
        numbered = [(number[source], number[target]) for source, target in pairs]
        free = count
        for positions, _, _, segments in library.from_edges(
            numbered, vertex_spacing=1, dummy_vertices=True, ranking_type="minimize"
        ):
            names: dict[int, Item] = {}
            for index, _ in sorted(positions):
                names[index] = joined[index] if index < len(joined) else free
                free += names[index] >= count
            _add(result, [(names[index], x, y) for index, (x, y) in positions])
            _add_paths(result, [(names[source], names[target]) for source, target in segments])
    alone = [node for node in range(count) if node not in number]
    if alone:
        result.rows = result.rows or [[]]
        result.rows[0] += alone
        result.rank |= dict.fromkeys(alone, 0)
    return result


def _add(result: Layers, placed: Sequence[tuple[Item, float, float]]) -> None:
    """A connected part, to the right of what is there; the library's y axis points up."""
    heights = sorted({y for _, _, y in placed}, reverse=True)
    ranks = {y: rank for rank, y in enumerate(heights)}
    result.rows += [[] for _ in range(len(heights) - len(result.rows))]
    for item, _, y in sorted(placed, key=lambda place: place[1]):
        result.rows[ranks[y]].append(item)
        result.rank[item] = ranks[y]


def _add_paths(result: Layers, segments: Sequence[tuple[Item, Item]]) -> None:
    onward = {source: target for source, target in segments if not result.is_node(source)}
    for source, target in segments:
        if result.is_node(source):
            path = [source, target]
            while not result.is_node(path[-1]):
                path.append(onward[path[-1]])
            result.paths[source, path[-1]] = path


def put_main_chain_left(layers: Layers) -> None:
    """Mirror what stands between two layers of a single item where the longest chain runs on the right.

    That crosses no edges, and residual edges then all run on the same side.
    """
    height = layers.heights
    start = 0
    for rank, row in enumerate(layers.rows):
        if len(row) > 1 and rank + 1 < len(layers.rows):
            continue
        part = range(start, rank + (len(row) > 1))
        lean = 0
        for index in part:
            items = layers.rows[index]
            main = max(items, key=lambda item: (layers.is_node(item), height[item]))
            lean += 2 * items.index(main) - (len(items) - 1)
        if lean > 0:
            for index in part:
                layers.rows[index].reverse()
        start = rank + 1


def straight_positions(layers: Layers, ranks: range, space: Callable[[Item, Item], float]) -> dict[Item, float]:
    """An x for the middle of every item of these layers: orders kept, chains run straight down.

    `space(a, b)` is the least distance between the middles of neighbours.

    As in Brandes, Köpf, "Fast and Simple Horizontal Coordinate Assignment", 2002, items are joined to vertical chains
    that do not cross, way points of an edge first, and the chains are moved to the left as far as they go. The library
    has the same algorithm, for nodes of one width and with the mean of four alignments, which bends every chain.
    """
    chain = chains_of(layers, ranks)
    left: dict[Item, list[tuple[Item, float]]] = defaultdict(list)
    right: dict[Item, list[tuple[Item, float]]] = defaultdict(list)
    for rank in ranks:
        for a, b in itertools.pairwise(layers.rows[rank]):
            left[chain[b]].append((chain[a], space(a, b)))
            right[chain[a]].append((chain[b], space(a, b)))
    sorter = TopologicalSorter({item: [other for other, _ in left[item]] for item in dict.fromkeys(chain.values())})
    order = list(sorter.static_order())
    x: dict[Item, float] = {}
    for item in order:
        x[item] = max((x[other] + apart for other, apart in left[item]), default=0.0)
    for item in reversed(order):  # and back to the right, where there is room
        x[item] = min((x[other] - apart for other, apart in right[item]), default=x[item])
    return {item: x[chain[item]] for rank in ranks for item in layers.rows[rank]}


def chains_of(layers: Layers, ranks: range) -> dict[Item, Item]:
    """The vertical chain that each item of these layers belongs to, by the chain's first item."""
    height = layers.heights
    chain = {item: item for rank in ranks for item in layers.rows[rank]}
    for rank in ranks[:-1]:
        place = {item: index for row in layers.rows[rank : rank + 2] for index, item in enumerate(row)}
        # way points first, then the pair with the longest way down; never a node with a way point
        joinable = [(a, b) for a, b in layers.segments[rank] if layers.is_node(a) == layers.is_node(b)]
        joinable.sort(key=lambda pair: (layers.is_node(pair[0]), -height[pair[1]], place[pair[0]]))
        taken: list[tuple[int, int]] = []  # places, sorted; both ends ascend, as no two pairs cross
        for a, b in joinable:
            pair = place[a], place[b]
            at = bisect.bisect(taken, pair)
            below, above = taken[:at][-1:], taken[at:][:1]
            if all(p[0] < pair[0] and p[1] < pair[1] for p in below) and all(
                p[0] > pair[0] and p[1] > pair[1] for p in above
            ):
                taken.insert(at, pair)
                chain[b] = chain[a]
    return chain
