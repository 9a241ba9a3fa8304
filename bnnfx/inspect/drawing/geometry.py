"""Rectangles, and the sizes that a picture is made of, in points (1/72 inch)."""

from dataclasses import dataclass

A4 = (595.0, 842.0)
LINE = 8.5
MARGIN = 8.0
HEADER = 26.0  # title and legend
GAP = 10.5  # between layers: room for a line of text
ASIDE = 7.0  # between neighbours in a layer
APART = 14.0  # between the lines that leave a node, or enter it
LANE = 5.0  # between edges that run side by side
BLOCK_HEAD, BLOCK_FOOT, BLOCK_SIDE = 8.5, 4.0, 3.0  # between the frame of a block and what is in it


@dataclass(frozen=True)
class Box:
    """A rectangle: its upper left corner and its size."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y + self.height

    @property
    def middle(self) -> float:
        """The x of its middle."""
        return self.x + self.width / 2

    def contains(self, other: "Box") -> bool:
        """Whether another one lies in this one."""
        return self.x <= other.x and self.y <= other.y and other.right <= self.right and other.bottom <= self.bottom

    def overlaps(self, other: "Box") -> bool:
        """Whether the two share an area."""
        return self.x < other.right and other.x < self.right and self.y < other.bottom and other.y < self.bottom
