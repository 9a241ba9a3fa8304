// Plain C++. The loops over lanes are of fixed length and without branches, so that a compiler turns them into vector
// instructions of whatever the target is sure to have (SSE2, NEON).

#include <cstring>

#include "kernel.h"
#include "scalar.h"

namespace bnnfx {
namespace conv {
namespace {

// A byte counts at most 8 bits per word, so it holds the sum of 31 words.
constexpr size_t kWordsPerFlush = 31;

// The number of set bits of each byte, by adding neighbors: pairs, then fours, then eights.
inline uint32_t CountPerByte(uint32_t v) {
  v = v - ((v >> 1) & 0x55555555u);
  v = (v & 0x33333333u) + ((v >> 2) & 0x33333333u);
  return (v + (v >> 4)) & 0x0f0f0f0fu;
}

inline void CountPixel(const uint8_t* pixel, const Window& window, const uint32_t* weights, size_t lanes,
                       int32_t* differing) {
  uint32_t bytes[kLanes] = {};
  uint32_t total[kLanes] = {};
  for (size_t run = 0; run < window.runs; ++run) {
    const uint8_t* x = pixel + window.run_offset[run];
    for (size_t k = 0; k < window.run_words;) {
      const size_t left = window.run_words - k;
      const size_t end = k + (left < kWordsPerFlush ? left : kWordsPerFlush);
      for (; k < end; ++k, weights += lanes) {
        uint32_t word;
        std::memcpy(&word, x + 4 * k, 4);
        for (size_t lane = 0; lane < kLanes; ++lane) bytes[lane] += CountPerByte(word ^ weights[lane]);
      }
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const uint32_t pairs = (bytes[lane] & 0x00ff00ffu) + ((bytes[lane] >> 8) & 0x00ff00ffu);
        total[lane] += (pairs & 0xffffu) + (pairs >> 16);
        bytes[lane] = 0;
      }
    }
  }
  for (size_t lane = 0; lane < kLanes; ++lane) differing[lane] = static_cast<int32_t>(total[lane]);
}

void Count(const uint8_t* image, const ptrdiff_t* pixel_offset, size_t pixels, const Window& window,
           const Filters& filters, int32_t* differing) {
  for (size_t first = 0; first < filters.lanes; first += kLanes) {
    for (size_t p = 0; p < pixels; ++p) {
      CountPixel(image + pixel_offset[p], window, filters.words + first, filters.lanes,
                 differing + p * kBlock + first);
    }
  }
}

}  // namespace

extern const Kernel kPortable = {Isa::kPortable, &Count, &ThresholdScalar, &AffineScalar};

}  // namespace conv
}  // namespace bnnfx
