"""Pictures of graphs: what there is to see (`graph_view`), where it stands (`layout`), and how it is drawn (`svg`)."""

from bnnfx.inspect.drawing.draw import draw
from bnnfx.inspect.drawing.file_view import file_view
from bnnfx.inspect.drawing.graph_view import GraphView, view
from bnnfx.inspect.drawing.svg import STYLESHEET, to_svg

__all__ = ["STYLESHEET", "GraphView", "draw", "file_view", "to_svg", "view"]
