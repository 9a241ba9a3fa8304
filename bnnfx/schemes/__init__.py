"""Binarization schemes, one file each; adding a scheme is adding a file that calls `register_scheme`.

Other packages add theirs through the entry-point group `bnnfx.schemes`, whose objects are `Scheme` instances.
"""

from bnnfx.schemes import binaryduo, bireal, rbnn, xnor  # each registers itself
from bnnfx.schemes.scheme import Scheme, get_scheme, register_scheme, schemes

__all__ = ["Scheme", "binaryduo", "bireal", "get_scheme", "rbnn", "register_scheme", "schemes", "xnor"]
