#ifndef BNNFX_LANES_NEON_H_
#define BNNFX_LANES_NEON_H_

#include <arm_neon.h>

#include "portable.h"

namespace bnnfx {
namespace {

struct NeonLanes : PortableLanes {
  // NEON has no instruction that gathers a bit per lane: each lane keeps its own bit, and the sum is all of them.
  template <class Vector>
  static uint32_t AtLeast(Vector a, Vector b) {
    const Integers comparison = a >= b;
    const Integers bits = {1, 2, 4, 8};
    return vaddvq_u32(reinterpret_cast<uint32x4_t>(comparison & bits));
  }
};

}  // namespace
}  // namespace bnnfx

#endif  // BNNFX_LANES_NEON_H_
