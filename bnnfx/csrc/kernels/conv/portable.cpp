// Plain C++. The loops over lanes are of fixed length and without branches, so that a compiler turns them into vector
// instructions of whatever the target is sure to have (SSE2, NEON).

#include <cstring>

#include "../lanes/portable.h"
#include "epilogue.h"
#include "kernel.h"

namespace bnnfx {
namespace conv {
namespace {

constexpr size_t kLanes = 16;  // counted together

// A byte counts at most 8 bits per 32-bit word, so it holds the sum of 31 of them.
constexpr size_t kWordsPerFlush = 15;  // 64-bit words

// Filters: per 64-bit word uint32[2][lanes], the lower halves and then the upper ones.
void PrepareFilters(const uint64_t* words, size_t lanes, uint8_t* out) {
  for (size_t lane = 0; lane < lanes; ++lane) {
    for (size_t half = 0; half < 2; ++half) {
      const auto word = static_cast<uint32_t>(words[lane] >> (32 * half));
      std::memcpy(out + (half * lanes + lane) * 4, &word, 4);
    }
  }
}

// The number of set bits of each byte, by adding neighbors: pairs, then fours, then eights.
inline uint32_t CountPerByte(uint32_t v) {
  v = v - ((v >> 1) & 0x55555555u);
  v = (v & 0x33333333u) + ((v >> 2) & 0x33333333u);
  return (v + (v >> 4)) & 0x0f0f0f0fu;
}

inline void CountPixel(const uint8_t* pixel, const Window& window, const uint8_t* filters, size_t lanes,
                       int32_t* counted) {
  uint32_t bytes[kLanes] = {};
  uint32_t total[kLanes] = {};
  for (size_t run = 0; run < window.run_count; ++run) {
    const uint8_t* x = pixel + window.runs[run].input;
    const uint8_t* w = filters + window.runs[run].filter * lanes * 8;
    for (size_t k = 0; k < 2 * window.run_words;) {
      const size_t left = 2 * window.run_words - k;
      const size_t end = k + (left < 2 * kWordsPerFlush ? left : 2 * kWordsPerFlush);
      for (; k < end; ++k, w += 4 * lanes) {
        uint32_t word;
        std::memcpy(&word, x + 4 * k, 4);
        uint32_t filter[kLanes];
        std::memcpy(filter, w, sizeof(filter));
        for (size_t lane = 0; lane < kLanes; ++lane) bytes[lane] += CountPerByte(word ^ filter[lane]);
      }
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const uint32_t pairs = (bytes[lane] & 0x00ff00ffu) + ((bytes[lane] >> 8) & 0x00ff00ffu);
        total[lane] += (pairs & 0xffffu) + (pairs >> 16);
        bytes[lane] = 0;
      }
    }
  }
  for (size_t lane = 0; lane < kLanes; ++lane) counted[lane] = static_cast<int32_t>(total[lane] << window.shift);
}

void Count(const uint8_t* image, const ptrdiff_t* pixel_offset, size_t pixels, const Window& window,
           const uint8_t* filters, size_t lanes, const Upcoming&, int32_t* counted) {
  for (size_t first = 0; first < lanes; first += kLanes) {
    for (size_t p = 0; p < pixels; ++p) {
      CountPixel(image + pixel_offset[p], window, filters + 4 * first, lanes, counted + p * kBlock + first);
    }
  }
}

}  // namespace

extern const Kernel kPortable = {
    Isa::kPortable, false, 48, 1, kLanes, 8, 8, nullptr, nullptr, nullptr, &PrepareFilters, 1, nullptr, &Count,
    &ThresholdLanes<PortableLanes>, &EpilogueLanes<PortableLanes>};

}  // namespace conv
}  // namespace bnnfx
