// Kernels of Pack: floats of one channel after the other to bits of one pixel after the other.

#ifndef BNNFX_PACK_KERNEL_H_
#define BNNFX_PACK_KERNEL_H_

#include <cstddef>
#include <cstdint>

#include "../isa.h"

namespace bnnfx {
namespace pack {

struct Kernel {
  Isa isa;
  // For each pixel p below `pixels`: sets the `row_bytes` bytes at out + p * row_bytes to the bits
  //   x[c * x_channel + p] >= t[c * t_channel + p * t_pixel]
  // of the channels c below `channels`, little-endian, and to 0 behind them. Strides count floats; t_pixel is 0 or 1.
  // A comparison with NaN is false.
  void (*pack)(const float* x, size_t x_channel, const float* t, size_t t_channel, size_t t_pixel, size_t channels,
               size_t pixels, uint8_t* out, size_t row_bytes);
};

// One row per file; see conv/kernel.h for what these files may not use.
extern const Kernel kPortable;
extern const Kernel kAvx2;
extern const Kernel kAvx512;

}  // namespace pack
}  // namespace bnnfx

#endif  // BNNFX_PACK_KERNEL_H_
