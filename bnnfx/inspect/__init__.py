"""Looking at graphs and comparing them."""

from bnnfx.inspect.draw import draw
from bnnfx.inspect.verify import Verification, verify

__all__ = ["Verification", "draw", "verify"]
