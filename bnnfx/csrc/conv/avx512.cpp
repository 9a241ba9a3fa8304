// AVX-512 with VPOPCNTDQ: the population count of 16 words is one instruction.
//
// A tile is 64 channels x 6 pixels: 24 registers of sums, 4 of weights; per word, 4 loads and 6 broadcasts feed 24
// times xor, count and add.

#include <immintrin.h>

#include <cstring>

#include "kernel.h"

namespace bnnfx {
namespace conv {
namespace {

constexpr size_t kPixels = 6;

template <size_t groups, size_t pixels>  // groups of 16 channels
void Tile(const uint8_t* image, const ptrdiff_t* pixel_offset, const Window& window, const uint32_t* weights,
          int32_t* differing) {
  __m512i sum[pixels][groups];
  for (size_t p = 0; p < pixels; ++p) {
    for (size_t g = 0; g < groups; ++g) sum[p][g] = _mm512_setzero_si512();
  }
  for (size_t run = 0; run < window.runs; ++run) {
    const uint8_t* x[pixels];
    for (size_t p = 0; p < pixels; ++p) x[p] = image + pixel_offset[p] + window.run_offset[run];
    for (size_t k = 0; k < window.run_words; ++k, weights += groups * kLanes) {
      __m512i w[groups];
      for (size_t g = 0; g < groups; ++g) w[g] = _mm512_loadu_si512(weights + g * kLanes);
      for (size_t p = 0; p < pixels; ++p) {
        int32_t word;
        std::memcpy(&word, x[p] + 4 * k, 4);
        const __m512i xs = _mm512_set1_epi32(word);
        for (size_t g = 0; g < groups; ++g) {
          sum[p][g] = _mm512_add_epi32(sum[p][g], _mm512_popcnt_epi32(_mm512_xor_si512(xs, w[g])));
        }
      }
    }
  }
  for (size_t p = 0; p < pixels; ++p) {
    for (size_t g = 0; g < groups; ++g) _mm512_storeu_si512(differing + p * kBlock + g * kLanes, sum[p][g]);
  }
}

template <size_t groups>
void CountGroups(const uint8_t* image, const ptrdiff_t* pixel_offset, size_t pixels, const Window& window,
                 const uint32_t* weights, int32_t* differing) {
  size_t p = 0;
  for (; p + kPixels <= pixels; p += kPixels) {
    Tile<groups, kPixels>(image, pixel_offset + p, window, weights, differing + p * kBlock);
  }
  pixel_offset += p;
  differing += p * kBlock;
  switch (pixels - p) {
    case 1:
      return Tile<groups, 1>(image, pixel_offset, window, weights, differing);
    case 2:
      return Tile<groups, 2>(image, pixel_offset, window, weights, differing);
    case 3:
      return Tile<groups, 3>(image, pixel_offset, window, weights, differing);
    case 4:
      return Tile<groups, 4>(image, pixel_offset, window, weights, differing);
    case 5:
      return Tile<groups, 5>(image, pixel_offset, window, weights, differing);
    default:
      return;
  }
}

void Count(const uint8_t* image, const ptrdiff_t* pixel_offset, size_t pixels, const Window& window,
           const Filters& filters, int32_t* differing) {
  switch (filters.lanes / kLanes) {
    case 1:
      return CountGroups<1>(image, pixel_offset, pixels, window, filters.words, differing);
    case 2:
      return CountGroups<2>(image, pixel_offset, pixels, window, filters.words, differing);
    case 3:
      return CountGroups<3>(image, pixel_offset, pixels, window, filters.words, differing);
    default:
      return CountGroups<4>(image, pixel_offset, pixels, window, filters.words, differing);
  }
}

// Accumulators of 16 channels of pixel p.
inline __m512i Accumulators(const Counts& counts, size_t p, size_t lane) {
  const __m512i differing = _mm512_loadu_si512(counts.differing + p * kBlock + lane);
  const __m512i base = _mm512_loadu_si512(counts.base + counts.border_class[p] * counts.base_stride + lane);
  return _mm512_sub_epi32(base, _mm512_slli_epi32(differing, 1));
}

void Threshold(const Counts& counts, const int32_t* threshold, uint64_t* bits) {
  for (size_t p = 0; p < counts.pixels; ++p) {
    uint64_t word = 0;
    for (size_t lane = 0; lane < counts.lanes; lane += kLanes) {
      const __m512i least = _mm512_loadu_si512(threshold + lane);
      const __mmask16 mask = _mm512_cmpge_epi32_mask(Accumulators(counts, p, lane), least);
      word |= static_cast<uint64_t>(mask) << lane;
    }
    bits[p] = word;
  }
}

// Rows to columns: afterwards element i of r[j] is what element j of r[i] was. Below, u[4 i + j] holds in its 128-bit
// quarter q the column 4 q + j of the rows 4 i to 4 i + 3; the rest moves whole quarters.
inline void Transpose(__m512 (&r)[16]) {
  __m512 t[16];
  __m512 u[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d first = _mm512_castps_pd(t[i + j]);
      const __m512d second = _mm512_castps_pd(t[i + j + 2]);
      u[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(first, second));
      u[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(first, second));
    }
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 even_low = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x88);  // quarters 0, 2 of both
    const __m512 even_high = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xdd);  // quarters 1, 3 of both
    const __m512 odd_high = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xdd);
    r[j] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    r[4 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    r[8 + j] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    r[12 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

void Affine(const Counts& counts, const float* scale, const float* bias, size_t channels, float* out,
            size_t channel_stride) {
  for (size_t first = 0; first < channels; first += kLanes) {
    const __m512 scales = _mm512_loadu_ps(scale + first);
    const __m512 biases = _mm512_loadu_ps(bias + first);
    const size_t used = channels - first < kLanes ? channels - first : kLanes;
    for (size_t p = 0; p < counts.pixels; p += kLanes) {
      const size_t pixels = counts.pixels - p < kLanes ? counts.pixels - p : kLanes;
      __m512 rows[kLanes];
      for (size_t i = 0; i < kLanes; ++i) {
        const size_t pixel = p + (i < pixels ? i : pixels - 1);  // what is beyond the last pixel is not stored
        const __m512 acc = _mm512_cvtepi32_ps(Accumulators(counts, pixel, first));
        rows[i] = _mm512_add_ps(_mm512_mul_ps(acc, scales), biases);
      }
      Transpose(rows);
      float* target = out + first * channel_stride + p;
      if (used == kLanes && pixels == kLanes) {  // the usual case, of known length and without masks
#pragma GCC unroll 16
        for (size_t c = 0; c < kLanes; ++c) _mm512_storeu_ps(target + c * channel_stride, rows[c]);
      } else {
        const __mmask16 mask = static_cast<__mmask16>((1u << pixels) - 1);
        for (size_t c = 0; c < used; ++c) _mm512_mask_storeu_ps(target + c * channel_stride, mask, rows[c]);
      }
    }
  }
}

}  // namespace

extern const Kernel kAvx512 = {Isa::kAvx512, &Count, &Threshold, &Affine};

}  // namespace conv
}  // namespace bnnfx
