// Vectors of 16 bytes: SSE2 and NEON have them, and for other targets the compiler makes do.

#ifndef BNNFX_LANES_PORTABLE_H_
#define BNNFX_LANES_PORTABLE_H_

#include "load.h"

namespace bnnfx {
namespace {

struct PortableLanes {
  static constexpr size_t kWidth = 4;
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Integers __attribute__((vector_size(16)));

  template <class Vector>
  static uint32_t AtLeast(Vector a, Vector b) {
    const Integers comparison = a >= b;
    uint32_t mask = 0;
    for (size_t lane = 0; lane < kWidth; ++lane) mask |= static_cast<uint32_t>(comparison[lane] & 1) << lane;
    return mask;
  }
};

}  // namespace
}  // namespace bnnfx

#endif  // BNNFX_LANES_PORTABLE_H_
