// AVX2 has no population count, but a byte shuffle is 32 look-ups in a table of 16 entries.
//
// 1. A 64-bit word is 16 nibbles, groups of four input channels. For one nibble, `shuffle(row[x], w)` is
//    popcount(x ^ w) of 32 filters at once: the filters' nibbles w are the indices, and row[x] of the table, entry w of
//    which is popcount(x ^ w), is broadcast from memory. Xor, shift and mask are all in the table.
// 2. A count of at most 4 wastes a byte. So row (xa, xb) of a larger table serves two pixels: entry w is
//    popcount(xa ^ w) + 16 * popcount(xb ^ w), and the sum t of three look-ups is a + 16 * b with a, b <= 12.
// 3. To separate them, bytes sum y = sum(t) and h = sum(t >> 4), both modulo 256. There is no shift of bytes; that of
//    16-bit words brings a_odd, of the odd byte, into the upper half of the even one. So, with A = sum(a), B = sum(b),
//    y = A + 16 * B everywhere, h_odd = B_odd and h_even = B_even + 16 * A_odd; and as 16 * 16 = 0,
//    A = y - 16 * h everywhere and B_even = h_even - 16 * y_odd. A and B are exact while they are below 256.
// 4. Per two pixels, 32 filters and three nibbles, that is 768 products: three shuffles, four additions and one shift.
// 5. After each span, up to 48 nibbles, A and B are added to sums in 16-bit words: all = sum(A_even + 256 * A_odd)
//    modulo 2^16, and odd = sum(A_odd). They go to the 32-bit results before `odd` or sum(A_even) could overflow.
// 6. Filters are in such an order that byte 4 * i + j belongs to channel 8 * j + i. Then the results are in the order
//    of the channels without any exchange between the halves of a register.

#include <immintrin.h>

#include <cstring>

#include "../lanes/avx2.h"
#include "epilogue.h"
#include "kernel.h"

