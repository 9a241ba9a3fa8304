// NEON, which every AArch64 processor has: three instructions per 128 bits.
//
// 1. A word of the map is broadcast, so a vector of four 32-bit words is xored with the same word of four filters.
// 2. `cnt` counts the set bits of each byte, at most 8, and they are added as bytes: room for 31 words.
// 3. Before a byte is full, pairs of bytes and then pairs of their sums are added to the 32-bit sums of the channels.
//    These stay in `counted`, not in registers: they are touched once per 30 words.
//
// Adding to 16 bits at once (`uadalp`) would spare most of step 3, but more of a processor's units can add bytes.

#include <arm_neon.h>

#include <cstring>

#include "../lanes/neon.h"
#include "epilogue.h"
#include "kernel.h"

namespace bnnfx {
namespace conv {
namespace {

constexpr size_t kLanes = 16;
constexpr size_t kVectors = 4;  // of kLanes
constexpr size_t kPixels = 4;   // of a tile: 16 sums, 4 filters, a word of the map and temporaries in 32 registers

constexpr size_t kWordsPerFlush = 15;  // 64-bit words: 30 of 31 32-bit ones

// Filters: per 64-bit word uint32[2][lanes], the lower halves and then the upper ones.
void PrepareFilters(const uint64_t* words, size_t lanes, uint8_t* out) {
  for (size_t lane = 0; lane < lanes; ++lane) {
    for (size_t half = 0; half < 2; ++half) {
      const auto word = static_cast<uint32_t>(words[lane] >> (32 * half));
      std::memcpy(out + (half * lanes + lane) * 4, &word, 4);
    }
  }
}

// A tile of `pixels` windows and 16 filters.
template <size_t pixels>
void Tile(const uint8_t* image, const ptrdiff_t* pixel_offset, const Window& window, const uint8_t* filters,
          size_t lanes, int32_t* counted) {
  uint8x16_t bytes[pixels][kVectors];
#define BNNFX_EACH_PIXEL _Pragma("GCC unroll 4") for (size_t p = 0; p < pixels; ++p)
#define BNNFX_EACH_VECTOR _Pragma("GCC unroll 4") for (size_t i = 0; i < kVectors; ++i)
  BNNFX_EACH_PIXEL BNNFX_EACH_VECTOR {
    bytes[p][i] = vdupq_n_u8(0);
    vst1q_s32(counted + p * kBlock + 4 * i, vdupq_n_s32(0));
  }
  const int16x8_t shift = vdupq_n_s16(static_cast<int16_t>(window.shift));
  size_t room = kWordsPerFlush;
  for (size_t run = 0; run < window.run_count; ++run) {
    const uint8_t* x[pixels];
    BNNFX_EACH_PIXEL x[p] = image + pixel_offset[p] + window.runs[run].input;
    const uint8_t* w = filters + window.runs[run].filter * lanes * 8;
    for (size_t left = window.run_words; left != 0;) {
      const size_t count = left < room ? left : room;
      for (size_t k = 0; k < 2 * count; ++k, w += 4 * lanes) {
        uint32x4_t word[pixels];
        BNNFX_EACH_PIXEL {
          word[p] = vdupq_n_u32(Load<uint32_t>(x[p]));
          x[p] += 4;
        }
        BNNFX_EACH_VECTOR {
          const uint8x16_t filter = vld1q_u8(w + 16 * i);
          BNNFX_EACH_PIXEL {
            const uint8x16_t differs = veorq_u8(vreinterpretq_u8_u32(word[p]), filter);
            bytes[p][i] = vaddq_u8(bytes[p][i], vcntq_u8(differs));
          }
        }
      }
      left -= count;
      room -= count;
      if (room != 0 && (left != 0 || run + 1 < window.run_count)) continue;
      BNNFX_EACH_PIXEL BNNFX_EACH_VECTOR {
        int32_t* sums = counted + p * kBlock + 4 * i;
        const uint32x4_t sum = vreinterpretq_u32_s32(vld1q_s32(sums));
        const uint16x8_t pairs = vshlq_u16(vpaddlq_u8(bytes[p][i]), shift);
        vst1q_s32(sums, vreinterpretq_s32_u32(vpadalq_u16(sum, pairs)));
        bytes[p][i] = vdupq_n_u8(0);
      }
      room = kWordsPerFlush;
    }
  }
#undef BNNFX_EACH_PIXEL
#undef BNNFX_EACH_VECTOR
}

void Count(const uint8_t* image, const ptrdiff_t* pixel_offset, size_t pixels, const Window& window,
           const uint8_t* filters, size_t lanes, const Upcoming&, int32_t* counted) {
  constexpr decltype(&Tile<1>) kTiles[kPixels] = {&Tile<1>, &Tile<2>, &Tile<3>, &Tile<4>};
  const size_t tiles = (pixels + kPixels - 1) / kPixels;
  for (size_t lane = 0; lane < lanes; lane += kLanes) {
    size_t first = 0;
    for (size_t tile = 0; tile < tiles; ++tile) {  // of nearly equal size: small ones use the registers badly
      const size_t end = pixels * (tile + 1) / tiles;
      kTiles[end - first - 1](image, pixel_offset + first, window, filters + 4 * lane, lanes,
                              counted + first * kBlock + lane);
      first = end;
    }
  }
}

}  // namespace

extern const Kernel kNeon = {
    Isa::kNeon, false, 48, 1, kLanes, 8, 8, nullptr, nullptr, nullptr, &PrepareFilters, 1, nullptr, &Count,
    &ThresholdLanes<NeonLanes>, &EpilogueLanes<NeonLanes>};

}  // namespace conv
}  // namespace bnnfx
