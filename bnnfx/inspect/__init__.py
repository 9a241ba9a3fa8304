"""Looking at graphs, and counting what they cost."""

from bnnfx.inspect.costs import Cost, LayerCost, Operands
from bnnfx.inspect.drawing import draw
from bnnfx.inspect.explain import Explanation, explain
from bnnfx.inspect.report import report
from bnnfx.inspect.summary import Summary, summary

__all__ = [
    "Cost",
    "Explanation",
    "LayerCost",
    "Operands",
    "Summary",
    "draw",
    "explain",
    "report",
    "summary",
]
