"""The libraries of the extra `draw`, which need not be installed."""

import importlib
from typing import Any

from bnnfx.errors import BnnfxError


def require_extra(module: str) -> Any:
    """Import a library of the extra `draw`.

    Raises:
        BnnfxError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BnnfxError(f"Drawing needs the library {module}: pip install 'bnnfx[draw]'.") from error
