#ifndef BNNFX_LANES_AVX512_H_
#define BNNFX_LANES_AVX512_H_

#include <immintrin.h>

#include "load.h"

namespace bnnfx {
namespace {

struct Avx512Lanes {
  static constexpr size_t kWidth = 16;
  typedef float Floats __attribute__((vector_size(64)));
  typedef int32_t Integers __attribute__((vector_size(64)));

  static uint32_t AtLeast(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static uint32_t AtLeast(Integers a, Integers b) {
    return _mm512_cmpge_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
  }
};

}  // namespace
}  // namespace bnnfx

#endif  // BNNFX_LANES_AVX512_H_
