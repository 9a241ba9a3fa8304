"""Where the shared library with the ONNX Runtime kernels is, and what it says about this processor."""

import ctypes
import functools
import os
import sys
from pathlib import Path

import onnx
import onnxruntime

from bnnfx.errors import BenchmarkError
from bnnfx.ops.packed_op import ONNX_DOMAIN, OPSET_VERSION
from bnnfx.private_interfaces import invalid_graph, unknown_operator

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
    candidates = [Path(directory).absolute() / "lib" / file_name for directory in sys.modules["bnnfx"].__path__]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"The bnnfx kernel library was not found; looked for {', '.join(map(str, candidates))}. "
        "It is compiled when bnnfx is installed, so importing bnnfx from a source tree is not enough: run "
        "'pip install .' (or, to develop, 'pip install --no-build-isolation -e .') at the top of that tree, with a "
        "C++17 compiler at hand. Exported models run without the library too, slower: bnnfx.load(path, kernels=False)."
    )


def isas() -> list[str]:
    """The instruction sets that kernels are there for and that this processor has, best first.

    Each is a valid value of the environment variable ``BNNFX_ISA``.

    Returns:
        The names; the last one is ``"portable"``.

    Raises:
        FileNotFoundError: the library was never built.

    Example:
        >>> isas()[-1]
        'portable'
    """
    function = ctypes.CDLL(str(library_path())).bnnfx_isas
    function.restype = ctypes.c_char_p
    return str(function().decode()).split(",")


def isa_in_use() -> str:
    """The instruction set that a session created now would use.

    Raises:
        BenchmarkError: ``BNNFX_ISA`` names no instruction set of this machine.
        FileNotFoundError: the library was never built.
    """
    wanted, there = os.environ.get("BNNFX_ISA", ""), isas()
    if wanted and wanted not in there:
        raise BenchmarkError(
            f"The environment variable BNNFX_ISA is '{wanted}'; this machine has {', '.join(there)}. "
            "Set it to one of these, or unset it."
        )
    return wanted or there[0]


def ceiling() -> float:
    """Measure the most binary arithmetic that one core can do, in 50 milliseconds.

    The loop that is timed does one xor, one population count and one add for each register of bits and touches no
    memory. A convolution that needs fewer instructions than that can be faster: ours counts two words with one
    population count where the instruction set has one, and where the processor has AMX it multiplies bytes in tiles
    instead; the ceiling stays that of counting.

    Returns:
        Binary multiply-accumulates per second, with the instruction set that a session created now would use.

    Raises:
        BenchmarkError: ``BNNFX_ISA`` names no instruction set of this machine.
        FileNotFoundError: the library was never built.
    """
    isa_in_use()
    function = ctypes.CDLL(str(library_path())).bnnfx_ceiling
    function.restype = ctypes.c_double
    return float(function())


@functools.cache
def has_kernel(onnx_name: str) -> bool:
    """Whether the library has a kernel for an operator of domain ``ai.bnnfx``; ONNX Runtime is asked.

    It is given a node that no operator of ours would take: what it complains of, the node's inputs or its name, tells.

    Args:
        onnx_name: the operator's name in an exported file.

    Raises:
        FileNotFoundError: the library was never built.

    Example:
        >>> has_kernel("Pack"), has_kernel("Unpack")
        (True, False)
    """
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([onnx.helper.make_node(onnx_name, [], ["y"], domain=ONNX_DOMAIN)], "g", [], [result])
    versions = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(ONNX_DOMAIN, OPSET_VERSION)]
    model = onnx.helper.make_model(graph, opset_imports=versions, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except invalid_graph():
        return True
    except unknown_operator():
        return False
    raise AssertionError(f"a node of {onnx_name} without inputs is valid, which no operator of ours is")
