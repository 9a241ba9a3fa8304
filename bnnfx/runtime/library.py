"""Where the shared library with the ONNX Runtime kernels is."""

import sys
from pathlib import Path

import bnnfx

_FILE_NAMES = {"win32": "bnnfx_ops.dll", "darwin": "libbnnfx_ops.dylib"}


def library_path() -> Path:
    """Returns the shared library to register with ONNX Runtime, from any language.

    The library is one file with one entry point, ``RegisterCustomOps``. It needs ONNX Runtime 1.17 or newer.

    Returns:
        The absolute path of the library.

    Raises:
        FileNotFoundError: bnnfx was imported from a source tree that was never built.

    Example:
        >>> import onnxruntime
        >>> options = onnxruntime.SessionOptions()
        >>> options.register_custom_ops_library(str(library_path()))
    """
    file_name = _FILE_NAMES.get(sys.platform, "libbnnfx_ops.so")
    # All of `__path__`: in an editable install the sources and the built files are two directories of one package.
    candidates = [Path(directory).absolute() / "lib" / file_name for directory in bnnfx.__path__]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"The bnnfx kernel library was not found; looked for {', '.join(map(str, candidates))}. "
        "It is compiled when bnnfx is installed, so importing bnnfx from a source tree is not enough: run "
        "'pip install .' (or, to develop, 'pip install --no-build-isolation -e .') at the top of that tree, with a "
        "C++17 compiler at hand. Exported models run without the library too, slower: bnnfx.load(path, kernels=False)."
    )
