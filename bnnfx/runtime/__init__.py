"""Running exported models: the session, and the kernel library that makes it fast."""

from bnnfx.runtime.library import library_path
from bnnfx.runtime.session import Session, load

__all__ = ["Session", "library_path", "load"]
