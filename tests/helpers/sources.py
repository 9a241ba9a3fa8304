"""The source files of the package, for tests that read them."""

from pathlib import Path

import bnnfx

# in an editable install __path__ lists the folder of the built library too
PACKAGE = next(Path(path) for path in bnnfx.__path__ if (Path(path) / "api.py").exists())

FILES = {
    ".".join(("bnnfx", *folder, *([] if path.stem == "__init__" else [path.stem]))): path
    for pattern in ("*.py", "*/*.py", "*/*/*.py")  # rglob does not follow the symbolic link to the passes
    for path in PACKAGE.glob(pattern)
    for folder in [path.relative_to(PACKAGE).parts[:-1]]
    if folder[:1] != ("csrc",)  # scripts of the build, which import the package from its files
}
"""By the name of the module."""
