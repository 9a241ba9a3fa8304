// What follows the counting (kernel.h, step 3), for vectors of any width; `Lanes` as lanes/load.h says. In an unnamed
// namespace, so that each file that includes it gets its own copy, compiled with its own flags.
//
// There is a function for each combination of steps. To choose a step takes longer than to do it for one pixel, and
// constants stay in registers only where the compiler sees all that is done with them.

#ifndef BNNFX_CONV_EPILOGUE_H_
#define BNNFX_CONV_EPILOGUE_H_

#include <cstring>
#include <utility>

#include "../lanes/load.h"
#include "kernel.h"

namespace bnnfx {
namespace conv {
namespace {

#define BNNFX_EACH_VECTOR _Pragma("GCC unroll 4") for (size_t i = 0; i < vectors; ++i)

template <class Lanes, size_t vectors>
inline uint64_t ThresholdVectors(const int32_t* base, const int32_t* counted, const int32_t* threshold) {
  using Integers = typename Lanes::Integers;
  uint64_t word = 0;
  BNNFX_EACH_VECTOR {
    const size_t at = i * Lanes::kWidth;
    const Integers acc = Load<Integers>(base + at) - Load<Integers>(counted + at);
    word |= static_cast<uint64_t>(Lanes::AtLeast(acc, Load<Integers>(threshold + at))) << at;
  }
  return word;
}

template <class Lanes>
void ThresholdLanes(const Counts& counts, const int32_t* threshold, uint64_t* bits) {
  constexpr size_t width = Lanes::kWidth;
  for (size_t p = 0; p < counts.pixels; ++p) {
    const int32_t* counted = counts.counted + counts.row[p] * kBlock;
    uint64_t word = 0;
    size_t lane = 0;
    for (; lane + 4 * width <= counts.lanes; lane += 4 * width) {
      word |= ThresholdVectors<Lanes, 4>(counts.base + lane, counted + lane, threshold + lane) << lane;
    }
    for (; lane < counts.lanes; lane += width) {
      word |= ThresholdVectors<Lanes, 1>(counts.base + lane, counted + lane, threshold + lane) << lane;
    }
    bits[p] = word;
  }
}

// The same constant of neighboring channels.
template <class Lanes, size_t vectors>
struct Constant {
  using Floats = typename Lanes::Floats;
  explicit Constant(const float* from) { BNNFX_EACH_VECTOR value[i] = Load<Floats>(from + i * Lanes::kWidth); }
  Floats value[vectors];
};

// The same number everywhere; made so that the sign of a zero stays.
template <class Floats>
inline Floats Broadcast(float value) {
  Floats v{};
  for (size_t i = 0; i < sizeof(Floats) / sizeof(float); ++i) v[i] = value;
  return v;
}

// What a step does to a vector, vector `i` of neighboring ones. That of kNone does nothing; the others are made from
// bnnfx/ops/steps.py.
template <class Lanes, size_t vectors, Step step>
struct StepFunction {
  StepFunction(const float* const*, size_t) {}
  template <class Floats>
  Floats operator()(Floats x, size_t) const {
    return x;
  }
};

}  // namespace
}  // namespace conv
}  // namespace bnnfx

#include "generated/step_functions.h"

