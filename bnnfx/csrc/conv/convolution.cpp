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
#elif BNNFX_ARM_KERNELS
    &kNeon,
#endif
    &kPortable,
};

// A task should take long enough that handing it to a thread costs little beside it: some microseconds of the fastest
// kernel.
constexpr uint64_t kProductsPerTask = uint64_t{5} * 1000 * 1000;
constexpr size_t kTasks = 32;  // enough for any number of threads to share an image evenly

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

// Cuts `pixels` pixels from `first` on into strips of nearly equal size, at most `largest`.
void AddStrips(size_t first, size_t pixels, size_t border_class, size_t largest, std::vector<Strip>* strips) {
  const size_t count = (pixels + largest - 1) / largest;
  for (size_t i = 0; i < count; ++i) {
    const size_t begin = pixels * i / count;
    const size_t end = pixels * (i + 1) / count;
    strips->push_back({first + begin, end - begin, border_class});
  }
}

}  // namespace

Convolution::Convolution(const Info& info) : kernel_(Choose(kKernels)) {
  channels_ = info.Integer("channels");
  const int64_t groups = info.Integer("groups");
  strides_ = info.Integers("strides", 2, 1);
  pads_ = info.Integers("pads", 4, 0);
  dilations_ = info.Integers("dilations", 2, 1);
  const Tensor weight = info.Constant(1, "weight", ORT_UINT8);
  constexpr int64_t limit = std::numeric_limits<int32_t>::max() / 4;  // products and 2 * d are exact
  const std::string given = "; got channels = " + std::to_string(channels_) + ", groups = " + std::to_string(groups) +
                            ", weight = " + weight.Describe();
  Require(groups >= 1 && channels_ >= 1 && channels_ <= limit && channels_ % groups == 0,
          "groups and channels are at least 1, channels at most " + std::to_string(limit) +
              ", and groups divides channels" + given);
  Require(weight.dims.size() == 4 && weight.dims[0] >= 1 && weight.dims[0] % groups == 0 && weight.dims[1] >= 1 &&
              weight.dims[2] >= 1 && weight.dims[3] == RowBytes(channels_ / groups),
          "weight is uint8[O, kh, kw, " + std::to_string(RowBytes(channels_ / groups)) +
              "] with O a multiple of groups" + given);
  Require(weight.dims[1] <= limit / weight.dims[2] && weight.dims[1] * weight.dims[2] <= limit / weight.dims[3] / 8,
          "the sums of a filter of this size do not fit into 32 bits" + given);
  groups_ = static_cast<size_t>(groups);
  out_channels_ = static_cast<size_t>(weight.dims[0]);
  kernel_shape_[0] = weight.dims[1];
  kernel_shape_[1] = weight.dims[2];
  row_bytes_ = static_cast<size_t>(RowBytes(channels_));
  pixel_words_ = static_cast<size_t>(weight.dims[3]) / 8;
  PrepareFilters(weight);
}

