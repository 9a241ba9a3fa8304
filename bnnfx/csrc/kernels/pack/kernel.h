// Kernels of the way from float maps to packed bits: the contract that every instruction set fulfils.

#ifndef BNNFX_PACK_KERNEL_H_
#define BNNFX_PACK_KERNEL_H_

#include <cstddef>
#include <cstdint>

#include "../isa.h"

namespace bnnfx {
namespace pack {

// A threshold that is broadcast: of channel c at pixel p it is value[c * channel + p * pixel].
struct Threshold {
  const float* value;
  size_t channel;  // a step in floats, or 0
  size_t pixel;    // likewise
};

// One row per file, compiled for that instruction set; as in conv/kernel.h.
struct Kernel {
  Isa isa;
  // Bits of `pixels` pixels that are neighbors in memory: bit c of the row out + p * row_bytes is
  // x[c * x_channel + p] >= threshold, and 0 beyond `channels`.
  void (*pack_nchw)(const float* x, size_t x_channel, const Threshold& threshold, size_t channels, size_t pixels,
                    uint8_t* out, size_t row_bytes);
  // The same of x[p * channels + c]; the step of the threshold's channels is 0 or 1.
  void (*pack_nhwc)(const float* x, const Threshold& threshold, size_t channels, size_t pixels, uint8_t* out,
                    size_t row_bytes);
};

}  // namespace pack
}  // namespace bnnfx

#endif  // BNNFX_PACK_KERNEL_H_
