#include "convolution.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <utility>

namespace bnnfx {
namespace conv {
namespace {

const Kernel* const kKernels[] = {
#if BNNFX_X86_KERNELS
    &kAvx512,
    &kAvx2,
#endif
    &kPortable,
};

// A task should take long enough that handing it to a thread costs nothing beside it, about 20 microseconds of the
// fastest kernel.
constexpr size_t kProductsPerTask = size_t{20} * 1000 * 1000;

// Taps [first, last) of a window that lie inside the map.
struct Inside {
  int64_t first, last;
  bool operator<(const Inside& other) const {
    return std::pair(first, last) < std::pair(other.first, other.last);
  }
};

int64_t OutputSize(int64_t size, int64_t kernel, int64_t stride, int64_t begin, int64_t end, int64_t dilation) {
  const int64_t room = size + begin + end - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

Inside InsideTaps(int64_t out, int64_t size, int64_t kernel, int64_t stride, int64_t begin, int64_t dilation) {
  const int64_t start = out * stride - begin;
  int64_t first = 0;
  while (first < kernel && start + first * dilation < 0) ++first;
  int64_t last = first;
  while (last < kernel && start + last * dilation < size) ++last;
  return first < last ? Inside{first, last} : Inside{0, 0};
}

// Numbers the different windows of an axis; returns the number of each output position.
std::vector<uint32_t> Classify(const std::vector<Inside>& windows, std::vector<Inside>* classes) {
  std::map<Inside, uint32_t> known;
  std::vector<uint32_t> numbers;
  for (const Inside& window : windows) {
    const auto [entry, is_new] = known.emplace(window, static_cast<uint32_t>(classes->size()));
    if (is_new) classes->push_back(window);
    numbers.push_back(entry->second);
  }
  return numbers;
}

// `count` (1 to 64) bits of a row from bit `first` on; what is beyond the row is not read.
uint64_t Bits(const uint8_t* row, size_t first, size_t count) {
  const size_t shift = first % 64;
  uint64_t word;
  std::memcpy(&word, row + first / 64 * 8, 8);
  word >>= shift;
  if (shift + count > 64) {
    uint64_t next;
    std::memcpy(&next, row + first / 64 * 8 + 8, 8);
    word |= next << (64 - shift);
  }
  return count < 64 ? word & ((uint64_t{1} << count) - 1) : word;
}

int32_t CountBits(const uint8_t* bytes, size_t size) {
  int32_t count = 0;
  for (size_t i = 0; i < size; ++i) {
    for (unsigned byte = bytes[i]; byte != 0; byte &= byte - 1) ++count;
  }
  return count;
}

}  // namespace

Convolution::Convolution(const Info& info) : kernel_(Choose(kKernels)) {
  channels_ = info.Integer("channels");
  const int64_t groups = info.Integer("groups");
  strides_ = info.Integers("strides", 2, 1);
  pads_ = info.Integers("pads", 4, 0);
  dilations_ = info.Integers("dilations", 2, 1);
  const Tensor weight = info.Constant(1, "weight", ORT_UINT8);
  const std::string given = "; got channels = " + std::to_string(channels_) + ", groups = " + std::to_string(groups) +
                            ", weight = " + weight.Describe();
  Require(groups >= 1 && channels_ >= 1 && channels_ % groups == 0,
          "groups and channels are at least 1 and groups divides channels" + given);
  Require(weight.dims.size() == 4 && weight.dims[0] >= 1 && weight.dims[0] % groups == 0 && weight.dims[1] >= 1 &&
              weight.dims[2] >= 1 && weight.dims[3] == RowBytes(channels_ / groups),
          "weight is uint8[O, kh, kw, " + std::to_string(RowBytes(channels_ / groups)) +
              "] with O a multiple of groups" + given);
  constexpr int64_t limit = std::numeric_limits<int32_t>::max() / 4;  // 2 * d and base are exact
  Require(weight.dims[1] <= limit / weight.dims[2] && weight.dims[1] * weight.dims[2] <= limit / weight.dims[3] / 8,
          "the sums of a filter of this size do not fit into 32 bits" + given);
  groups_ = static_cast<size_t>(groups);
  out_channels_ = static_cast<size_t>(weight.dims[0]);
  kernel_shape_[0] = weight.dims[1];
  kernel_shape_[1] = weight.dims[2];
  row_bytes_ = static_cast<size_t>(RowBytes(channels_));
  pixel_bytes_ = static_cast<size_t>(weight.dims[3]);
  copies_ = groups_ > 1 || std::any_of(pads_.begin(), pads_.end(), [](int64_t pad) { return pad != 0; });
  Repack(weight);
}

void Convolution::Repack(const Tensor& weight) {
  const size_t taps = static_cast<size_t>(kernel_shape_[0] * kernel_shape_[1]);
  const size_t words = pixel_bytes_ / 4;
  const size_t group_channels = out_channels_ / groups_;
  for (size_t group = 0; group < groups_; ++group) {
    for (size_t first = 0; first < group_channels; first += kBlock) {
      const size_t channels = std::min(kBlock, group_channels - first);
      const size_t lanes = (channels + kLanes - 1) / kLanes * kLanes;
      blocks_.push_back({group, group * group_channels + first, channels, lanes, weights_.size()});
      weights_.resize(weights_.size() + taps * words * lanes);
    }
  }
  tap_count_.resize(taps * Slots());
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const Block& block = blocks_[b];
    for (size_t c = 0; c < block.channels; ++c) {
      const uint8_t* filter = weight.Data<uint8_t>() + (block.first_channel + c) * taps * pixel_bytes_;
      for (size_t k = 0; k < taps * words; ++k) {
        std::memcpy(&weights_[block.weight_offset + k * block.lanes + c], filter + 4 * k, 4);
      }
      for (size_t tap = 0; tap < taps; ++tap) {
        tap_count_[tap * Slots() + b * kBlock + c] = CountBits(filter + tap * pixel_bytes_, pixel_bytes_);
      }
    }
  }
}

Tensor Convolution::CheckedInput(const Context& context) const {
  Tensor x = context.Input(0, "x", ORT_UINT8);
  Require(x.dims.size() == 4 && x.dims[3] == static_cast<int64_t>(row_bytes_),
          "x is uint8[N, H, W, " + std::to_string(row_bytes_) + "] for " + std::to_string(channels_) +
              " channels; got " + x.Describe());
  return x;
}

std::shared_ptr<const Plan> Convolution::PlanFor(const Tensor& x) const {
  {
    const std::lock_guard<std::mutex> lock(plan_mutex_);
    if (plan_ != nullptr && plan_->height == x.dims[1] && plan_->width == x.dims[2]) return plan_;
  }
  std::shared_ptr<const Plan> plan = MakePlan(x.dims[1], x.dims[2]);
  const std::lock_guard<std::mutex> lock(plan_mutex_);
  plan_ = plan;
  return plan;
}

std::shared_ptr<const Plan> Convolution::MakePlan(int64_t height, int64_t width) const {
  const int64_t size[2] = {height, width};
  int64_t out[2];
  std::vector<Inside> classes[2];
  std::vector<uint32_t> numbers[2];
  for (size_t axis = 0; axis < 2; ++axis) {
    out[axis] = OutputSize(size[axis], kernel_shape_[axis], strides_[axis], pads_[axis], pads_[axis + 2],
                           dilations_[axis]);
    Require(out[axis] >= 1, "a window of " + Describe({kernel_shape_[0], kernel_shape_[1]}) +
                                " does not fit into a map of " + Describe({height, width}) + " with pads = " +
                                Describe(pads_) + ", dilations = " + Describe(dilations_));
    std::vector<Inside> windows;
    for (int64_t i = 0; i < out[axis]; ++i) {
      windows.push_back(
          InsideTaps(i, size[axis], kernel_shape_[axis], strides_[axis], pads_[axis], dilations_[axis]));
    }
    numbers[axis] = Classify(windows, &classes[axis]);
  }

  auto plan = std::make_shared<Plan>();
  plan->height = height;
  plan->width = width;
  plan->out_height = out[0];
  plan->out_width = out[1];
  plan->padded_height = static_cast<size_t>(height + pads_[0] + pads_[2]);
  plan->padded_width = static_cast<size_t>(width + pads_[1] + pads_[3]);
  const auto pixel = static_cast<ptrdiff_t>(pixel_bytes_);
  const auto row = static_cast<ptrdiff_t>(plan->padded_width) * pixel;

  for (int64_t y = 0; y < out[0]; ++y) {
    for (int64_t x = 0; x < out[1]; ++x) {
      plan->pixel_offset.push_back(y * strides_[0] * row + x * strides_[1] * pixel);
      plan->border_class.push_back(numbers[0][static_cast<size_t>(y)] * static_cast<uint32_t>(classes[1].size()) +
                                   numbers[1][static_cast<size_t>(x)]);
    }
  }

  const bool whole_rows = dilations_[1] == 1;
  for (int64_t i = 0; i < kernel_shape_[0]; ++i) {
    for (int64_t j = 0; j < (whole_rows ? 1 : kernel_shape_[1]); ++j) {
      plan->run_offset.push_back(i * dilations_[0] * row + j * dilations_[1] * pixel);
    }
  }
  plan->run_words = pixel_bytes_ / 4 * static_cast<size_t>(whole_rows ? kernel_shape_[1] : 1);

  const int64_t channels = channels_ / static_cast<int64_t>(groups_);
  for (const Inside& rows : classes[0]) {
    for (const Inside& columns : classes[1]) {
      const int64_t products = channels * (rows.last - rows.first) * (columns.last - columns.first);
      const size_t start = plan->base.size();
      plan->base.resize(start + Slots(), static_cast<int32_t>(products));
      for (int64_t i = 0; i < kernel_shape_[0]; ++i) {
        for (int64_t j = 0; j < kernel_shape_[1]; ++j) {
          if (i >= rows.first && i < rows.last && j >= columns.first && j < columns.last) continue;
          const int32_t* counts = tap_count_.data() + static_cast<size_t>(i * kernel_shape_[1] + j) * Slots();
          for (size_t slot = 0; slot < Slots(); ++slot) plan->base[start + slot] += 2 * counts[slot];
        }
      }
    }
  }
  return plan;
}

void Convolution::CopyImage(const Plan& plan, const uint8_t* source, size_t image, uint8_t* target) const {
  const auto height = static_cast<size_t>(plan.height);
  const auto width = static_cast<size_t>(plan.width);
  const auto top = static_cast<size_t>(pads_[0]);
  const auto left = static_cast<size_t>(pads_[1]);
  const size_t row = plan.padded_width * pixel_bytes_;
  const size_t group_channels = static_cast<size_t>(channels_) / groups_;
  const uint8_t* from = source + image * height * width * row_bytes_;
  uint8_t* to = target + image * ImageBytes(plan);
  for (size_t group = 0; group < groups_; ++group, to += GroupBytes(plan)) {
    for (size_t y = 0; y < plan.padded_height; ++y) {
      uint8_t* line = to + y * row;
      if (y < top || y >= top + height) {
        std::memset(line, 0, row);
        continue;
      }
      std::memset(line, 0, left * pixel_bytes_);
      std::memset(line + (left + width) * pixel_bytes_, 0, row - (left + width) * pixel_bytes_);
      const uint8_t* pixels = from + (y - top) * width * row_bytes_;
      uint8_t* inside = line + left * pixel_bytes_;
      if (groups_ == 1) {
        std::memcpy(inside, pixels, width * pixel_bytes_);
        continue;
      }
      for (size_t x = 0; x < width; ++x) {
        for (size_t c = 0; c < group_channels; c += 64) {
          const uint64_t word =
              Bits(pixels + x * row_bytes_, group * group_channels + c, std::min<size_t>(64, group_channels - c));
          std::memcpy(inside + x * pixel_bytes_ + c / 8, &word, 8);
        }
      }
    }
  }
}

size_t Convolution::ChunkPixels(size_t pixels) const {
  const size_t blocks = groups_ == 1 ? 1 : blocks_.size();
  const size_t products = static_cast<size_t>(kernel_shape_[0] * kernel_shape_[1]) * pixel_bytes_ * 8 * kBlock * blocks;
  const size_t wanted = std::max<size_t>(1, kProductsPerTask / products);
  const size_t chunks = std::max<size_t>(1, (pixels + wanted / 2) / wanted);
  const size_t even = (pixels + chunks - 1) / chunks;
  return (even + 5) / 6 * 6;  // whole tiles
}

}  // namespace conv
}  // namespace bnnfx