void Convolution::PrepareFilters(const Tensor& weight) {
  const size_t words = static_cast<size_t>(kernel_shape_[0] * kernel_shape_[1]) * pixel_words_;
  const size_t group_channels = out_channels_ / groups_;
  size_t bytes = 0;
  for (size_t group = 0; group < groups_; ++group) {
    for (size_t first = 0; first < group_channels; first += kBlock) {
      const size_t channels = std::min(kBlock, group_channels - first);
      const size_t lanes = (channels + kernel_.lane_step - 1) / kernel_.lane_step * kernel_.lane_step;
      blocks_.push_back({group, group * group_channels + first, channels, lanes, bytes});
      bytes += (words * lanes * kernel_.filter_word_bytes + kAlign - 1) / kAlign * kAlign;
    }
  }
  filter_storage_.resize(bytes + kAlign - 1);
  void* start = filter_storage_.data();
  size_t space = filter_storage_.size();
  auto* filters = static_cast<uint8_t*>(std::align(kAlign, bytes, start, space));
  filters_ = filters;
  for (const Block& block : blocks_) {
    for (size_t k = 0; k < words; ++k) {
      uint64_t row[kBlock] = {};
      for (size_t c = 0; c < block.channels; ++c) {
        std::memcpy(&row[c], weight.Data<uint8_t>() + ((block.first_channel + c) * words + k) * 8, 8);
      }
      kernel_.prepare_filters(row, block.lanes,
                              filters + block.filter_offset + k * block.lanes * kernel_.filter_word_bytes);
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
  for (size_t axis = 0; axis < 2; ++axis) {
    out[axis] = OutputSize(size[axis], kernel_shape_[axis], strides_[axis], pads_[axis], pads_[axis + 2],
                           dilations_[axis]);
    Require(out[axis] >= 1, "a window of " + Describe({kernel_shape_[0], kernel_shape_[1]}) +
                                " does not fit into a map of " + Describe({height, width}) + " with pads = " +
                                Describe(pads_) + ", dilations = " + Describe(dilations_));
  }
  // A pixel's number has 32 bits; and so a plan that no memory holds is refused before it is made.
  Require(out[0] <= std::numeric_limits<uint32_t>::max() / out[1],
          "the result of " + Describe({out[0], out[1]}) + " pixels is too large; the map has " +
              Describe({height, width}) + ", pads = " + Describe(pads_));
  std::map<Inside, std::vector<int64_t>> positions[2];  // output positions of an axis, by the taps inside
  for (size_t axis = 0; axis < 2; ++axis) {
    for (int64_t i = 0; i < out[axis]; ++i) {
      const Inside taps =
          InsideTaps(i, size[axis], kernel_shape_[axis], strides_[axis], pads_[axis], dilations_[axis]);
      positions[axis][taps].push_back(i);
    }
  }

  auto plan = std::make_shared<Plan>();
  plan->height = height;
  plan->width = width;
  plan->out_height = out[0];
  plan->out_width = out[1];
  const auto pixel = static_cast<ptrdiff_t>(pixel_words_ * kernel_.input_word_bytes);
  const auto row = static_cast<ptrdiff_t>(width) * pixel;
  const bool whole_rows = dilations_[1] == 1;  // the taps of a row are neighbors
  // The fewer pixels, the shorter the strips: chunks are made of whole ones.
  const auto pixels = static_cast<size_t>(out[0] * out[1]);
  const size_t strip = std::min(kStrip, std::max(kStrip / 2, pixels / 16));
  for (const auto& [rows, ys] : positions[0]) {
    for (const auto& [columns, xs] : positions[1]) {
      Plan::BorderClass border;
      const int64_t taps = (rows.last - rows.first) * (columns.last - columns.first);
      border.products = static_cast<int32_t>(taps * (channels_ / static_cast<int64_t>(groups_)));
      border.run_words = pixel_words_ * static_cast<size_t>(whole_rows ? columns.last - columns.first : 1);
      for (int64_t i = rows.first; taps != 0 && i < rows.last; ++i) {
        for (int64_t j = columns.first; j < (whole_rows ? columns.first + 1 : columns.last); ++j) {
          border.runs.push_back({(i - rows.first) * dilations_[0] * row + (j - columns.first) * dilations_[1] * pixel,
                                 static_cast<size_t>(i * kernel_shape_[1] + j) * pixel_words_});
        }
      }
      const size_t first = plan->pixel.size();
      for (const int64_t y : ys) {
        for (const int64_t x : xs) {
          const int64_t top = y * strides_[0] - pads_[0] + rows.first * dilations_[0];
          const int64_t left = x * strides_[1] - pads_[1] + columns.first * dilations_[1];
          plan->pixel.push_back(static_cast<uint32_t>(y * out[1] + x));
          plan->pixel_offset.push_back(taps == 0 ? 0 : top * row + left * pixel);
        }
      }
      AddStrips(first, plan->pixel.size() - first, plan->classes.size(), strip, &plan->strips);
      plan->classes.push_back(std::move(border));
    }
  }
  MakeChunks(plan.get());
  return plan;
}

void Convolution::MakeChunks(Plan* plan) const {
  const auto work = [&](const Strip& strip) {  // of all blocks; a strip is never without any
    return strip.pixels * (static_cast<uint64_t>(plan->classes[strip.border_class].products) * out_channels_ + 1);
  };
  uint64_t total = 0;
  for (const Strip& strip : plan->strips) total += work(strip);
  const size_t blocks = groups_ == 1 ? blocks_.size() : 1;
  const uint64_t tasks = std::min<uint64_t>(kTasks, total / kProductsPerTask);
  const uint64_t chunks = std::max<uint64_t>(1, tasks / blocks);
  plan->chunks.push_back(0);
  uint64_t done = 0;
  for (size_t s = 0; s < plan->strips.size(); ++s) {
    if (done * chunks >= total * plan->chunks.size()) plan->chunks.push_back(s);
    done += work(plan->strips[s]);
  }
  plan->chunks.push_back(plan->strips.size());
}

void Convolution::PrepareImage(const uint8_t* source, size_t pixels, uint8_t* target) const {
  if (groups_ == 1) return kernel_.prepare_input(source, pixels * pixel_words_, target);
  const size_t group_channels = static_cast<size_t>(channels_) / groups_;
  const size_t word_bytes = kernel_.input_word_bytes;
  for (size_t group = 0; group < groups_; ++group) {
    for (size_t p = 0; p < pixels; ++p) {
      for (size_t word = 0; word < pixel_words_; ++word, target += word_bytes) {
        const size_t first = word * 64;
        const uint64_t bits = Bits(source + p * row_bytes_, group * group_channels + first,
                                   std::min<size_t>(64, group_channels - first));
        uint8_t bytes[8];
        std::memcpy(bytes, &bits, 8);
        if (kernel_.prepare_input != nullptr) {
          kernel_.prepare_input(bytes, 1, target);
        } else {
          std::memcpy(target, bytes, 8);
        }
      }
    }
  }
}

}  // namespace conv
}  // namespace bnnfx
