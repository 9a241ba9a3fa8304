#include "ops.h"

#include <cstring>
#include <deque>
#include <limits>
#include <string>
#include <vector>

#include "convolution.h"
#include "epilogue_variant.h"

namespace bnnfx {
namespace {

using conv::Activation;
using conv::Block;
using conv::Constants;
using conv::Convolution;
using conv::Epilogue;
using conv::EpilogueVariant;
using conv::kBlock;
using conv::kStrip;
using conv::Part;
using conv::Steps;
using conv::Streams;

// One value per output channel, copy by copy in the slots of the blocks; slots without a channel get `fill`. With
// `broadcasts`, one value may stand for all.
template <class T>
std::vector<T> PerSlot(const Info& info, size_t index, const char* name, int type, bool broadcasts,
                       const Convolution& conv, T fill) {
  const Tensor values = info.Constant(index, name, type);
  const auto channels = static_cast<int64_t>(conv.OutChannels());
  Require(values.dims == std::vector<int64_t>{channels} || (broadcasts && values.dims == std::vector<int64_t>{1}), [&] {
    return std::string(name) + (broadcasts ? " has one value, or one" : " has one value") + " for each of the " +
           std::to_string(channels) + " output channels; got " + values.Describe();
  });
  std::vector<T> slots(conv.Copies() * conv.Slots(), fill);
  for (size_t copy = 0; copy < conv.Copies(); ++copy) {
    for (size_t b = 0; b < conv.Blocks().size(); ++b) {
      const Block& block = conv.Blocks()[b];
      const size_t first = copy * conv.CopyChannels() + block.first_channel;
      for (size_t c = 0; c < block.channels; ++c) {
        slots[copy * conv.Slots() + b * kBlock + c] = values.Data<T>()[values.dims[0] == 1 ? 0 : first + c];
      }
    }
  }
  return slots;
}

// The bits of a strip and a block go to their place in packed rows of `words` 64-bit words.
class BitStore {
 public:
  explicit BitStore(const Convolution& conv)
      : row_bytes_(Bytes(conv)), merges_(conv.InOrder()), copy_channels_(conv.CopyChannels()) {}

  int64_t RowBytes() const { return static_cast<int64_t>(row_bytes_); }

  // `flip` is a packed row, or null.
  void Store(const Part& part, size_t copy, const uint64_t* bits, const uint64_t* flip, uint8_t* image) const {
    const size_t channel = copy * copy_channels_ + part.block->first_channel;
    const size_t word = channel / 64;
    const size_t shift = channel % 64;
    const bool first = part.slot == 0 && copy == 0;
    if (!merges_) {  // a block is a whole word of the row
      const uint64_t flipped = flip == nullptr ? 0 : flip[word];
      const uint32_t* pixel = part.pixel;
      const size_t row_bytes = row_bytes_;
      for (size_t p = 0, pixels = part.counts.pixels; p < pixels; ++p) {
        const uint64_t result = bits[p] ^ flipped;
        std::memcpy(image + pixel[p] * row_bytes + word * 8, &result, 8);
      }
      return;
    }
    for (size_t p = 0; p < part.counts.pixels; ++p) {
      uint8_t* row = image + part.pixel[p] * row_bytes_;
      // A block starts at any bit of the row, and the blocks of a pixel come one after the other.
      if (first && flip != nullptr) std::memcpy(row, flip, row_bytes_);
      if (first && flip == nullptr) std::memset(row, 0, row_bytes_);
      Xor(row + word * 8, bits[p] << shift);
      if (shift + part.block->channels > 64) Xor(row + word * 8 + 8, bits[p] >> (64 - shift));
    }
  }

 private:
  static size_t Bytes(const Convolution& conv) {
    return static_cast<size_t>(bnnfx::RowBytes(static_cast<int64_t>(conv.OutChannels())));
  }

  static void Xor(uint8_t* bytes, uint64_t bits) {
    uint64_t word;
    std::memcpy(&word, bytes, 8);
    word ^= bits;
    std::memcpy(bytes, &word, 8);
  }

  size_t row_bytes_;
  bool merges_;
  size_t copy_channels_;
};

class BinaryConv2d {
 public:
  BinaryConv2d(const Info& info, const EpilogueVariant& variant)
      : conv_(info, variant.twice ? 2 : 1), bits_(conv_), steps_(variant.steps) {
    constants_.scale = Next(info, "scale");
    constants_.bias = Next(info, "bias");
    ReadActivation(info, steps_.before, constants_.before);
    if (steps_.adds) residual_input_ = next_input_++;
    ReadActivation(info, steps_.after, constants_.after);
    if (steps_.compares) constants_.threshold = Next(info, "threshold");
  }

