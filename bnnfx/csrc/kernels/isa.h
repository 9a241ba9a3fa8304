// Instruction sets: which of them a kernel is compiled for, which this processor has, which ones a session may use.

#ifndef BNNFX_KERNELS_ISA_H_
#define BNNFX_KERNELS_ISA_H_

#include <cstddef>

#include "generated/isas.h"  // enum class Isa, from isas.py: in ascending order within a family of processors

namespace bnnfx {

// Some of them.
class Isas {
 public:
  bool Has(Isa isa) const { return (bits_ >> static_cast<int>(isa) & 1) != 0; }
  void Add(Isa isa) { bits_ |= 1u << static_cast<int>(isa); }

 private:
  unsigned bits_ = 0;
};

// What may be used: what this processor has, or, where the environment variable BNNFX_ISA names one of these, that one
// and the lesser ones. Throws Error for a name that is unknown or that this processor lacks. The variable is read
// whenever an operator is made, that is once per node and session.
Isas AllowedIsas();

// Names of the instruction sets that BNNFX_ISA may name here, best first, separated by commas.
const char* IsaNames();

// The first row that may run, of a list that is sorted best first and ends with the portable row.
template <class Row, size_t n>
const Row& Choose(const Row* const (&rows)[n]) {
  const Isas allowed = AllowedIsas();
  for (const Row* row : rows) {
    if (allowed.Has(row->isa)) return *row;
  }
  return *rows[n - 1];
}

}  // namespace bnnfx

#endif  // BNNFX_KERNELS_ISA_H_
