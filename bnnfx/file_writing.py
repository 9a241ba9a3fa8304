"""Writing files so that a reader finds the old one or the new one, never half of one."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from bnnfx.arguments import as_path
from bnnfx.errors import ExportError


def require_folder(path: str | Path) -> Path:
    """The path of a file to be written, checked before the work that makes its content.

    Raises:
        ValueError: it is no path.
        ExportError: its folder is missing, it is a folder itself, or no file can have that name.
    """
    path = as_path(path)
    try:
        there, is_folder = path.parent.is_dir(), path.is_dir()
    except OSError as error:
        raise _refused(path, error) from error
    if not there:
        raise ExportError(
            f"The folder {path.parent} does not exist, so {path.name} cannot be written there; create it first."
        )
    if is_folder:
        raise ExportError(f"{path} is a folder; give the name of a file in it.")
    return path


def write_whole(path: str | Path, content: str | bytes) -> Path:
    """Write a file whole or not at all; text is stored as UTF-8.

    The content goes to a temporary name in the same folder, which then takes the place of the file: of what a link
    points to, not of the link. The file keeps its mode and, where that is allowed, its owner. What is no regular file
    (a device, a pipe) keeps its place and is written to.

    Returns:
        The path, as it was given.

    Raises:
        ValueError: it is no path.
        ExportError: it cannot be written; what was there before is as it was.
    """
    path = as_path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        before = _state(path)
        if before is None or stat.S_ISREG(before.st_mode):
            _replace(Path(os.path.realpath(path)), data, before)
        else:
            path.write_bytes(data)
    except OSError as error:
        raise _refused(path, error) from error
    return path


def _state(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _replace(path: Path, data: bytes, before: os.stat_result | None) -> None:
    """Put a new file into the place of one, or of none; `path` is no link."""
    temporary = path.with_name(f".{secrets.token_hex(8)}")  # without the name, which may be as long as names can be
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    # for its owner alone until it has the mode of the old one; a new one is as the umask says
    descriptor = os.open(temporary, flags, 0o666 if before is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        if before is not None:
            with suppress(OSError, AttributeError):  # not ours to give away; Windows has no owners
                os.chown(temporary, before.st_uid, before.st_gid)
            os.chmod(temporary, stat.S_IMODE(before.st_mode))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _refused(path: Path, error: OSError) -> ExportError:
    return ExportError(f"{path} cannot be written: {error.strerror or error}.")