namespace bnnfx {
namespace conv {
namespace {

constexpr size_t kLanes = 32;    // bytes of a register
constexpr size_t kNibbles = 16;  // of a word
constexpr size_t kPairs = 2;     // of pixels; with 64 channels: 8 sums, and the rest for what is looked up

// A byte holds the sum of 63 nibbles. Three words are 48, which three divides.
constexpr size_t kSpanWords = 3;
constexpr size_t kSpanNibbles = kSpanWords * kNibbles;
constexpr size_t kSpansPerFlush = 65535 / (4 * kSpanNibbles);  // 16-bit words hold the sum of these

struct Table {
  uint8_t row[16 * 16][16];  // [16 * xb + xa][w]
  constexpr Table() : row() {
    for (unsigned x = 0; x < 16 * 16; ++x) {
      for (unsigned w = 0; w < 16; ++w) {
        unsigned entry = 0;
        for (unsigned bit = 0; bit < 4; ++bit) entry += (((x ^ w) >> bit) & 1) + 16 * ((((x >> 4) ^ w) >> bit) & 1);
        row[x][w] = static_cast<uint8_t>(entry);
      }
    }
  }
};

alignas(64) constexpr Table kTable;

inline __m256i LoadVector(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void StoreVector(void* to, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
inline __m128i LoadHalf(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

// Maps: a byte per nibble, in its upper half.
void PrepareInput(const uint8_t* words, size_t pixels, const Pixel& pixel, uint8_t* out) {
  const size_t count = pixels * pixel.words;
  const __m128i upper = _mm_set1_epi8(static_cast<char>(0xf0));
  for (size_t i = 0; i < count; ++i) {
    const __m128i word = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(words + 8 * i));
    const __m128i first = _mm_and_si128(_mm_slli_epi16(word, 4), upper);
    const __m128i second = _mm_and_si128(word, upper);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + kNibbles * i), _mm_unpacklo_epi8(first, second));
  }
}

// Filters: per 64-bit word uint8[16][lanes], a byte per nibble, in its lower half; each 32 channels as step 6 says.
void PrepareFilters(const uint64_t* words, size_t lanes, uint8_t* out) {
  for (size_t nibble = 0; nibble < kNibbles; ++nibble) {
    for (size_t lane = 0; lane < lanes; ++lane) {
      const size_t channel = lane % kLanes;
      out[nibble * lanes + (lane - channel) + 4 * (channel % 8) + channel / 8] =
          static_cast<uint8_t>((words[lane] >> (4 * nibble)) & 15);
    }
  }
}

struct Sums {  // step 5
  __m256i all;
  __m256i odd;
};

inline void AddTo(Sums* sums, __m256i bytes, bool first) {
  const __m256i odd = _mm256_srli_epi16(bytes, 8);
  sums->all = first ? bytes : _mm256_add_epi16(sums->all, bytes);
  sums->odd = first ? odd : _mm256_add_epi16(sums->odd, odd);
}

// Two pixels: where their windows start.
struct Pair {
  const uint8_t* a;
  const uint8_t* b;
};

#define BNNFX_EACH_PAIR _Pragma("GCC unroll 2") for (size_t p = 0; p < pairs; ++p)
#define BNNFX_EACH_GROUP _Pragma("GCC unroll 2") for (size_t g = 0; g < groups; ++g)

// Adds the counts of a span of `words` words, from byte `from` of the windows on, to sums[pair][group][pixel of the
// pair]; sets them if it is the first.
template <size_t groups, size_t pairs>
void Span(const Pair* windows, ptrdiff_t from, size_t words, const uint8_t* filters, bool first, Sums (*sums)[2][2]) {
  uint16_t offset[pairs][kSpanNibbles];  // of table rows, in bytes
  BNNFX_EACH_PAIR {
    for (size_t k = 0; k < words; ++k) {
      const __m128i a = LoadHalf(windows[p].a + from + kNibbles * k);
      const __m128i b = LoadHalf(windows[p].b + from + kNibbles * k);
      const __m256i index = _mm256_cvtepu8_epi16(_mm_or_si128(_mm_srli_epi16(a, 4), b));
      StoreVector(&offset[p][kNibbles * k], _mm256_slli_epi16(index, 4));
    }
  }
  const auto row = [&](size_t p, size_t k) {
    const uint8_t* entries = &kTable.row[0][0] + offset[p][k];
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(entries)));
  };
  const auto look_up = [&](__m256i table, size_t k, size_t g) {
    return _mm256_shuffle_epi8(table, LoadVector(filters + (k * groups + g) * kLanes));
  };
  __m256i y[pairs][groups];
  __m256i h[pairs][groups];
  BNNFX_EACH_PAIR BNNFX_EACH_GROUP y[p][g] = h[p][g] = _mm256_setzero_si256();
  const size_t nibbles = words * kNibbles;
  size_t k = 0;
  for (; k + 3 <= nibbles; k += 3) {
    BNNFX_EACH_PAIR {
      __m256i t[groups];
      const __m256i row0 = row(p, k);
      BNNFX_EACH_GROUP t[g] = look_up(row0, k, g);
      const __m256i row1 = row(p, k + 1);
      BNNFX_EACH_GROUP t[g] = _mm256_add_epi8(t[g], look_up(row1, k + 1, g));
      const __m256i row2 = row(p, k + 2);
      BNNFX_EACH_GROUP t[g] = _mm256_add_epi8(t[g], look_up(row2, k + 2, g));
      BNNFX_EACH_GROUP {
        y[p][g] = _mm256_add_epi8(y[p][g], t[g]);
        h[p][g] = _mm256_add_epi8(h[p][g], _mm256_srli_epi16(t[g], 4));
        // Empty, but keeps compilers from mixing the pairs: they would run out of registers.
        asm volatile("" : "+x"(y[p][g]), "+x"(h[p][g]));
      }
    }
  }
  _Pragma("GCC unroll 1") for (; k < nibbles; ++k) {
    BNNFX_EACH_PAIR {
      const __m256i row0 = row(p, k);
      BNNFX_EACH_GROUP {
        const __m256i t = look_up(row0, k, g);
        y[p][g] = _mm256_add_epi8(y[p][g], t);
        h[p][g] = _mm256_add_epi8(h[p][g], _mm256_srli_epi16(t, 4));
      }
    }
  }
  const __m256i upper = _mm256_set1_epi8(static_cast<char>(0xf0));
  const __m256i upper_of_even = _mm256_set1_epi16(0xf0);
  BNNFX_EACH_PAIR BNNFX_EACH_GROUP {
    const __m256i h16 = _mm256_and_si256(_mm256_slli_epi16(h[p][g], 4), upper);
    const __m256i y16 = _mm256_and_si256(_mm256_srli_epi16(y[p][g], 4), upper_of_even);
    AddTo(&sums[p][g][0], _mm256_sub_epi8(y[p][g], h16), first);
    AddTo(&sums[p][g][1], _mm256_sub_epi8(h[p][g], y16), first);
  }
}

// Sets 32 results, or adds to them.
inline void Flush(const Sums& sums, __m128i shift, bool set, int32_t* counted) {
  const __m256i even = _mm256_sub_epi16(sums.all, _mm256_slli_epi16(sums.odd, 8));
  const __m256i lower = _mm256_set1_epi32(0xffff);
  const __m256i counts[4] = {_mm256_and_si256(even, lower), _mm256_and_si256(sums.odd, lower),
                             _mm256_srli_epi32(even, 16), _mm256_srli_epi32(sums.odd, 16)};
  _Pragma("GCC unroll 4") for (size_t i = 0; i < 4; ++i) {
    int32_t* to = counted + 8 * i;
    const __m256i shifted = _mm256_sll_epi32(counts[i], shift);
    StoreVector(to, set ? shifted : _mm256_add_epi32(LoadVector(to), shifted));
  }
}

template <size_t groups>
void CountGroups(const uint8_t* image, const ptrdiff_t* pixel_offset, size_t pixels, const Window& window,
                 const uint8_t* filters, int32_t* counted) {
  constexpr size_t word_bytes = groups * kLanes * kNibbles;  // of prepared filters
  const size_t pairs = (pixels + 1) / 2;
  Pair windows[kStrip / 2];
  for (size_t p = 0; p < pairs; ++p) {
    const size_t last = 2 * p + 1 < pixels ? 2 * p + 1 : 2 * p;  // without a partner a pixel is its own
    windows[p] = {image + pixel_offset[2 * p], image + pixel_offset[last]};
  }
  Sums sums[kStrip / 2][2][2];
  size_t spans = 0;  // in `sums`
  bool set = true;   // nothing is in `counted`
  const __m128i shift = _mm_cvtsi32_si128(window.shift);
  const auto flush = [&] {
    for (size_t p = 0; p < pixels; ++p) {
      BNNFX_EACH_GROUP Flush(sums[p / 2][g][p % 2], shift, set, counted + p * kBlock + g * kLanes);
    }
    spans = 0;
    set = false;
  };
  for (size_t run = 0; run < window.run_count; ++run) {
    for (size_t k = 0; k < window.run_words; k += kSpanWords) {
      const size_t left = window.run_words - k;
      const size_t words = left < kSpanWords ? left : kSpanWords;
      const ptrdiff_t from = window.runs[run].input + static_cast<ptrdiff_t>(kNibbles * k);
      const uint8_t* w = filters + (window.runs[run].filter + k) * word_bytes;
      if (spans == kSpansPerFlush) flush();
      // All pixels of a span in turn: its filters stay in the first-level cache.
      size_t p = 0;
      for (; p + kPairs <= pairs; p += kPairs) {
        Span<groups, kPairs>(windows + p, from, words, w, spans == 0, sums + p);
      }
      if (p < pairs) Span<groups, 1>(windows + p, from, words, w, spans == 0, sums + p);
      ++spans;
    }
  }
  if (spans != 0) {
    flush();
  } else {
    for (size_t p = 0; p < pixels; ++p) std::memset(counted + p * kBlock, 0, groups * kLanes * sizeof(int32_t));
  }
}

#undef BNNFX_EACH_PAIR
#undef BNNFX_EACH_GROUP

void Count(const uint8_t* image, const ptrdiff_t* pixel_offset, size_t pixels, const Window& window,
           const uint8_t* filters, size_t lanes, const Upcoming&, int32_t* counted) {
  (lanes == kLanes ? CountGroups<1> : CountGroups<2>)(image, pixel_offset, pixels, window, filters, counted);
}

}  // namespace

extern const Kernel kAvx2 = {
    Isa::kAvx2, false, 48, 1, kLanes, kNibbles, kNibbles, nullptr, nullptr, &PrepareInput, &PrepareFilters,
    1, nullptr, &Count, &ThresholdLanes<Avx2Lanes>, &EpilogueLanes<Avx2Lanes>};

}  // namespace conv
}  // namespace bnnfx
