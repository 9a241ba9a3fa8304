"""Writing files: what stands at the path keeps its place and its mode, and a failure leaves it as it was."""

import os
import threading
from pathlib import Path

import pytest

from bnnfx.errors import ExportError
from bnnfx.file_writing import require_folder, write_whole

LONGEST = 255  # of a name, on all usual file systems


@pytest.mark.parametrize("content", ["größer\n", b"\x00\xff"])
def test_text_and_bytes(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "file"
    assert write_whole(str(path), content) == path
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_mode_of_a_new_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "file", "new")
    finally:
        assert os.umask(before) == mask
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_mode_of_an_old_file_stays(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_text("a longer text than the new one")
    path.chmod(mode)
    write_whole(path, "new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("there", [True, False], ids=["link", "dangling link"])
def test_links_stay(tmp_path: Path, there: bool) -> None:
    """Both links of a chain, through folders, relative and absolute."""
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "file"
    if there:
        target.write_text("old")
    (tmp_path / "inner").symlink_to(Path("folder", "file"))
    (tmp_path / "outer").symlink_to(tmp_path / "inner")
    write_whole(tmp_path / "outer", "new")
    assert (tmp_path / "outer").is_symlink() and (tmp_path / "inner").is_symlink()
    assert target.read_text() == "new" and not target.is_symlink()
    assert os.listdir(tmp_path / "folder") == ["file"]


@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_is_written_to(tmp_path: Path, linked: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    path = tmp_path / "link" if linked else pipe
    if linked:
        path.symlink_to(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_whole(path, b"through")
    reader.join(timeout=30)
    assert read == [b"through"] and pipe.is_fifo() and path.is_symlink() == linked


def test_the_longest_name(tmp_path: Path) -> None:
    path = tmp_path / ("n" * LONGEST)
    assert write_whole(require_folder(path), "new").read_text() == "new"


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "file").write_text("")
    for path, reason in {
        tmp_path / ("n" * (LONGEST + 1)): "File name too long",
        tmp_path / "a": "Too many levels of symbolic links",
        tmp_path / "missing" / "file": "No such file or directory",
        tmp_path / "file" / "file": "Not a directory",
        tmp_path: "Is a directory",
    }.items():
        with pytest.raises(ExportError, match=rf" cannot be written: {reason}\.$"):
            write_whole(path, "new")
    for path, reason in {
        tmp_path / ("n" * (LONGEST + 1)): "File name too long",
        tmp_path / "missing" / "file": "does not exist, so file cannot be written there; create it first",
        tmp_path: "is a folder; give the name of a file in it",
    }.items():
        with pytest.raises(ExportError, match=reason):
            require_folder(path)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "file"] and (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("step", ["fdopen", "chmod", "replace"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(ExportError, match="file cannot be written: No space left on device"):
        write_whole(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
