"""The blocks of a picture: which get a frame, which layers they span, how frames nest."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bnnfx.inspect.drawing.graph_view import GraphView
from bnnfx.inspect.drawing.layout_layers import Item, Layers


@dataclass(frozen=True)
class Span:
    """A block and the layers that its nodes are in, both ends included."""

    path: str
    first: int
    last: int

    def covers(self, rank: int) -> bool:
        """Whether a layer is one of them."""
        return self.first <= rank <= self.last


class BlockTree:
    """The blocks that get a frame: those with steps of their own and at least two nodes in all."""

    def __init__(self, view: GraphView, layers: Layers) -> None:
        self._layers = layers
        self._blocks = [node.block for node in view.nodes]
        own = Counter(self._blocks)
        total = Counter(path for block in self._blocks for path in _ancestors(block))
        framed = [path for path in total if own[path] and total[path] > 1]
        ranks: dict[str, list[int]] = {path: [] for path in framed}
        for index, block in enumerate(self._blocks):
            for path in _ancestors(block):
                if path in ranks:
                    ranks[path].append(layers.rank[index])
        self.spans = {path: Span(path, min(at), max(at)) for path, at in ranks.items()}
        self._of: dict[Item, str] = {index: self._framed(block) for index, block in enumerate(self._blocks)}
        for (source, target), passed in layers.paths.items():
            for item in passed[1:-1]:
                self._of[item] = self._of_way_point(layers.rank[item], source, target)
        paths = set(self._of.values())
        self._around = {block: [path for path in _ancestors(block) if path in self.spans] for block in paths}

    def of(self, item: Item) -> str:
        """The innermost framed block of a node, or that a way point runs through; empty if there is none."""
        return self._of[item]

    def around(self, item: Item) -> list[str]:
        """The framed blocks that an item is in, innermost first."""
        return self._around[self._of[item]]

    def levels(self, path: str, spans: Mapping[str, Span], rank: int | None = None, first: bool = True) -> int:
        """How many frames are nested in that of a block, itself counted.

        With `rank`, only frames that begin (`first`) or end in this layer count.
        """

        def counts(inner: str) -> bool:
            return rank is None or (spans[inner].first if first else spans[inner].last) == rank

        inner = [other for other in spans if other.startswith(path + ".") and counts(other)]
        return 1 + max((self.levels(other, spans, rank, first) for other in inner), default=0)

    def members(self, path: str, ranks: range) -> Iterator[Item]:
        """The items of a block in these layers."""
        for rank in ranks:
            yield from (item for item in self._layers.rows[rank] if path in self.around(item))

    def _framed(self, block: str) -> str:
        return next((path for path in _ancestors(block) if path in self.spans), "")

    def _of_way_point(self, rank: int, source: Item, target: Item) -> str:
        """The block of the edge's reader if it reaches up to this layer, else that of what it reads."""
        for end in (target, source):
            for path in _ancestors(self._of[end]):
                if path in self.spans and self.spans[path].covers(rank):
                    return path
        return ""


def _ancestors(block: str) -> Iterator[str]:
    """A block and the blocks around it, innermost first."""
    while block:
        yield block
        block = block.rpartition(".")[0]
