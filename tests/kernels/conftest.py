"""The option --kernel-library: these tests with another build of the kernel library, such as a sanitized one."""

from pathlib import Path

import pytest

import bnnfx
from bnnfx.runtime import library, session


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernel-library", type=Path, help="the library to test, instead of the installed one")


def pytest_configure(config: pytest.Config) -> None:
    """Not a fixture, because the test modules ask the library for its instruction sets when they are imported."""
    # The default is for runs that start above this folder: pytest reads this file too late for its option then.
    path = config.getoption("--kernel-library", default=None)
    if path is None:
        return
    path = path.absolute()
    if not path.is_file():
        raise pytest.UsageError(f"--kernel-library: there is no file {path}")
    patch = pytest.MonkeyPatch()
    for module in (bnnfx, library, session):
        patch.setattr(module, "library_path", lambda: path)
    config.add_cleanup(patch.undo)
