#ifndef BNNFX_LANES_AVX2_H_
#define BNNFX_LANES_AVX2_H_

#include <immintrin.h>

#include "load.h"

namespace bnnfx {
namespace {

struct Avx2Lanes {
  static constexpr size_t kWidth = 8;
  typedef float Floats __attribute__((vector_size(32)));
  typedef int32_t Integers __attribute__((vector_size(32)));

  template <class Vector>
  static uint32_t AtLeast(Vector a, Vector b) {
    const Integers comparison = a >= b;
    return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(comparison)));
  }
};

}  // namespace
}  // namespace bnnfx

#endif  // BNNFX_LANES_AVX2_H_
