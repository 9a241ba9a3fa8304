// AVX2 has no population count: a byte shuffle looks up the counts of the two halves of each byte.

#include <immintrin.h>

#include <cstring>

#include "kernel.h"
#include "scalar.h"

namespace bnnfx {
namespace conv {
namespace {

// A byte counts at most 8 bits per word, so it holds the sum of 31 words.
constexpr size_t kWordsPerFlush = 31;
constexpr size_t kPixels = 4;  // with 16 channels: 8 sums, 2 weights, table, mask and temporaries fill 16 registers

inline __m256i CountPerByte(__m256i v, __m256i table, __m256i low) {
  const __m256i high_half = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
  return _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(v, low)),
                         _mm256_shuffle_epi8(table, high_half));
}

// Sums of the four bytes of each 32-bit lane.
inline __m256i Widen(__m256i bytes) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
}

template <size_t pixels>
void Tile(const uint8_t* image, const ptrdiff_t* pixel_offset, const Window& window, const uint32_t* weights,
          size_t lanes, int32_t* differing) {
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_set1_epi8(15);
  __m256i total[pixels][2];
  for (size_t p = 0; p < pixels; ++p) total[p][0] = total[p][1] = _mm256_setzero_si256();
  for (size_t run = 0; run < window.runs; ++run) {
    const uint8_t* x[pixels];
    for (size_t p = 0; p < pixels; ++p) x[p] = image + pixel_offset[p] + window.run_offset[run];
    for (size_t k = 0; k < window.run_words;) {
      const size_t left = window.run_words - k;
      const size_t end = k + (left < kWordsPerFlush ? left : kWordsPerFlush);
      __m256i bytes[pixels][2];
      for (size_t p = 0; p < pixels; ++p) bytes[p][0] = bytes[p][1] = _mm256_setzero_si256();
      for (; k < end; ++k, weights += lanes) {
        const __m256i w0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
        const __m256i w1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + 8));
        for (size_t p = 0; p < pixels; ++p) {
          int32_t word;
          std::memcpy(&word, x[p] + 4 * k, 4);
          const __m256i xs = _mm256_set1_epi32(word);
          bytes[p][0] = _mm256_add_epi8(bytes[p][0], CountPerByte(_mm256_xor_si256(xs, w0), table, low));
          bytes[p][1] = _mm256_add_epi8(bytes[p][1], CountPerByte(_mm256_xor_si256(xs, w1), table, low));
        }
      }
      for (size_t p = 0; p < pixels; ++p) {
        total[p][0] = _mm256_add_epi32(total[p][0], Widen(bytes[p][0]));
        total[p][1] = _mm256_add_epi32(total[p][1], Widen(bytes[p][1]));
      }
    }
  }
  for (size_t p = 0; p < pixels; ++p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(differing + p * kBlock), total[p][0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(differing + p * kBlock + 8), total[p][1]);
  }
}

void Count(const uint8_t* image, const ptrdiff_t* pixel_offset, size_t pixels, const Window& window,
           const Filters& filters, int32_t* differing) {
  for (size_t first = 0; first < filters.lanes; first += kLanes) {
    const uint32_t* weights = filters.words + first;
    size_t p = 0;
    for (; p + kPixels <= pixels; p += kPixels) {
      Tile<kPixels>(image, pixel_offset + p, window, weights, filters.lanes, differing + p * kBlock + first);
    }
    for (; p < pixels; ++p) {
      Tile<1>(image, pixel_offset + p, window, weights, filters.lanes, differing + p * kBlock + first);
    }
  }
}

void Threshold(const Counts& counts, const int32_t* threshold, uint64_t* bits) {
  for (size_t p = 0; p < counts.pixels; ++p) {
    const int32_t* differing = counts.differing + p * kBlock;
    const int32_t* base = counts.base + counts.border_class[p] * counts.base_stride;
    uint64_t word = 0;
    for (size_t lane = 0; lane < counts.lanes; lane += 8) {
      const __m256i d = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(differing + lane));
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(base + lane));
      const __m256i t = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(threshold + lane));
      const __m256i below = _mm256_cmpgt_epi32(t, _mm256_sub_epi32(b, _mm256_slli_epi32(d, 1)));
      const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(below)) ^ 0xff;
      word |= static_cast<uint64_t>(mask) << lane;
    }
    bits[p] = word;
  }
}

}  // namespace

extern const Kernel kAvx2 = {Isa::kAvx2, &Count, &Threshold, &AffineScalar};

}  // namespace conv
}  // namespace bnnfx
