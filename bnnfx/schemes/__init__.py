"""Binarization schemes, one file each; adding a scheme is adding a file that calls `register_scheme`.

Other packages add theirs through the entry-point group `bnnfx.schemes`, whose objects are `Scheme` instances.
"""

from importlib import import_module
from pkgutil import iter_modules

from bnnfx.schemes.scheme import Scheme, get_scheme, register_scheme, schemes

__all__ = ["Scheme", "get_scheme", "register_scheme", "schemes"]

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")  # each registers itself
