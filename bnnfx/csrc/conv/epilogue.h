// What follows the counting (kernel.h, step 3), for vectors of any width; `Lanes` as lanes/load.h says. In an unnamed
// namespace, so that each file that includes it gets its own copy, compiled with its own flags.

#ifndef BNNFX_CONV_EPILOGUE_H_
#define BNNFX_CONV_EPILOGUE_H_

#include <cstring>

#include "../lanes/load.h"
#include "kernel.h"

namespace bnnfx {
namespace conv {
namespace {

// kernel.h: the accumulators of one vector.
template <class Integers, bool doubled>
inline Integers Accumulators(Integers base, const int32_t* from) {
  const Integers counted = Load<Integers>(from);
  return doubled ? base - (counted + counted) : base - counted;
}

template <class Lanes, bool doubled, size_t vectors>
inline uint64_t ThresholdVectors(const int32_t* base, const int32_t* counted, const int32_t* threshold) {
  using Integers = typename Lanes::Integers;
  uint64_t word = 0;
  _Pragma("GCC unroll 4") for (size_t i = 0; i < vectors; ++i) {
    const size_t at = i * Lanes::kWidth;
    const Integers acc = Accumulators<Integers, doubled>(Load<Integers>(base + at), counted + at);
    word |= static_cast<uint64_t>(Lanes::AtLeast(acc, Load<Integers>(threshold + at))) << at;
  }
  return word;
}

template <class Lanes, bool doubled>
void ThresholdStrip(const Counts& counts, const int32_t* threshold, uint64_t* bits) {
  constexpr size_t width = Lanes::kWidth;
  for (size_t p = 0; p < counts.pixels; ++p) {
    const int32_t* counted = counts.counted + counts.row[p] * kBlock;
    uint64_t word = 0;
    size_t lane = 0;
    for (; lane + 4 * width <= counts.lanes; lane += 4 * width) {
      word |= ThresholdVectors<Lanes, doubled, 4>(counts.base + lane, counted + lane, threshold + lane) << lane;
    }
    for (; lane < counts.lanes; lane += width) {
      word |= ThresholdVectors<Lanes, doubled, 1>(counts.base + lane, counted + lane, threshold + lane) << lane;
    }
    bits[p] = word;
  }
}

template <class Lanes>
void ThresholdLanes(const Counts& counts, const int32_t* threshold, uint64_t* bits) {
  (counts.doubled ? ThresholdStrip<Lanes, true> : ThresholdStrip<Lanes, false>)(counts, threshold, bits);
}

// Choosing what a step does takes about as long as doing it for four vectors, so a tile has more.
constexpr size_t kTilePixels = 4;

// `vectors` neighboring vectors of `pixels` pixels stay in registers from step to step. With `whole` all their
// channels exist; otherwise the values of a stream are moved one vector at a time through memory.
template <class Lanes, bool doubled, size_t pixels, size_t vectors, bool whole>
inline void EpilogueTile(const Counts& counts, const Step* steps, size_t step_count, size_t slot, const Streams& streams,
                         size_t first_pixel, size_t first_lane, uint64_t* bits) {
  using Floats = typename Lanes::Floats;
  using Integers = typename Lanes::Integers;
  constexpr size_t width = Lanes::kWidth;
  Floats v[pixels][vectors];
#define BNNFX_EACH_PIXEL _Pragma("GCC unroll 4") for (size_t p = 0; p < pixels; ++p)
#define BNNFX_EACH_VECTOR _Pragma("GCC unroll 4") for (size_t i = 0; i < vectors; ++i)
  BNNFX_EACH_VECTOR {
    const size_t lane = first_lane + i * width;
    const Integers base = Load<Integers>(counts.base + lane);
    BNNFX_EACH_PIXEL {
      const int32_t* counted = counts.counted + counts.row[first_pixel + p] * kBlock + lane;
      v[p][i] = __builtin_convertvector((Accumulators<Integers, doubled>(base, counted)), Floats);
    }
  }
  const auto valid = [&](size_t i) -> size_t {  // channels of a vector that exist
    const size_t begin = first_lane + i * width;
    const size_t left = streams.channels > begin ? streams.channels - begin : 0;
    return left < width ? left : width;
  };
  for (size_t s = 0; s < step_count; ++s) {
    const Step& step = steps[s];
    const float* first = step.first == nullptr ? nullptr : step.first + slot + first_lane;
    const float* second = step.second == nullptr ? nullptr : step.second + slot + first_lane;
    switch (step.kind) {
      case StepKind::kScale:
        BNNFX_EACH_VECTOR {
          const Floats scale = Load<Floats>(first + i * width);
          const Floats bias = Load<Floats>(second + i * width);
          BNNFX_EACH_PIXEL v[p][i] = v[p][i] * scale + bias;  // two roundings: compiled with -ffp-contract=off
        }
        break;
      case StepKind::kClamp:
        BNNFX_EACH_VECTOR {
          const Floats low = Load<Floats>(first + i * width);
          const Floats high = Load<Floats>(second + i * width);
          BNNFX_EACH_PIXEL {
            const Floats below = v[p][i] < low ? low : v[p][i];
            v[p][i] = v[p][i] > high ? high : below;
          }
        }
        break;
      case StepKind::kPrelu:
        BNNFX_EACH_VECTOR {
          const Floats slope = Load<Floats>(first + i * width);
          BNNFX_EACH_PIXEL v[p][i] = v[p][i] > 0.0f ? v[p][i] : v[p][i] * slope;
        }
        break;
      case StepKind::kShift:
        BNNFX_EACH_VECTOR {
          const Floats shift = Load<Floats>(first + i * width);
          BNNFX_EACH_PIXEL v[p][i] = v[p][i] + shift;
        }
        break;
      case StepKind::kAdd:
        BNNFX_EACH_PIXEL {
          const float* from = streams.residual + streams.pixel[first_pixel + p] * streams.stride + first_lane;
          BNNFX_EACH_VECTOR {
            Floats x{};
            if (whole) {
              x = Load<Floats>(from + i * width);
            } else {
              std::memcpy(&x, from + i * width, valid(i) * sizeof(float));
            }
            v[p][i] = v[p][i] + x;
          }
        }
        break;
      case StepKind::kStore:
        BNNFX_EACH_PIXEL {
          float* to = streams.out + streams.pixel[first_pixel + p] * streams.stride + first_lane;
          BNNFX_EACH_VECTOR {
            const Floats x = v[p][i];
            std::memcpy(to + i * width, &x, (whole ? width : valid(i)) * sizeof(float));
          }
        }
        break;
      case StepKind::kCompare:
        BNNFX_EACH_PIXEL {
          uint64_t word = first_lane == 0 ? 0 : bits[first_pixel + p];
          BNNFX_EACH_VECTOR {
            uint32_t mask = Lanes::AtLeast(v[p][i], Load<Floats>(first + i * width));
            if (!whole) mask &= (1u << valid(i)) - 1;
            word |= static_cast<uint64_t>(mask) << (first_lane + i * width);
          }
          bits[first_pixel + p] = word;
        }
        break;
    }
  }
#undef BNNFX_EACH_PIXEL
#undef BNNFX_EACH_VECTOR
}

template <class Lanes, bool doubled, size_t vectors, bool whole>
inline void EpilogueVectors(const Counts& counts, const Step* steps, size_t step_count, size_t slot, const Streams& streams,
                            size_t lane, uint64_t* bits) {
  size_t p = 0;
  for (; p + kTilePixels <= counts.pixels; p += kTilePixels) {
    EpilogueTile<Lanes, doubled, kTilePixels, vectors, whole>(counts, steps, step_count, slot, streams, p, lane, bits);
  }
  for (; p < counts.pixels; ++p) {
    EpilogueTile<Lanes, doubled, 1, vectors, whole>(counts, steps, step_count, slot, streams, p, lane, bits);
  }
}

template <class Lanes, bool doubled>
void EpilogueStrip(const Counts& counts, const Step* steps, size_t step_count, size_t slot, const Streams& streams,
                   uint64_t* bits) {
  constexpr size_t width = Lanes::kWidth;
  size_t lane = 0;
  for (; lane + 4 * width <= streams.channels; lane += 4 * width) {
    EpilogueVectors<Lanes, doubled, 4, true>(counts, steps, step_count, slot, streams, lane, bits);
  }
  for (; lane + width <= streams.channels; lane += width) {
    EpilogueVectors<Lanes, doubled, 1, true>(counts, steps, step_count, slot, streams, lane, bits);
  }
  if (lane < streams.channels) EpilogueVectors<Lanes, doubled, 1, false>(counts, steps, step_count, slot, streams, lane, bits);
}

template <class Lanes>
void EpilogueLanes(const Counts& counts, const Step* steps, size_t step_count, size_t slot, const Streams& streams,
                   uint64_t* bits) {
  const auto strip = counts.doubled ? &EpilogueStrip<Lanes, true> : &EpilogueStrip<Lanes, false>;
  strip(counts, steps, step_count, slot, streams, bits);
}

}  // namespace
}  // namespace conv
}  // namespace bnnfx

#endif  // BNNFX_CONV_EPILOGUE_H_
