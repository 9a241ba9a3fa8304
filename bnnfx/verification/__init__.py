"""Whether two forms of one model compute the same: bit by bit, each node given the inputs of the other's."""

from bnnfx.verification.comparison import Verification, verify

__all__ = ["Verification", "verify"]
