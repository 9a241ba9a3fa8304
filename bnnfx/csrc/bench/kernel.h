// The loop that binary convolution is measured against: xor, count, add, on registers alone.
//
// A binary multiply-accumulate is one bit of popcount(x xor w). A convolution also loads its operands, handles borders
// and stores; the loop here does nothing but the arithmetic, on enough independent sums that no instruction waits for
// another. What it reaches is the ceiling of a kernel that spends one xor, one population count and one add on each
// word. A kernel that needs fewer instructions than that, as one that counts two words at a time, can exceed it.

#ifndef BNNFX_BENCH_KERNEL_H_
#define BNNFX_BENCH_KERNEL_H_

#include <cstdint>

#include "../kernels/isa.h"

namespace bnnfx {
namespace bench {

// One row per file; see kernels/conv/kernel.h for what these files may not use.
struct Kernel {
  Isa isa;
  // Does xor, count and add `rounds` times over a fixed number of registers; returns how many bits that were in all.
  // The compiler must neither drop the work nor move it out of the loop: each round's operand is opaque to it.
  uint64_t (*run)(uint64_t rounds);
};

}  // namespace bench
}  // namespace bnnfx

#endif  // BNNFX_BENCH_KERNEL_H_
