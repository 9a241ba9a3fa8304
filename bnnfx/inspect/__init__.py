"""Looking at graphs and comparing them."""

from bnnfx.inspect.draw import draw
from bnnfx.inspect.explain import Explanation, explain
from bnnfx.inspect.verify import Verification, verify

__all__ = ["Explanation", "Verification", "draw", "explain", "verify"]
