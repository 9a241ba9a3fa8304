// AVX2 has no population count: a byte shuffle looks up the counts of the two halves of each byte.

#include <immintrin.h>

#include "kernel.h"

namespace bnnfx {
namespace bench {
namespace {

constexpr int kSums = 4;           // and as many operands: with table, mask and temporaries they fill 16 registers
constexpr int kStepsPerFlush = 31;  // a byte counts at most 8 bits per step, so it holds the sum of 31

inline __m256i CountPerByte(__m256i v, __m256i table, __m256i low) {
  const __m256i high_half = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
  return _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(v, low)),
                         _mm256_shuffle_epi8(table, high_half));
}

uint64_t Run(uint64_t rounds) {
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_set1_epi8(15);
  __m256i total = _mm256_setzero_si256();
  __m256i x[kSums];
  for (int i = 0; i < kSums; ++i) {
    x[i] = _mm256_set1_epi32(i * 0x01234567);
    asm volatile("" : "+x"(x[i]));  // not a constant to the compiler
  }
  __m256i w = _mm256_set1_epi32(0x5a5a5a5a);
  for (uint64_t round = 0; round < rounds; ++round) {
    __m256i bytes[kSums];
    for (int i = 0; i < kSums; ++i) bytes[i] = _mm256_setzero_si256();
    for (int step = 0; step < kStepsPerFlush; ++step) {
      asm volatile("" : "+x"(w));  // a new value in each step, for all that the compiler knows
      for (int i = 0; i < kSums; ++i) {
        bytes[i] = _mm256_add_epi8(bytes[i], CountPerByte(_mm256_xor_si256(x[i], w), table, low));
      }
    }
    for (int i = 0; i < kSums; ++i) {
      total = _mm256_add_epi64(total, _mm256_sad_epu8(bytes[i], _mm256_setzero_si256()));
    }
  }
  asm volatile("" : "+x"(total));  // somebody reads it
  return rounds * kStepsPerFlush * kSums * 256;
}

}  // namespace

extern const Kernel kAvx2 = {Isa::kAvx2, &Run};

}  // namespace bench
}  // namespace bnnfx