namespace bnnfx {
namespace conv {
namespace {

// `vectors` neighboring vectors of all pixels of a strip. Of the only one, perhaps not all channels exist, but the
// first `valid`; of several they do.
template <class Lanes, size_t vectors, Step before, bool adds, Step after, bool stores, bool compares>
inline void EpilogueVectors(const Counts& counts, const Constants& constants, size_t slot, const Streams& streams,
                            size_t lane, size_t valid, uint64_t* bits) {
  using Floats = typename Lanes::Floats;
  using Integers = typename Lanes::Integers;
  constexpr size_t width = Lanes::kWidth;
  const bool whole = vectors > 1 || valid == width;
  slot += lane;
  Integers base[vectors];
  BNNFX_EACH_VECTOR base[i] = Load<Integers>(counts.base + lane + i * width);
  const Constant<Lanes, vectors> scale(constants.scale + slot);
  const Constant<Lanes, vectors> bias(constants.bias + slot);
  const StepFunction<Lanes, vectors, before> step_before(constants.before, slot);
  const StepFunction<Lanes, vectors, after> step_after(constants.after, slot);
  const Constant<Lanes, vectors> threshold((compares ? constants.threshold : constants.scale) + slot);
  // Read once: for all the compiler knows, what is stored to `out` might be any of these.
  const int32_t* counted = counts.counted + lane;
  const uint8_t* row = counts.row;
  const uint32_t* pixel = streams.pixel;
  const float* residual = adds ? streams.residual + lane : nullptr;
  float* out = stores ? streams.out + lane : nullptr;
  const size_t stride = streams.stride;
  const size_t pixels = counts.pixels;
  for (size_t p = 0; p < pixels; ++p) {
    const size_t at = pixel[p] * stride;
    const int32_t* from = counted + row[p] * kBlock;
    Floats v[vectors];
    uint64_t word = 0;
    BNNFX_EACH_VECTOR {
      v[i] = __builtin_convertvector(base[i] - Load<Integers>(from + i * width), Floats);
      v[i] = v[i] * scale.value[i] + bias.value[i];  // two roundings: compiled with -ffp-contract=off
      v[i] = step_before(v[i], i);
      if (adds) {
        Floats x{};
        if (whole) {
          x = Load<Floats>(residual + at + i * width);
        } else {
          std::memcpy(&x, residual + at, valid * sizeof(float));
        }
        v[i] = step_after(v[i] + x, i);
      }
    }
    BNNFX_EACH_VECTOR {
      const Floats x = v[i];
      if (stores && whole) std::memcpy(out + at + i * width, &x, sizeof(x));
      if (stores && !whole) std::memcpy(out + at, &x, valid * sizeof(float));
      if (compares) {
        uint32_t mask = Lanes::AtLeast(x, threshold.value[i]);
        if (!whole) mask &= (1u << valid) - 1;
        word |= static_cast<uint64_t>(mask) << (i * width);
      }
    }
    if (compares) bits[p] = lane == 0 ? word : bits[p] | word << lane;
  }
}

template <class Lanes, Step before, bool adds, Step after, bool stores, bool compares>
void EpilogueStrip(const Counts& counts, const Constants& constants, size_t slot, const Streams& streams,
                   uint64_t* bits) {
  constexpr size_t width = Lanes::kWidth;
  size_t lane = 0;
  for (; lane + 4 * width <= streams.channels; lane += 4 * width) {
    EpilogueVectors<Lanes, 4, before, adds, after, stores, compares>(counts, constants, slot, streams, lane, width,
                                                                     bits);
  }
  for (; lane < streams.channels; lane += width) {
    const size_t left = streams.channels - lane;
    EpilogueVectors<Lanes, 1, before, adds, after, stores, compares>(counts, constants, slot, streams, lane,
                                                                     left < width ? left : width, bits);
  }
}

// All epilogues have numbers: with `before`, then `then` (0 for no sum, 1 + after with one), then `outputs`, a sum of
// 1 if it stores and 2 if it compares, less 1.
constexpr size_t kThens = 1 + kStepCount;
constexpr size_t kOutputs = 3;

template <class Lanes, size_t number>
constexpr Epilogue NumberedEpilogue() {
  constexpr size_t outputs = number % kOutputs + 1;
  constexpr size_t then = number / kOutputs % kThens;
  constexpr auto before = static_cast<Step>(number / kOutputs / kThens);
  constexpr auto after = static_cast<Step>(then == 0 ? 0 : then - 1);
  return &EpilogueStrip<Lanes, before, then != 0, after, (outputs & 1) != 0, (outputs & 2) != 0>;
}

template <class Lanes, size_t... numbers>
Epilogue EpilogueOf(size_t number, std::index_sequence<numbers...>) {
  static constexpr Epilogue kEpilogues[] = {NumberedEpilogue<Lanes, numbers>()...};
  return kEpilogues[number];
}

template <class Lanes>
Epilogue EpilogueLanes(const Steps& steps) {
  const size_t then = steps.adds ? 1 + static_cast<size_t>(steps.after) : 0;
  const size_t outputs = static_cast<size_t>(steps.stores) + 2 * static_cast<size_t>(steps.compares) - 1;
  const size_t number = (static_cast<size_t>(steps.before) * kThens + then) * kOutputs + outputs;
  return EpilogueOf<Lanes>(number, std::make_index_sequence<kStepCount * kThens * kOutputs>());
}

#undef BNNFX_EACH_VECTOR

}  // namespace
}  // namespace conv
}  // namespace bnnfx

#endif  // BNNFX_CONV_EPILOGUE_H_
