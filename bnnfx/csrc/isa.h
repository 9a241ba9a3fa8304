// Instruction sets: which of them a kernel is compiled for, which this processor has, which one a session uses.

#ifndef BNNFX_ISA_H_
#define BNNFX_ISA_H_

#include <cstddef>

namespace bnnfx {

// In ascending order within a family of processors: each row of a list of kernels says which one it needs. A library
// is compiled for one family, and no list of it has a row of another, so that x86 and Arm are never compared.
enum class Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAmx = 3, kNeon = 4 };

// The best instruction set to use: what this processor has, or less where the environment variable BNNFX_ISA says so
// (portable, avx2, avx512, amx, neon). Throws Error for a name that is unknown or that this processor lacks. It is read
// whenever a kernel is created, that is once per node and session.
Isa AllowedIsa();

// Names of the instruction sets that BNNFX_ISA may name here, best first, separated by commas.
const char* IsaNames();

// The first row that may run, of a list that is sorted best first and ends with the portable row.
template <class Row, size_t n>
const Row& Choose(const Row* const (&rows)[n]) {
  const Isa allowed = AllowedIsa();
  for (const Row* row : rows) {
    if (row->isa <= allowed) return *row;
  }
  return *rows[n - 1];
}

}  // namespace bnnfx

#endif  // BNNFX_ISA_H_
