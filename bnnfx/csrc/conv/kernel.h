// Kernels of binary convolution: the contract that every instruction set fulfils.
//
// The arithmetic, in numbered steps:
//
// 1. Of n products of +-1 values, held as bits, those are -1 whose bits differ: acc = n - 2 * d, d = popcount(x xor w).
// 2. The input is padded with 0 bits, which would stand for -1; the trained network pads with the value 0. Over the
//    taps of a window that lie inside the map (there are v, of C channels each) and outside of it:
//      acc = C * v - 2 * d_inside,  d = d_inside + d_outside,  d_outside = popcount(w_outside)
//    so acc = base - 2 * d with base = C * v + 2 * popcount(w_outside), which depends only on the output channel and
//    on which taps lie inside: the border class of the pixel. Most pixels share one class.
// 3. Affine: float(acc) * scale, rounded, + bias, rounded.
// 4. Threshold: bit acc >= threshold; the caller xors the flip.
//
// `count` is step 1 and most of the work. Steps 2 to 4 are one pass over its result, which is still in the first-level
// cache. Step 2 is not folded into the thresholds, because of the border classes. Step 3 cannot be folded into one
// multiply-add: that rounds once.
//
// A kernel works on a strip of up to kStrip pixels (of one image, any of them) and a block of up to kBlock output
// channels, which are in lanes: no sum across a register is ever needed, and the bits of a pixel are one 64-bit word.

#ifndef BNNFX_CONV_KERNEL_H_
#define BNNFX_CONV_KERNEL_H_

#include <cstddef>
#include <cstdint>

#include "../isa.h"

namespace bnnfx {
namespace conv {

constexpr size_t kLanes = 16;  // output channels that are computed together
constexpr size_t kBlock = 64;  // output channels of a block, a multiple of kLanes
constexpr size_t kStrip = 48;  // pixels, a multiple of 6 and of 16

// Where the words of a window are: `runs` stretches of `run_words` 32-bit words each, `run_offset[i]` bytes behind the
// first word. Taps that are neighbors in memory are in one run.
struct Window {
  const ptrdiff_t* run_offset;
  size_t runs;
  size_t run_words;
};

// Weights of a block of output channels: uint32[runs * run_words][lanes], `lanes` being 16, 32, 48 or 64.
struct Filters {
  const uint32_t* words;
  size_t lanes;
};

// The result of `count` and what turns it into accumulators:
//   acc[p][lane] = base[border_class[p] * base_stride + lane] - 2 * differing[p * kBlock + lane].
struct Counts {
  const int32_t* differing;      // [pixels][kBlock]; lanes beyond `lanes` are not set
  const int32_t* base;           // [classes][base_stride], from the first channel of the block
  size_t base_stride;
  const uint32_t* border_class;  // [pixels]
  size_t pixels;                 // 1 to kStrip
  size_t lanes;                  // as in Filters
};

struct Kernel {
  Isa isa;
  // Sets differing[p * kBlock + lane] for `pixels` windows, which start at image + pixel_offset[p] (bytes).
  void (*count)(const uint8_t* image, const ptrdiff_t* pixel_offset, size_t pixels, const Window& window,
                const Filters& filters, int32_t* differing);
  // bits[p] = word whose bit `lane` is acc[p][lane] >= threshold[lane]; 0 beyond `lanes`.
  void (*threshold)(const Counts& counts, const int32_t* threshold, uint64_t* bits);
  // out[c * channel_stride + p] = float(acc[p][c]) * scale[c] + bias[c] for c below `channels`, which is at most
  // `lanes`; scale and bias may be read up to `lanes`.
  void (*affine)(const Counts& counts, const float* scale, const float* bias, size_t channels, float* out,
                 size_t channel_stride);
};

// One row per file, compiled for that instruction set. These files use no function of the standard library that is
// a template or inline: the linker keeps one copy of such a function, perhaps that of a set the processor lacks.
extern const Kernel kPortable;
extern const Kernel kAvx2;
extern const Kernel kAvx512;

}  // namespace conv
}  // namespace bnnfx

#endif  // BNNFX_CONV_KERNEL_H_
