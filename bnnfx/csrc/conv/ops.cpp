#include "ops.h"

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "convolution.h"

namespace bnnfx {
namespace {

using conv::Block;
using conv::Convolution;
using conv::kBlock;
using conv::kStrip;
using conv::Part;

// One value per output channel, rearranged to the slots of the blocks; slots without a channel get `fill`.
template <class T>
std::vector<T> PerSlot(const Info& info, size_t index, const char* name, int type, const Convolution& conv, T fill) {
  const Tensor values = info.Constant(index, name, type);
  Require(values.dims == std::vector<int64_t>{static_cast<int64_t>(conv.OutChannels())},
          std::string(name) + " has one value for each of the " + std::to_string(conv.OutChannels()) +
              " output channels; got " + values.Describe());
  std::vector<T> slots(conv.Slots(), fill);
  for (size_t b = 0; b < conv.Blocks().size(); ++b) {
    const Block& block = conv.Blocks()[b];
    std::memcpy(&slots[b * kBlock], values.Data<T>() + block.first_channel, block.channels * sizeof(T));
  }
  return slots;
}

class BinaryConv2d {
 public:
  static constexpr const char* kName = "BinaryConv2d";
  static constexpr int kInputs[] = {ORT_UINT8, ORT_UINT8, ORT_FLOAT, ORT_FLOAT};
  static constexpr int kOutput = ORT_FLOAT;

  explicit BinaryConv2d(const Info& info)
      : conv_(info),
        scale_(PerSlot<float>(info, 2, "scale", ORT_FLOAT, conv_, 0)),
        bias_(PerSlot<float>(info, 3, "bias", ORT_FLOAT, conv_, 0)) {}

  void Compute(const Context& context) const {
    const Tensor x = conv_.CheckedInput(context);
    const auto plan = conv_.PlanFor(x);
    const size_t pixels = plan->pixel_offset.size();
    auto* out = static_cast<float*>(context.Output(
        0, {x.dims[0], static_cast<int64_t>(conv_.OutChannels()), plan->out_height, plan->out_width}));
    conv_.Run(context, x, *plan, [&](const Part& part) {
      const size_t channel = part.image * conv_.OutChannels() + part.block->first_channel;
      conv_.Row().affine(part.counts, &scale_[part.slot], &bias_[part.slot], part.block->channels,
                         out + channel * pixels + part.first_pixel, pixels);
    });
  }

 private:
  Convolution conv_;
  std::vector<float> scale_, bias_;  // [slots]
};

class BinaryConv2dThreshold {
 public:
  static constexpr const char* kName = "BinaryConv2dThreshold";
  static constexpr int kInputs[] = {ORT_UINT8, ORT_UINT8, ORT_INT32, ORT_UINT8};
  static constexpr int kOutput = ORT_UINT8;

  // A slot without a channel never reaches the largest threshold, so its bit is 0.
  explicit BinaryConv2dThreshold(const Info& info)
      : conv_(info),
        threshold_(PerSlot<int32_t>(info, 2, "threshold", ORT_INT32, conv_, std::numeric_limits<int32_t>::max())) {
    const int64_t row_bytes = RowBytes(static_cast<int64_t>(conv_.OutChannels()));
    const Tensor flip = info.Constant(3, "flip", ORT_UINT8);
    Require(flip.dims == std::vector<int64_t>{row_bytes},
            "flip is uint8[" + std::to_string(row_bytes) + "], one packed row for the " +
                std::to_string(conv_.OutChannels()) + " output channels; got " + flip.Describe());
    flip_.resize(static_cast<size_t>(row_bytes) / 8);
    std::memcpy(flip_.data(), flip.data, static_cast<size_t>(row_bytes));
  }

  void Compute(const Context& context) const {
    const Tensor x = conv_.CheckedInput(context);
    const auto plan = conv_.PlanFor(x);
    const size_t pixels = plan->pixel_offset.size();
    auto* out = static_cast<uint8_t*>(context.Output(
        0, {x.dims[0], plan->out_height, plan->out_width, static_cast<int64_t>(flip_.size() * 8)}));
    conv_.Run(context, x, *plan, [&](const Part& part) {
      uint64_t bits[kStrip];
      conv_.Row().threshold(part.counts, &threshold_[part.slot], bits);
      uint8_t* rows = out + (part.image * pixels + part.first_pixel) * flip_.size() * 8;
      if (conv_.Groups() == 1) {
        StoreWords(part, bits, rows);
      } else {
        MergeBits(part, bits, rows);
      }
    });
  }

 private:
  // Without groups a block is a whole word of the row.
  void StoreWords(const Part& part, const uint64_t* bits, uint8_t* rows) const {
    const size_t word = part.block->first_channel / 64;
    for (size_t p = 0; p < part.counts.pixels; ++p) {
      const uint64_t flipped = bits[p] ^ flip_[word];
      std::memcpy(rows + (p * flip_.size() + word) * 8, &flipped, 8);
    }
  }

  // With groups a block starts at any bit of the row; the blocks of a pixel come one after the other.
  void MergeBits(const Part& part, const uint64_t* bits, uint8_t* rows) const {
    const size_t row_bytes = flip_.size() * 8;
    const size_t word = part.block->first_channel / 64;
    const size_t shift = part.block->first_channel % 64;
    for (size_t p = 0; p < part.counts.pixels; ++p) {
      uint8_t* row = rows + p * row_bytes;
      if (part.first_of_pixels) std::memcpy(row, flip_.data(), row_bytes);
      Xor(row + word * 8, bits[p] << shift);
      if (shift + part.block->channels > 64) Xor(row + word * 8 + 8, bits[p] >> (64 - shift));
    }
  }

  static void Xor(uint8_t* bytes, uint64_t bits) {
    uint64_t word;
    std::memcpy(&word, bytes, 8);
    word ^= bits;
    std::memcpy(bytes, &word, 8);
  }

  Convolution conv_;
  std::vector<int32_t> threshold_;  // [slots]
  std::vector<uint64_t> flip_;
};

}  // namespace

const OrtCustomOp* BinaryConv2dOp() {
  static const CustomOp<BinaryConv2d> op;
  return &op;
}

const OrtCustomOp* BinaryConv2dThresholdOp() {
  static const CustomOp<BinaryConv2dThreshold> op;
  return &op;
}

}  // namespace bnnfx