  void Compute(const Context& context) const {
    const Tensor x = conv_.CheckedInput(context);
    const auto plan = conv_.PlanFor(x);
    const auto channels = static_cast<int64_t>(conv_.OutChannels());
    const std::vector<int64_t> shape{x.dims[0], plan->out_height, plan->out_width, channels};
    const float* residual = nullptr;
    if (steps_.adds) {
      const Tensor tensor = context.Input(residual_input_, "residual", ORT_FLOAT);
      Require(tensor.dims == shape, [&] {
        return "residual is float" + Describe(shape) + " like the result; got " + tensor.Describe() +
               " with x = " + x.Describe();
      });
      residual = tensor.Data<float>();
    }
    size_t output = 0;
    float* out = steps_.stores ? static_cast<float*>(context.Output(output++, shape)) : nullptr;
    uint8_t* rows = nullptr;
    if (steps_.compares) {
      rows = static_cast<uint8_t*>(context.Output(output, {shape[0], shape[1], shape[2], bits_.RowBytes()}));
    }
    const size_t image_pixels = plan->pixel.size();
    const auto streams_of = [&](const Part& part) {
      const size_t offset = part.image * image_pixels * conv_.OutChannels() + part.block->first_channel;
      return Streams{residual == nullptr ? nullptr : residual + offset, out == nullptr ? nullptr : out + offset,
                     part.pixel, conv_.OutChannels(), part.block->channels};
    };
    const Epilogue epilogue = plan->kernel->epilogue(steps_);
    conv_.Run(context, x, *plan, streams_of, [&](const Part& part, const Streams& first_streams) {
      uint64_t words[kStrip];
      Streams streams = first_streams;
      for (size_t copy = 0; copy < conv_.Copies(); ++copy) {
        const size_t slot = copy * conv_.Slots() + part.slot;
        epilogue(part.counts, constants_, slot, streams, words);
        if (rows != nullptr) {
          uint8_t* image = rows + part.image * image_pixels * static_cast<size_t>(bits_.RowBytes());
          bits_.Store(part, copy, words, nullptr, image);
        }
        if (streams.residual != nullptr) streams.residual += conv_.CopyChannels();
        if (streams.out != nullptr) streams.out += conv_.CopyChannels();
      }
    });
  }

 private:
  const float* Next(const Info& info, const char* name) {
    values_.push_back(PerSlot<float>(info, next_input_++, name, ORT_FLOAT, true, conv_, 0.0f));
    return values_.back().data();
  }

  void ReadActivation(const Info& info, Activation activation, const float* (&constants)[conv::kMostConstants]) {
    size_t i = 0;
    for (const char* name : conv::ConstantNames(activation)) constants[i++] = Next(info, name);
  }

  Convolution conv_;
  BitStore bits_;
  Steps steps_;
  size_t next_input_ = 2;
  size_t residual_input_ = 0;
  std::deque<std::vector<float>> values_;  // [slots] each; a deque, because the constants point into it
  Constants constants_{};
};

class BinaryConv2dThreshold {
 public:
  // A slot without a channel never reaches the largest threshold, so its bit is 0.
  BinaryConv2dThreshold(const Info& info, size_t copies)
      : conv_(info, copies),
        bits_(conv_),
        threshold_(PerSlot<int32_t>(info, 2, "threshold", ORT_INT32, false, conv_,
                                    std::numeric_limits<int32_t>::max())) {
    const Tensor flip = info.Constant(3, "flip", ORT_UINT8);
    Require(flip.dims == std::vector<int64_t>{bits_.RowBytes()}, [&] {
      return "flip is uint8[" + std::to_string(bits_.RowBytes()) + "], one packed row for the " +
             std::to_string(conv_.OutChannels()) + " output channels; got " + flip.Describe();
    });
    flip_.resize(static_cast<size_t>(bits_.RowBytes()) / 8);
    std::memcpy(flip_.data(), flip.data, flip_.size() * 8);
  }

  void Compute(const Context& context) const {
    const Tensor x = conv_.CheckedInput(context);
    const auto plan = conv_.PlanFor(x);
    auto* rows = static_cast<uint8_t*>(
        context.Output(0, {x.dims[0], plan->out_height, plan->out_width, bits_.RowBytes()}));
    const size_t image_bytes = plan->pixel.size() * flip_.size() * 8;
    const auto no_streams = [](const Part&) { return Streams{}; };
    conv_.Run(context, x, *plan, no_streams, [&](const Part& part, const Streams&) {
      uint64_t words[kStrip];
      for (size_t copy = 0; copy < conv_.Copies(); ++copy) {
        plan->kernel->threshold(part.counts, &threshold_[copy * conv_.Slots() + part.slot], words);
        bits_.Store(part, copy, words, flip_.data(), rows + part.image * image_bytes);
      }
    });
  }

 private:
  Convolution conv_;
  BitStore bits_;
  std::vector<int32_t> threshold_;  // [slots]
  std::vector<uint64_t> flip_;
};

Signature SignatureOf(const EpilogueVariant& variant) {
  const Steps& steps = variant.steps;
  const size_t before_sum = 4 + conv::ConstantNames(steps.before).size();
  const size_t inputs = before_sum + steps.adds + conv::ConstantNames(steps.after).size() + steps.compares;
  Signature signature{Name(variant), {ORT_UINT8, ORT_UINT8}, {}};
  signature.inputs.resize(inputs, ORT_FLOAT);
  if (steps.stores) signature.outputs.push_back(ORT_FLOAT);
  // Each value of the stream is stored where, and after, its value of the residual was read. That memory is in the
  // cache.
  if (steps.stores && steps.adds) signature.reused = before_sum;
  if (steps.compares) signature.outputs.push_back(ORT_UINT8);
  return signature;
}

}  // namespace

std::vector<OpPointer> BinaryConv2dOps() {
  const std::vector<int> inputs{ORT_UINT8, ORT_UINT8, ORT_INT32, ORT_UINT8};
  using Threshold = CustomOp<BinaryConv2dThreshold, size_t>;
  std::vector<OpPointer> ops{
      std::make_shared<Threshold>(Signature{"BinaryConv2dThreshold", inputs, {ORT_UINT8}}, size_t{1}),
      std::make_shared<Threshold>(Signature{"BinaryConv2dTwiceThreshold", inputs, {ORT_UINT8}}, size_t{2})};
  for (const EpilogueVariant& variant : conv::AllEpilogues()) {
    ops.push_back(std::make_shared<CustomOp<BinaryConv2d, EpilogueVariant>>(SignatureOf(variant), variant));
  }
  return ops;
}

}  // namespace bnnfx
