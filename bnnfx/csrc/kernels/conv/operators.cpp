#include <cstring>
#include <deque>
#include <limits>
#include <string>
#include <vector>

#include "../operator.h"
#include "convolution.h"

namespace bnnfx {
namespace {

using conv::Block;
using conv::Constants;
using conv::Convolution;
using conv::Epilogue;
using conv::kBlock;
using conv::kStrip;
using conv::Part;
using conv::Step;
using conv::Steps;
using conv::Streams;

// One value per output channel, copy by copy in the slots of the blocks; slots without a channel get `fill`. With
// `broadcasts`, one value may stand for all.
template <class T>
std::vector<T> PerSlot(const Node& node, size_t index, bool broadcasts, const Convolution& conv, T fill) {
  const Tensor& values = node.Constant(index);
  const auto channels = static_cast<int64_t>(conv.OutChannels());
  Require(values.dims == std::vector<int64_t>{channels} || (broadcasts && values.dims == std::vector<int64_t>{1}), [&] {
    return std::string(node.InputName(index)) + (broadcasts ? " has one value, or one" : " has one value") +
           " for each of the " + std::to_string(channels) + " output channels; got " + values.Describe();
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

class BinaryConv2d : public Operator {
 public:
  explicit BinaryConv2d(const Node& node)
      : conv_(node),
        bits_(conv_),
        steps_{static_cast<Step>(node.Integer("before")), node.Integer("adds") != 0,
               static_cast<Step>(node.Integer("after")), node.Integer("stores") != 0, node.Integer("compares") != 0} {
    size_t input = 2;
    const auto next = [&] {
      values_.push_back(PerSlot<float>(node, input++, true, conv_, 0.0f));
      return values_.back().data();
    };
    const auto read = [&](Step step, const float*(&constants)[conv::kMostConstants]) {
      for (size_t i = 0; i < conv::kConstantCount[static_cast<size_t>(step)]; ++i) constants[i] = next();
    };
    constants_.scale = next();
    constants_.bias = next();
    read(steps_.before, constants_.before);
    if (steps_.adds) ++input;
    read(steps_.after, constants_.after);
    if (steps_.compares) constants_.threshold = next();
  }

  void Run(const std::vector<Tensor>& inputs, const Host& host) const override {
    const Tensor& x = inputs[0];
    const auto map = conv_.OutputMap(x);
    const auto channels = static_cast<int64_t>(conv_.OutChannels());
    const std::vector<int64_t> shape{x.dims[0], map[0], map[1], channels};
    const float* residual = nullptr;
    if (steps_.adds) {
      Require(inputs[1].dims == shape, [&] {
        return "residual is float" + Describe(shape) + " like the result; got " + inputs[1].Describe() +
               " with x = " + x.Describe();
      });
      residual = inputs[1].Data<float>();
    }
    size_t output = 0;
    float* out = steps_.stores ? static_cast<float*>(host.Output(output++, shape)) : nullptr;
    uint8_t* rows = nullptr;
    if (steps_.compares) {
      rows = static_cast<uint8_t*>(host.Output(output, {shape[0], shape[1], shape[2], bits_.RowBytes()}));
    }
    if (x.dims[0] == 0) return;
    const auto plan = conv_.PlanFor(x);
    const size_t image_pixels = plan->pixel.size();
    const auto streams_of = [&](const Part& part) {
      const size_t offset = part.image * image_pixels * conv_.OutChannels() + part.block->first_channel;
      return Streams{residual == nullptr ? nullptr : residual + offset, out == nullptr ? nullptr : out + offset,
                     part.pixel, conv_.OutChannels(), part.block->channels};
    };
    const Epilogue epilogue = plan->kernel->epilogue(steps_);
    conv_.Run(host, x, *plan, streams_of, [&](const Part& part, const Streams& first_streams) {
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
  Convolution conv_;
  BitStore bits_;
  Steps steps_;
  std::deque<std::vector<float>> values_;  // [slots] each; a deque, because the constants point into it
  Constants constants_{};
};

class BinaryConv2dThreshold : public Operator {
 public:
  // A slot without a channel never reaches the largest threshold, so its bit is 0.
  explicit BinaryConv2dThreshold(const Node& node)
      : conv_(node),
        bits_(conv_),
        threshold_(PerSlot<int32_t>(node, 2, false, conv_, std::numeric_limits<int32_t>::max())) {
    const Tensor& flip = node.Constant(3);
    Require(flip.dims == std::vector<int64_t>{bits_.RowBytes()}, [&] {
      return "flip is uint8[" + std::to_string(bits_.RowBytes()) + "], one packed row for the " +
             std::to_string(conv_.OutChannels()) + " output channels; got " + flip.Describe();
    });
    flip_.resize(static_cast<size_t>(bits_.RowBytes()) / 8);
    std::memcpy(flip_.data(), flip.data, flip_.size() * 8);
  }

  void Run(const std::vector<Tensor>& inputs, const Host& host) const override {
    const Tensor& x = inputs[0];
    const auto map = conv_.OutputMap(x);
    auto* rows = static_cast<uint8_t*>(host.Output(0, {x.dims[0], map[0], map[1], bits_.RowBytes()}));
    if (x.dims[0] == 0) return;
    const auto plan = conv_.PlanFor(x);
    const size_t image_bytes = plan->pixel.size() * flip_.size() * 8;
    const auto no_streams = [](const Part&) { return Streams{}; };
    conv_.Run(host, x, *plan, no_streams, [&](const Part& part, const Streams&) {
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

}  // namespace

OperatorPointer MakeBinaryConv2d(const Node& node) { return std::make_unique<BinaryConv2d>(node); }

OperatorPointer MakeBinaryConv2dThreshold(const Node& node) { return std::make_unique<BinaryConv2dThreshold>(node); }

}  // namespace bnnfx
