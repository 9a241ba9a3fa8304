// AVX-512 with VPOPCNTDQ: one xor, one count and one add for each register of 16 words.

#include <immintrin.h>

#include "kernel.h"

namespace bnnfx {
namespace bench {
namespace {

constexpr int kSums = 12;  // and as many operands: 25 of 32 registers, the rest for what is in between

uint64_t Run(uint64_t rounds) {
  __m512i sum[kSums];
  __m512i x[kSums];
  for (int i = 0; i < kSums; ++i) {
    sum[i] = _mm512_setzero_si512();
    x[i] = _mm512_set1_epi32(i * 0x01234567);
    asm volatile("" : "+v"(x[i]));  // not a constant to the compiler
  }
  __m512i w = _mm512_set1_epi32(0x5a5a5a5a);
  for (uint64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+v"(w));  // a new value in each round, for all that the compiler knows
    for (int i = 0; i < kSums; ++i) {
      sum[i] = _mm512_add_epi32(sum[i], _mm512_popcnt_epi32(_mm512_xor_si512(x[i], w)));
    }
  }
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+v"(sum[i]));  // somebody reads it
  return rounds * kSums * 512;
}

}  // namespace

extern const Kernel kAvx512 = {Isa::kAvx512, &Run};

}  // namespace bench
}  // namespace bnnfx
