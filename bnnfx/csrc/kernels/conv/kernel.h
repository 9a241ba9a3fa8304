// Kernels of binary convolution: the contract that every instruction set fulfils.
//
// The arithmetic, in numbered steps:
//
// 1. Weights are +-1, held as bits. So are the values of the map; or a zero bit of the map means 0 (`low`). With
//    d = popcount(x xor w), the sum of the products is acc = n - 2 * d of n products; or, where a zero bit means 0,
//    acc = ones - d, with `ones` the weights that are +1. Both are a `base` minus d or 2 * d.
// 2. The trained network pads with the value 0, which adds nothing. So only the taps of a window that lie inside the
//    map are counted, and n and `ones` are of these. Output pixels whose windows have the same taps inside form a
//    border class; the pixels of a strip are of one class, so `base` is one number per channel for a strip. Nothing is
//    padded.
// 2a. A kernel that multiplies instead of counting (`multiplies`) gives -acc itself, so that base is 0. To it a padded
//    tap is a product like others: it reads zeros around the map, and there is one border class.
// 3. Threshold: bit acc >= threshold; the caller xors the flip. Or the float epilogue, whose steps are below.
//
// `count` is step 1 and most of the work. What follows is one pass over its result, which is still in the first-level
// cache. scale and bias cannot be folded into one multiply-add: that rounds once where the definition rounds twice.
//
// A kernel works on a strip of up to kStrip windows of one image and a block of up to kBlock output channels, which are
// in lanes: no sum across a register is ever needed, and the bits of a pixel are one 64-bit word.

#ifndef BNNFX_CONV_KERNEL_H_
#define BNNFX_CONV_KERNEL_H_

#include <cstddef>
#include <cstdint>

#include "../isa.h"
#include "generated/steps.h"

namespace bnnfx {
namespace conv {

constexpr size_t kBlock = 64;  // output channels of a block
constexpr size_t kStrip = 48;  // windows
constexpr size_t kTile = 16;   // windows of a tile
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
  ptrdiff_t step;    // bytes of the prepared map from a window to the next one of the same row
  int shift;         // what is counted is given as d << shift, so that `base` minus that is acc
};

// The result of `count`: acc[p][lane] = base[lane] - counted[row[p] * kBlock + lane]; lanes beyond `lanes` are not set.
struct Counts {
  const int32_t* counted;
  const uint8_t* row;  // by pixel
  const int32_t* base;
  size_t pixels;  // 1 to kStrip
  size_t lanes;   // the block's channels, rounded up to a multiple of the kernel's lane_step
};

// The float epilogue: each value starts as v = float(acc) * scale + bias, rounded after the product and after the sum,
// and goes through these steps, each rounded on its own. What a Step is, bnnfx/ops/steps.py says.
struct Steps {
  Step before;
  bool adds;              // v + residual
  Step after;             // none without a residual
  bool stores, compares;  // out = v; bit lane of bits[p] = v >= threshold; at least one of them
};

// One value for each slot; null where a step has none.
struct Constants {
  const float* scale;
  const float* bias;
  const float* before[kMostConstants];
  const float* after[kMostConstants];
  const float* threshold;
};

// Where the float streams of a strip and a block are: channels last, value (p, lane) at pixel[p] * stride + lane.
struct Streams {
  const float* residual;
  float* out;
  const uint32_t* pixel;
  size_t stride;
  size_t channels;  // of the block: at most `lanes`; no value beyond is read or written
};

// A function for certain steps, which takes the constants from `slot` on. bits[p] is 0 beyond the channels if it
// compares; else it is not touched.
using Epilogue = void (*)(const Counts& counts, const Constants& constants, size_t slot, const Streams& streams,
                          uint64_t* bits);

// Memory that will be needed soon. A kernel may fetch a little of it with every few windows, while its arithmetic
// leaves the memory idle.
struct Upcoming {
  Streams streams;         // of the epilogue after this count; without pointers where there are none
  const uint8_t* filters;  // some of those of the next block
  size_t filter_bytes;
};

// What a pixel of the map is made of.
struct Pixel {
  size_t words;      // 64-bit
  uint64_t in_last;  // the bits of the last word that are channels
  int32_t low;       // value of a zero bit: -1 or 0
};

// One row per file, named for the instruction set that it is compiled for: avx2.cpp holds kAvx2. These files use no
// function of the standard library that is a template or inline: the linker keeps one copy of such a function, perhaps
// that of a set the processor lacks. The list of them, best first, is generated/conv_kernels.h.
struct Kernel {
  Isa isa;
  // See step 2a. Such a kernel takes windows in tiles: kTile of them at multiples of Window::step from the first one.
  // Not all of them may be wanted, and memory up to kTile steps beyond the map can be read.
  bool multiplies;
  size_t strip;              // windows, at most kStrip; more than that do not pay
  size_t least_pixels;       // of an output map; for fewer, a later row of the list is the better one
  size_t lane_step;          // divides kBlock
  size_t input_word_bytes;   // of a prepared 64-bit word of the map
  size_t filter_word_bytes;  // of a prepared 64-bit word of one filter
  // What a thread does before its first `count` and after its last; null where that is nothing.
  void (*begin)();
  void (*end)();
  // Turns packed pixels into their prepared form; null where that is the packed one.
  void (*prepare_input)(const uint8_t* words, size_t pixels, const Pixel& pixel, uint8_t* out);
  // Turns one word each of `lanes` filters into lanes * filter_word_bytes bytes. Filters without a channel are 0.
  void (*prepare_filters)(const uint64_t* words, size_t lanes, uint8_t* out);
  // Where `expansion` is not 1, `count` wants the prepared filters that many times as large: expanded by each thread when
  // it comes to a node, because to read them so from far away takes longer. `bytes` is that of the prepared ones.
  size_t expansion;
  void (*expand_filters)(const uint8_t* prepared, size_t bytes, uint8_t* out);
  // Sets counted[w * kBlock + lane] for `count` windows, which start at image + offset[w] (bytes). If it multiplies,
  // for `count` tiles of windows; window i of tile t in row kTile * t + i.
  void (*count)(const uint8_t* image, const ptrdiff_t* offset, size_t count, const Window& window,
                const uint8_t* filters, size_t lanes, const Upcoming& upcoming, int32_t* counted);
  // bits[p] = word whose bit `lane` is acc[p][lane] >= threshold[lane]; 0 beyond `lanes`.
  void (*threshold)(const Counts& counts, const int32_t* threshold, uint64_t* bits);
  // The function for these steps.
  Epilogue (*epilogue)(const Steps& steps);
};

// Of kAvx512, for kAmx too.
void Avx512Threshold(const Counts& counts, const int32_t* threshold, uint64_t* bits);
Epilogue Avx512Epilogue(const Steps& steps);

}  // namespace conv
}  // namespace bnnfx

#endif  // BNNFX_CONV_KERNEL_H_
