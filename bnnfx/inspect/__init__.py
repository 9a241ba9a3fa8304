"""Looking at graphs, comparing them, and counting what they cost."""

from bnnfx.inspect.costs import Cost, LayerCost, Operands
from bnnfx.inspect.drawing import draw
from bnnfx.inspect.explain import Explanation, explain
from bnnfx.inspect.report import report
from bnnfx.inspect.summary import Summary, summary
from bnnfx.inspect.verification import Verification, verify

__all__ = [
    "Cost",
    "Explanation",
    "LayerCost",
    "Operands",
    "Summary",
    "Verification",
    "draw",
    "explain",
    "report",
    "summary",
    "verify",
]
