// AVX-512 with VPOPCNTDQ: two words are counted by one population count, two and a half instructions per word.
//
// 1. The counts of two words a and b are added to a running sum. With a bit s per position that is carried along, they
//    go through a full adder: s' = s ^ a ^ b, carry = majority(s, a, b), and then a + b + s = 2 * carry + s'. Only the
//    carries are counted, at double weight, and in the end s once: that saves every second popcount and addition.
// 2. a = x0 ^ w0 and b = x1 ^ w1, so s' = s ^ (x0 ^ x1) ^ (w0 ^ w1). x0 ^ x1 and w0 ^ w1 are prepared in place of x1 and
//    w1: s' is then one three-input instruction, and b itself is never needed, because
// 3. b = s ^ a ^ s', so that majority(s, a, b) is a function of s, a and s': one three-input instruction again.
//
// Per two words: xor, two ternary operations, popcount, addition; the plain way takes six. The words of a pair are the
// halves of a 64-bit word, so a pair never reaches from one pixel into the next.

#include <immintrin.h>

#include <cstring>

#include "../lanes/avx512.h"
#include "epilogue.h"
#include "kernel.h"

namespace bnnfx {
namespace conv {
namespace {

constexpr size_t kLanes = 16;
constexpr size_t kPixels = 6;  // with 32 channels: 24 sums, 4 filters, 2 words of the map, 2 temporaries

// Maps: a 64-bit word becomes (lower half, lower half ^ upper half).
void PrepareInput(const uint8_t* words, size_t pixels, const Pixel& pixel, uint8_t* out) {
  const size_t count = pixels * pixel.words;
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m512i word = _mm512_loadu_si512(words + 8 * i);
    _mm512_storeu_si512(out + 8 * i, _mm512_xor_si512(word, _mm512_slli_epi64(word, 32)));
  }
  const auto rest = static_cast<__mmask8>((1u << (count - i)) - 1);
  const __m512i word = _mm512_maskz_loadu_epi64(rest, words + 8 * i);
  _mm512_mask_storeu_epi64(out + 8 * i, rest, _mm512_xor_si512(word, _mm512_slli_epi64(word, 32)));
}

// Filters: per 64-bit word uint32[2][lanes], first the lower halves, then the two halves xored.
void PrepareFilters(const uint64_t* words, size_t lanes, uint8_t* out) {
  for (size_t lane = 0; lane < lanes; ++lane) {
    const auto low = static_cast<uint32_t>(words[lane]);
    const uint32_t both = low ^ static_cast<uint32_t>(words[lane] >> 32);
    std::memcpy(out + 4 * lane, &low, 4);
    std::memcpy(out + 4 * (lanes + lane), &both, 4);
  }
}

// Truth tables: bit 4 * first + 2 * second + third is the result.
constexpr int kXor = 0x96;
constexpr int kCarry = 0xd4;  // of (s, a, s'): majority(s, a, s ^ a ^ s')

// A tile of `pixels` windows and `groups` * 16 filters.
//
// The compiler is given the three-input instructions as text: left to itself it copies their operands about, and the
// additional moves cost a tenth of the speed.
template <size_t groups, size_t pixels>
void Tile(const uint8_t* image, const ptrdiff_t* pixel_offset, const Window& window, const uint8_t* filters,
          size_t lanes, int32_t* counted) {
  __m512i ones[pixels][groups];  // s
  __m512i twos[pixels][groups];  // counted carries
#define BNNFX_EACH_PIXEL _Pragma("GCC unroll 8") for (size_t p = 0; p < pixels; ++p)
#define BNNFX_EACH_GROUP _Pragma("GCC unroll 2") for (size_t g = 0; g < groups; ++g)
  BNNFX_EACH_PIXEL BNNFX_EACH_GROUP ones[p][g] = twos[p][g] = _mm512_setzero_si512();
  for (size_t run = 0; run < window.run_count; ++run) {
    const uint8_t* x[pixels];
    BNNFX_EACH_PIXEL x[p] = image + pixel_offset[p] + window.runs[run].input;
    const uint8_t* w = filters + window.runs[run].filter * lanes * 8;
    for (size_t k = 0; k < window.run_words; ++k, w += lanes * 8) {
      __m512i w_low[groups];
      __m512i w_both[groups];
      BNNFX_EACH_GROUP {
        w_low[g] = _mm512_load_si512(w + g * 64);
        w_both[g] = _mm512_load_si512(w + 4 * lanes + g * 64);
      }
      BNNFX_EACH_PIXEL {
        int32_t halves[2];
        std::memcpy(halves, x[p] + 8 * k, 8);
        const __m512i x_low = _mm512_set1_epi32(halves[0]);
        const __m512i x_both = _mm512_set1_epi32(halves[1]);
        BNNFX_EACH_GROUP {
          const __m512i a = _mm512_xor_si512(x_low, w_low[g]);
          __m512i carry = ones[p][g];
          asm("vpternlogd %[table], %[x], %[w], %[s]"
              : [s] "+v"(ones[p][g])
              : [w] "v"(w_both[g]), [x] "v"(x_both), [table] "i"(kXor));
          asm("vpternlogd %[table], %[s], %[a], %[carry]"
              : [carry] "+v"(carry)
              : [a] "v"(a), [s] "v"(ones[p][g]), [table] "i"(kCarry));
          twos[p][g] = _mm512_add_epi32(twos[p][g], _mm512_popcnt_epi32(carry));
        }
      }
    }
  }
  const __m512i shift = _mm512_set1_epi32(window.shift);
  BNNFX_EACH_PIXEL BNNFX_EACH_GROUP {
    const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(twos[p][g], 1), _mm512_popcnt_epi32(ones[p][g]));
    _mm512_storeu_si512(counted + p * kBlock + g * kLanes, _mm512_sllv_epi32(sum, shift));
  }
#undef BNNFX_EACH_PIXEL
#undef BNNFX_EACH_GROUP
}

template <size_t groups>
void TileOf(size_t pixels, const uint8_t* image, const ptrdiff_t* pixel_offset, const Window& window,
            const uint8_t* filters, size_t lanes, int32_t* counted) {
  switch (pixels) {
    case 1:
      return Tile<groups, 1>(image, pixel_offset, window, filters, lanes, counted);
    case 2:
      return Tile<groups, 2>(image, pixel_offset, window, filters, lanes, counted);
    case 3:
      return Tile<groups, 3>(image, pixel_offset, window, filters, lanes, counted);
    case 4:
      return Tile<groups, 4>(image, pixel_offset, window, filters, lanes, counted);
    case 5:
      return Tile<groups, 5>(image, pixel_offset, window, filters, lanes, counted);
    default:
      return Tile<groups, kPixels>(image, pixel_offset, window, filters, lanes, counted);
  }
}

// Asks for cache lines ahead of time, some before each tile. Inlined by force: GCC takes a function that only
// prefetches for one without effect, and drops its calls.
//
// What the results of the tile will be added to and stored to. With several images, streams do not fit into the
// second-level cache.
__attribute__((always_inline)) inline void FetchStreams(const Streams& streams, size_t first_pixel, size_t last_pixel,
                                                        size_t lane) {
  if (streams.residual == nullptr && streams.out == nullptr) return;
  for (size_t p = first_pixel; p < last_pixel; ++p) {
    const size_t offset = streams.pixel[p] * streams.stride;
    for (size_t c = lane; c < lane + 2 * kLanes && c < streams.channels; c += kLanes) {
      if (streams.residual != nullptr) __builtin_prefetch(streams.residual + offset + c, 0);
      if (streams.out != nullptr && streams.out != streams.residual) __builtin_prefetch(streams.out + offset + c, 1);
    }
  }
}

// Filters, for the second-level cache: a network has more of them than stay there from one of its runs to the next.
__attribute__((always_inline)) inline void FetchFilters(const uint8_t* filters, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(filters + i, 0, 2);
}

void Count(const uint8_t* image, const ptrdiff_t* pixel_offset, size_t pixels, const Window& window,
           const uint8_t* filters, size_t lanes, const Upcoming& upcoming, int32_t* counted) {
  const size_t tiles = (pixels + kPixels - 1) / kPixels;
  const size_t steps = tiles * ((lanes + 2 * kLanes - 1) / (2 * kLanes));
  size_t step = 0;
  for (size_t lane = 0; lane < lanes; lane += 2 * kLanes) {
    const bool one = lanes - lane == kLanes;
    size_t first = 0;
    for (size_t tile = 0; tile < tiles; ++tile) {  // of nearly equal size: small ones use the registers badly
      const size_t end = pixels * (tile + 1) / tiles;
      FetchStreams(upcoming.streams, first, end, lane);
      const size_t fetched = upcoming.filter_bytes * step / steps;
      FetchFilters(upcoming.filters + fetched, upcoming.filter_bytes * ++step / steps - fetched);
      (one ? TileOf<1> : TileOf<2>)(end - first, image, pixel_offset + first, window, filters + 4 * lane, lanes,
                                    counted + first * kBlock + lane);
      first = end;
    }
  }
}

}  // namespace

void Avx512Threshold(const Counts& counts, const int32_t* threshold, uint64_t* bits) {
  ThresholdLanes<Avx512Lanes>(counts, threshold, bits);
}

Epilogue Avx512Epilogue(const Steps& steps) { return EpilogueLanes<Avx512Lanes>(steps); }

extern const Kernel kAvx512 = {
    Isa::kAvx512, false, 48, 1, kLanes, 8, 8, nullptr, nullptr, &PrepareInput, &PrepareFilters,
    1, nullptr, &Count, &Avx512Threshold, &Avx512Epilogue};

}  // namespace conv
}  // namespace bnnfx
