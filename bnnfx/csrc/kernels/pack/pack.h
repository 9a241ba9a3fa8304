// From float maps to bits, for vectors of any width; `Lanes` as lanes/load.h says. In an unnamed namespace, so that
// each file that includes it gets its own copy, compiled with its own flags.
//
// NCHW has pixels in lanes, in loops that compilers turn into vector instructions:
//
// 1. A 32-bit word per pixel collects the bits of 32 channels: bit c of word p is the comparison of x[c][p].
// 2. The channels are the outer loop, so a comparison handles `lanes` pixels that are neighbors in memory.
// 3. The words are then stored one by one, each to its pixel.

#ifndef BNNFX_PACK_PACK_H_
#define BNNFX_PACK_PACK_H_

#include <cstring>

#include "../lanes/load.h"
#include "kernel.h"

namespace bnnfx {
namespace pack {
namespace {

constexpr size_t kPixels = 64;  // of a step: whole cache lines of each channel

inline size_t AtMost(size_t value, size_t limit) { return value < limit ? value : limit; }

// Sets `bit` in words[p] where x[p] >= t[p * t_pixel]. The two values are chosen first and or-ed afterwards, without a
// condition on the store, which would keep compilers from vectorizing.
template <size_t t_pixel>
inline void Compare(const float* x, const float* t, size_t pixels, uint32_t bit, uint32_t* words) {
  const float first = t[0];
  for (size_t p = 0; p < pixels; ++p) {
    const float least = t_pixel == 0 ? first : t[p];
    words[p] |= (0u - static_cast<uint32_t>(x[p] >= least)) & bit;
  }
}

template <size_t t_pixel>
void PackLanes(const float* x, size_t x_channel, const float* t, size_t t_channel, size_t channels, size_t pixels,
               uint8_t* out, size_t row_bytes) {
  for (size_t first = 0; first < pixels; first += kPixels) {
    const size_t used = AtMost(pixels - first, kPixels);
    for (size_t byte = 0; byte < row_bytes; byte += 4) {
      uint32_t words[kPixels] = {};
      const size_t begin = byte * 8;
      const size_t end = AtMost(channels, begin + 32);
      for (size_t c = begin; c < end; ++c) {
        const float* xs = x + c * x_channel + first;
        const float* ts = t + c * t_channel + first * t_pixel;
        const uint32_t bit = 1u << (c - begin);
        if (used == kPixels) {
          Compare<t_pixel>(xs, ts, kPixels, bit, words);  // of known length
        } else {
          Compare<t_pixel>(xs, ts, used, bit, words);
        }
      }
      for (size_t p = 0; p < used; ++p) std::memcpy(out + (first + p) * row_bytes + byte, &words[p], 4);
    }
  }
}

void PackNchw(const float* x, size_t x_channel, const Threshold& threshold, size_t channels, size_t pixels,
              uint8_t* out, size_t row_bytes) {
  (threshold.pixel == 0 ? PackLanes<0> : PackLanes<1>)(x, x_channel, threshold.value, threshold.channel, channels,
                                                       pixels, out, row_bytes);
}

// Channels in lanes: a comparison gives the bits of `kWidth` channels.
template <class Lanes, bool per_channel>
inline void PackPixel(const float* x, const float* t, size_t channels, uint8_t* row, size_t row_bytes) {
  using Floats = typename Lanes::Floats;
  constexpr size_t width = Lanes::kWidth;
  const Floats first = Floats{} + *t;
  for (size_t byte = 0; byte < row_bytes; byte += 8) {
    const size_t begin = byte * 8;
    uint64_t word = 0;
    size_t lane = 0;
    for (; lane < 64 && begin + lane + width <= channels; lane += width) {
      const size_t c = begin + lane;
      const uint32_t mask = Lanes::AtLeast(Load<Floats>(x + c), per_channel ? Load<Floats>(t + c) : first);
      word |= static_cast<uint64_t>(mask) << lane;
    }
    for (; lane < 64 && begin + lane < channels; ++lane) {
      const size_t c = begin + lane;
      word |= static_cast<uint64_t>(x[c] >= t[per_channel ? c : 0]) << lane;
    }
    std::memcpy(row + byte, &word, 8);
  }
}

template <class Lanes>
void PackNhwc(const float* x, const Threshold& threshold, size_t channels, size_t pixels, uint8_t* out,
              size_t row_bytes) {
  for (size_t p = 0; p < pixels; ++p) {
    (threshold.channel == 0 ? PackPixel<Lanes, false> : PackPixel<Lanes, true>)(
        x + p * channels, threshold.value + p * threshold.pixel, channels, out + p * row_bytes, row_bytes);
  }
}

}  // namespace
}  // namespace pack
}  // namespace bnnfx

#endif  // BNNFX_PACK_PACK_H_
