// Kernels of binary convolution: the contract that every instruction set fulfils.
//
// The arithmetic, in numbered steps:
//
// 1. Of n products of +-1 values, held as bits, those are -1 whose bits differ: acc = n - 2 * d, d = popcount(x xor w).
// 2. The trained network pads with the value 0, which adds nothing. So only the taps of a window that lie inside the
//    map are counted, and n is their number times the channels. Output pixels whose windows have the same taps inside
//    form a border class; the pixels of a strip are of one class, so n is one number for a strip. Nothing is padded.
// 3. Threshold: bit acc >= threshold; the caller xors the flip. Or the float epilogue, whose steps are below.
//
// `count` is step 1 and most of the work. What follows is one pass over its result, which is still in the first-level
// cache. scale and bias cannot be folded into one multiply-add: that rounds once where the definition rounds twice.
//
// A kernel works on a strip of up to kStrip pixels of one image and a block of up to kBlock output channels, which are
// in lanes: no sum across a register is ever needed, and the bits of a pixel are one 64-bit word.

#ifndef BNNFX_CONV_KERNEL_H_
#define BNNFX_CONV_KERNEL_H_

#include <cstddef>
#include <cstdint>

#include "../isa.h"

namespace bnnfx {
namespace conv {

constexpr size_t kBlock = 64;  // output channels of a block
constexpr size_t kStrip = 48;  // pixels
constexpr size_t kAlign = 64;  // bytes: prepared filters start at multiples of it

// A stretch of a window whose words are neighbors in memory, of the map and of the filters: some taps of one row.
struct Run {
  ptrdiff_t input;  // bytes of the prepared map, from the first word of the window
  size_t filter;    // words of the filter, from its first
};

struct Window {
  const Run* runs;
  size_t run_count;
  size_t run_words;  // 64-bit words of each run
};

// The result of `count`: acc[p][lane] = products - 2 * differing[p * kBlock + lane]; lanes beyond `lanes` are not set.
struct Counts {
  const int32_t* differing;
  int32_t products;
  size_t pixels;  // 1 to kStrip
  size_t lanes;   // the block's channels, rounded up to a multiple of the kernel's lane_step
};

// The float epilogue: each value starts as float(acc) and goes through the steps in order, each rounded on its own.
enum class StepKind : uint32_t {
  kScale,    // v * first[slot] + second[slot], rounded after the product and after the sum
  kClamp,    // first where v < first, second where v > second; NaN stays
  kPrelu,    // v where v > 0, else v * first[slot]
  kShift,    // v + first[slot]
  kAdd,      // v + residual
  kStore,    // out = v
  kCompare,  // bit lane of bits[p] = v >= first[slot]
};

struct Step {
  StepKind kind;
  const float* first;   // per slot, where the kind has it
  const float* second;  // per slot, likewise
};

// Where the float streams of a strip and a block are: channels last, value (p, lane) at pixel[p] * stride + lane.
struct Streams {
  const float* residual;
  float* out;
  const uint32_t* pixel;
  size_t stride;
  size_t channels;  // of the block: at most `lanes`; no value beyond is read or written
};

struct Kernel {
  Isa isa;
  size_t lane_step;          // divides kBlock
  size_t input_word_bytes;   // of a prepared 64-bit word of the map
  size_t filter_word_bytes;  // of a prepared 64-bit word of one filter
  // Turns `count` packed words into their prepared form; null where that is the packed one.
  void (*prepare_input)(const uint8_t* words, size_t count, uint8_t* out);
  // Turns one word each of `lanes` filters into lanes * filter_word_bytes bytes. Filters without a channel are 0.
  void (*prepare_filters)(const uint64_t* words, size_t lanes, uint8_t* out);
  // Sets differing[p * kBlock + lane] for `pixels` windows, which start at image + pixel_offset[p] (bytes). `streams` is
  // what the epilogue will use next: a kernel may fetch a little of it with every tile, while its arithmetic leaves the
  // memory idle. Its pointers are null where there is nothing.
  void (*count)(const uint8_t* image, const ptrdiff_t* pixel_offset, size_t pixels, const Window& window,
                const uint8_t* filters, size_t lanes, const Streams& streams, int32_t* differing);
  // bits[p] = word whose bit `lane` is acc[p][lane] >= threshold[lane]; 0 beyond `lanes`.
  void (*threshold)(const Counts& counts, const int32_t* threshold, uint64_t* bits);
  // Takes the constants of a step from `slot` on. bits[p] is 0 beyond the channels if there is a kCompare; else it is
  // not touched.
  void (*epilogue)(const Counts& counts, const Step* steps, size_t step_count, size_t slot, const Streams& streams,
                   uint64_t* bits);
};

// One row per file, compiled for that instruction set. These files use no function of the standard library that is
// a template or inline: the linker keeps one copy of such a function, perhaps that of a set the processor lacks.
extern const Kernel kPortable;
extern const Kernel kAvx2;
extern const Kernel kAvx512;
extern const Kernel kNeon;

}  // namespace conv
}  // namespace bnnfx

#endif  // BNNFX_CONV_KERNEL_H_
