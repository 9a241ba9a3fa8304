"""Every misuse of `helpers.misuses`: an error of ours, with nothing written, or the right result."""

import os
import re
import traceback
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from helpers import misuses
from helpers.misuses import ALL, Given, Misuse

import bnnfx
from bnnfx import BnnfxError

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # of torch about its own future, and of ours, which are tested elsewhere
FEWEST = 200
PACKAGE = tuple(f"{Path(part)}{os.sep}" for part in bnnfx.__path__)
SIGNATURE = re.compile(
    r"[\w.]+\(\) (got an unexpected keyword argument|missing \d+ required|takes .* positional argument)"
)
"""How Python itself refuses arguments, in front of the function."""

RESULTS = {"Explanation", "Observations", "Summary", "Verification"}
"""What functions return, and nobody makes."""


@pytest.fixture(scope="module")
def shared(chain_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("misuses")
    for name in ("chain.onnx", "original.onnx"):
        (folder / name).write_bytes((chain_files / name).read_bytes())
    misuses.prepare(folder)
    return Given(folder)


def is_ours(error: Exception) -> bool:
    """Whether our own code raises it, for the caller to read; or Python does, for arguments that there are not."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, TypeError) and last == misuses.__file__:
        return SIGNATURE.match(str(error)) is not None
    return isinstance(error, BnnfxError | ValueError | TypeError) and last.startswith(PACKAGE)


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in folder.iterdir()}


@pytest.mark.parametrize("misuse", ALL, ids=lambda misuse: misuse.name)
def test_misuse(
    misuse: Misuse, shared: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    misuses.furnish(tmp_path)
    before = state(tmp_path)
    shared.folder = tmp_path
    if not isinstance(misuse.expected, str):
        assert misuse.expected(misuse.call(shared), shared)
        return
    with pytest.raises(Exception, match=misuse.expected) as caught:
        misuse.call(shared)
    assert is_ours(caught.value), "".join(traceback.format_exception(caught.value))
    assert state(tmp_path) == before, "something was written"
    assert "Traceback" not in "".join(capfd.readouterr()), "somebody else says it, too"


def test_rows_are_many_and_distinct() -> None:
    assert len(ALL) >= FEWEST
    assert [name for name, count in Counter(misuse.name for misuse in ALL).items() if count > 1] == []
    assert [misuse.name for misuse in ALL if misuse.expected == ""] == []


def test_every_public_name_is_misused() -> None:
    public = {name: getattr(bnnfx, name) for name in bnnfx.__all__}
    functions = {
        name
        for name, value in public.items()
        if not isinstance(value, ModuleType) and not (isinstance(value, type) and issubclass(value, BnnfxError))
    }
    functions -= RESULTS
    functions |= {f"analysis.{name}" for name in bnnfx.analysis.__all__ if not name[0].isupper()}
    assert functions - {misuse.name.split(":")[0] for misuse in ALL} == set()


@pytest.mark.parametrize("raised", [KeyError("k"), AttributeError("a"), RuntimeError("r"), ValueError("of the caller")])
def test_other_errors_are_faults(raised: Exception) -> None:
    """The test can fail."""
    with pytest.raises(type(raised)) as caught:
        raise raised
    assert not is_ours(caught.value)
