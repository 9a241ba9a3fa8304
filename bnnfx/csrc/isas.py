"""The table of instruction sets that kernels are compiled for.

A kernel for a set is a file of its name in a folder of kernels, such as `kernels/conv/avx2.cpp`; not each set has
something better for each folder. Everything else follows: which files are compiled and with which flags, the lists of
kernels best first, detection, and what the environment variable `BNNFX_ISA` may say.

Nothing but the standard library is imported here, because the build of the kernel library reads this file.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Isa:
    """One instruction set.

    Attributes:
        name: in files, in `BNNFX_ISA`, and as the enumerator: "avx2" is `Isa::kAvx2`.
        family: of processors: "x86" or "arm". A library is compiled for one.
        features: what the processor has to have, as `__builtin_cpu_supports` and GCC's -m call it.
        condition: one more condition, in C++; see kernels/isa.cpp.
        flags: further ones of the compiler, for files of this set only; CMake's generator expressions may be in them.
    """

    name: str
    family: str
    features: tuple[str, ...] = ()
    condition: str = ""
    flags: tuple[str, ...] = ()


_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vpopcntdq")
_AVX512_FLAGS = (
    "-mprefer-vector-width=512",
    # GCC 12 and older warn about their own header
    "$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>",
    "$<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized>",
)

ISAS = (
    Isa("avx2", "x86", ("avx2",)),
    Isa("avx512", "x86", _AVX512, flags=_AVX512_FLAGS),
    Isa("amx", "x86", _AVX512, condition="HasTiles()", flags=(*_AVX512_FLAGS, "-mamx-tile", "-mamx-int8")),
    # Every AArch64 processor has it, and compilers assume it. GCC moves all xors of a tile to the front, where it may
    # schedule, and the sums do not fit into registers.
    Isa("neon", "arm", flags=("$<$<CXX_COMPILER_ID:GNU>:-fno-schedule-insns>",)),
)
"""In ascending order within a family; portable code, which every library has, is less than any of them."""
