"""Writing files so that a reader finds the old one or the new one, never half of one."""

import os
import tempfile
from pathlib import Path

from bnnfx.errors import ExportError


def require_folder(path: str | Path) -> Path:
    """The path of a file to be written.

    Raises:
        ExportError: its folder is missing.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ExportError(
            f"The folder {path.parent} does not exist, so {path.name} cannot be written there; create it first."
        )
    return path


def write_whole(path: str | Path, content: str | bytes) -> Path:
    """Write to a temporary name in the same folder, then move; text is stored as UTF-8."""
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp gives the file to its owner alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path
