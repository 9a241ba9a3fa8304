// Steps 2 to 4 of kernel.h without instructions of a particular set. In an unnamed namespace, so that each file that
// includes it gets its own copy, compiled with its own flags.

#ifndef BNNFX_CONV_SCALAR_H_
#define BNNFX_CONV_SCALAR_H_

#include "kernel.h"

namespace bnnfx {
namespace conv {
namespace {

[[maybe_unused]] void ThresholdScalar(const Counts& counts, const int32_t* threshold, uint64_t* bits) {
  for (size_t p = 0; p < counts.pixels; ++p) {
    const int32_t* differing = counts.differing + p * kBlock;
    const int32_t* base = counts.base + counts.border_class[p] * counts.base_stride;
    uint64_t word = 0;
    for (size_t lane = 0; lane < counts.lanes; ++lane) {
      const int32_t acc = base[lane] - 2 * differing[lane];
      word |= static_cast<uint64_t>(acc >= threshold[lane]) << lane;
    }
    bits[p] = word;
  }
}

[[maybe_unused]] void AffineScalar(const Counts& counts, const float* scale, const float* bias, size_t channels,
                                   float* out, size_t channel_stride) {
  for (size_t c = 0; c < channels; ++c) {
    for (size_t p = 0; p < counts.pixels; ++p) {
      const int32_t base = counts.base[counts.border_class[p] * counts.base_stride + c];
      const float acc = static_cast<float>(base - 2 * counts.differing[p * kBlock + c]);
      const float product = acc * scale[c];
      out[c * channel_stride + p] = product + bias[c];
    }
  }
}

}  // namespace
}  // namespace conv
}  // namespace bnnfx

#endif  // BNNFX_CONV_SCALAR_H_
