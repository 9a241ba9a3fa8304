// The operators BinaryConv2d*: which steps follow the accumulators, in the order in which their names tell them.
//
//   BinaryConv2d [Twice] [Clamp | Prelu | ShiftedPrelu] [Add [Clamp | Prelu | ShiftedPrelu]] (Float | Bits | FloatBits)
//
// With Twice there are two values for each accumulator, with constants of their own: the channels are all first values
// and then all second ones.
//
// Inputs are x, weight, scale, bias, then those of the steps in order: low and high of a clamp; slope of a Prelu, with
// the shifts before and after it for a ShiftedPrelu; the residual of an Add; the threshold where bits are given.

#ifndef BNNFX_CONV_EPILOGUE_VARIANT_H_
#define BNNFX_CONV_EPILOGUE_VARIANT_H_

#include <string>
#include <vector>

#include "kernel.h"

namespace bnnfx {
namespace conv {

constexpr Activation kActivations[] = {Activation::kNone, Activation::kClamp, Activation::kPrelu,
                                       Activation::kShiftedPrelu};

struct EpilogueVariant {
  bool twice;
  Steps steps;
};

inline const char* Name(Activation activation) {
  switch (activation) {
    case Activation::kClamp:
      return "Clamp";
    case Activation::kPrelu:
      return "Prelu";
    case Activation::kShiftedPrelu:
      return "ShiftedPrelu";
    default:
      return "";
  }
}

// In the order of kernel.h, which is that of the inputs.
inline std::vector<const char*> ConstantNames(Activation activation) {
  switch (activation) {
    case Activation::kClamp:
      return {"low", "high"};
    case Activation::kPrelu:
      return {"slope"};
    case Activation::kShiftedPrelu:
      return {"shift_before", "slope", "shift_after"};
    default:
      return {};
  }
}

inline std::string Name(const EpilogueVariant& variant) {
  const Steps& steps = variant.steps;
  return std::string("BinaryConv2d") + (variant.twice ? "Twice" : "") + Name(steps.before) + (steps.adds ? "Add" : "") +
         Name(steps.after) + (steps.stores ? "Float" : "") + (steps.compares ? "Bits" : "");
}

inline std::vector<EpilogueVariant> AllEpilogues() {
  std::vector<EpilogueVariant> all;
  for (const bool twice : {false, true}) {
    for (const Activation before : kActivations) {
      for (const bool adds : {false, true}) {
        for (const Activation after : kActivations) {
          if (!adds && after != Activation::kNone) continue;
          all.push_back({twice, {before, adds, after, true, false}});
          all.push_back({twice, {before, adds, after, false, true}});
          all.push_back({twice, {before, adds, after, true, true}});
        }
      }
    }
  }
  return all;
}

}  // namespace conv
}  // namespace bnnfx

#endif  // BNNFX_CONV_EPILOGUE_VARIANT_H_
