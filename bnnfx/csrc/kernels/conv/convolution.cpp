#include "convolution.h"

#include <algorithm>
#include <atomic>
#include <bitset>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <utility>

#include "generated/conv_kernels.h"

namespace bnnfx {
namespace conv {
namespace {

// A task should take long enough that handing it to a thread costs little beside it: some microseconds of the fastest
// kernel.
constexpr uint64_t kProductsPerTask = uint64_t{5} * 1000 * 1000;
constexpr size_t kTasks = 32;  // enough for any number of threads to share an image evenly

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

// A word whose `count` (1 to 64) lowest bits are set.
uint64_t FirstBits(size_t count) { return count < 64 ? (uint64_t{1} << count) - 1 : ~uint64_t{0}; }

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
  return word & FirstBits(count);
}

// Cuts the windows of one class, which are the last ones of plan->offset, into strips of nearly equal size, at most
// `largest`.
void AddStrips(size_t first, size_t largest, Plan* plan) {
  const size_t windows = plan->offset.size() - first;
  const size_t count = (windows + largest - 1) / largest;
  for (size_t i = 0; i < count; ++i) {
    const size_t begin = first + windows * i / count;
    const size_t end = first + windows * (i + 1) / count;
    plan->strips.push_back({begin, end - begin, begin, end - begin, plan->classes.size() - 1});
    for (size_t row = 0; row < end - begin; ++row) plan->row.push_back(static_cast<uint8_t>(row));
  }
}

// The same for tiles: windows whose distance from the first one of a tile is a multiple of the step, less than kTile
// of it, are of that tile. Puts tiles in the place of windows.
void AddTiledStrips(size_t largest, Plan* plan) {
  const std::vector<ptrdiff_t> windows = std::move(plan->offset);
  const size_t largest_tiles = largest / kTile;
  plan->offset.clear();
  for (size_t i = 0; i < windows.size(); ++i) {
    const ptrdiff_t from_first = plan->offset.empty() ? 0 : windows[i] - plan->offset.back();
    const bool fits = !plan->offset.empty() && from_first < static_cast<ptrdiff_t>(kTile) * plan->step &&
                      from_first % plan->step == 0;
    if (!fits) {
      if (plan->strips.empty() || plan->strips.back().windows == largest_tiles) {
        plan->strips.push_back({i, 0, plan->offset.size(), 0, 0});
      }
      plan->offset.push_back(windows[i]);
      ++plan->strips.back().windows;
    }
    Strip& strip = plan->strips.back();
    const auto in_tile = static_cast<size_t>((windows[i] - plan->offset.back()) / plan->step);
    plan->row.push_back(static_cast<uint8_t>(kTile * (strip.windows - 1) + in_tile));
    ++strip.pixels;
  }
}

}  // namespace

Convolution::Convolution(const Node& node)
    : isas_(AllowedIsas()), copies_(static_cast<size_t>(node.Integer("copies"))) {
  channels_ = node.Integer("channels");
  const int64_t groups = node.Integer("groups");
  const int64_t low = node.Integer("low");
  strides_ = node.Integers("strides", 2, 1);
  pads_ = node.Integers("pads", 4, 0);
  dilations_ = node.Integers("dilations", 2, 1);
  const Tensor& weight = node.Constant(1);
  constexpr int64_t limit = std::numeric_limits<int32_t>::max() / 4;  // products and 2 * d are exact
  const std::string given = "; got channels = " + std::to_string(channels_) + ", groups = " + std::to_string(groups) +
                            ", weight = " + weight.Describe();
  Require(groups >= 1 && channels_ >= 1 && channels_ <= limit && channels_ % groups == 0, [&] {
    return "groups and channels are at least 1, channels at most " + std::to_string(limit) +
           ", and groups divides channels" + given;
  });
  Require(weight.dims.size() == 4 && weight.dims[0] >= 1 && weight.dims[0] % groups == 0 && weight.dims[1] >= 1 &&
              weight.dims[2] >= 1 && weight.dims[3] == RowBytes(channels_ / groups),
          [&] {
            return "weight is uint8[O, kh, kw, " + std::to_string(RowBytes(channels_ / groups)) +
                   "] with O a multiple of groups" + given;
          });
  Require(weight.dims[1] <= limit / weight.dims[2] && weight.dims[1] * weight.dims[2] <= limit / weight.dims[3] / 8,
          [&] { return "the sums of a filter of this size do not fit into 32 bits" + given; });
  Require(low == -1 || low == 0,
          [&] { return "low, the value of a zero bit, is -1 or 0; got low = " + std::to_string(low); });
  low_ = static_cast<int32_t>(low);
  groups_ = static_cast<size_t>(groups);
  filter_count_ = static_cast<size_t>(weight.dims[0]);
  kernel_shape_[0] = weight.dims[1];
  kernel_shape_[1] = weight.dims[2];
  row_bytes_ = static_cast<size_t>(RowBytes(channels_));
  pixel_words_ = static_cast<size_t>(weight.dims[3]) / 8;
  in_order_ = groups_ > 1 || (copies_ > 1 && filter_count_ % kBlock != 0);
  const size_t group_channels = filter_count_ / groups_;
  for (size_t group = 0; group < groups_; ++group) {
    for (size_t first = 0; first < group_channels; first += kBlock) {
      blocks_.push_back({group, group * group_channels + first, std::min(kBlock, group_channels - first)});
    }
  }
  const size_t words = static_cast<size_t>(kernel_shape_[0] * kernel_shape_[1]) * pixel_words_;
  weight_.assign(weight.Data<uint8_t>(), weight.Data<uint8_t>() + filter_count_ * words * 8);
}

const Kernel& Convolution::KernelFor(const int64_t (&size)[2], const std::array<int64_t, 2>& out) const {
  const auto padded = [&](size_t axis) { return size[axis] + pads_[axis] + pads_[axis + 2]; };
  // Zeros around the map are read like others, so there should not be more of them than of others.
  const bool mostly_inside = padded(0) <= 2 * size[0] && padded(1) <= 2 * size[1] &&
                             padded(0) * padded(1) <= 2 * size[0] * size[1];
  for (const Kernel* kernel : kKernels) {
    if (!isas_.Has(kernel->isa) || out[0] * out[1] < static_cast<int64_t>(kernel->least_pixels)) continue;
    if (!kernel->multiplies || mostly_inside) return *kernel;
  }
  return kPortable;
}

const Filters* Convolution::FiltersFor(const Kernel& kernel) const {
  const std::lock_guard<std::mutex> lock(filters_mutex_);
  const auto there = filters_.find(&kernel);
  if (there != filters_.end()) return &there->second;
  const size_t words = static_cast<size_t>(kernel_shape_[0] * kernel_shape_[1]) * pixel_words_;
  Filters filters;
  size_t bytes = 0;
  for (const Block& block : blocks_) {
    const size_t lanes = (block.channels + kernel.lane_step - 1) / kernel.lane_step * kernel.lane_step;
    filters.parts.push_back({lanes, bytes});
    bytes += (words * lanes * kernel.filter_word_bytes + kAlign - 1) / kAlign * kAlign;
  }
  filters.storage.resize(bytes + kAlign - 1);
  void* start = filters.storage.data();
  size_t space = filters.storage.size();
  auto* data = static_cast<uint8_t*>(std::align(kAlign, bytes, start, space));
  filters.data = data;  // stays where it is when `filters` moves
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const size_t lanes = filters.parts[b].lanes;
    for (size_t k = 0; k < words; ++k) {
      uint64_t row[kBlock] = {};
      for (size_t c = 0; c < blocks_[b].channels; ++c) {
        std::memcpy(&row[c], weight_.data() + ((blocks_[b].first_channel + c) * words + k) * 8, 8);
      }
      kernel.prepare_filters(row, lanes, data + filters.parts[b].offset + k * lanes * kernel.filter_word_bytes);
    }
  }
  filters.bytes = bytes;
  static std::atomic<uint64_t> last_number{0};
  filters.number = ++last_number;
  return &filters_.emplace(&kernel, std::move(filters)).first->second;
}

std::array<int64_t, 2> Convolution::OutputMap(const Tensor& x) const {
  Require(x.dims.size() == 4 && x.dims[3] == static_cast<int64_t>(row_bytes_), [&] {
    return "x is uint8[N, H, W, " + std::to_string(row_bytes_) + "] for " + std::to_string(channels_) +
           " channels; got " + x.Describe();
  });
  std::array<int64_t, 2> out{};
  for (size_t axis = 0; axis < 2; ++axis) {
    out[axis] = OutputSize(x.dims[1 + axis], kernel_shape_[axis], strides_[axis], pads_[axis], pads_[axis + 2],
                           dilations_[axis]);
    Require(out[axis] >= 1, [&] {
      return "a window of " + Describe({kernel_shape_[0], kernel_shape_[1]}) + " does not fit into a map of " +
             Describe({x.dims[1], x.dims[2]}) + " with pads = " + Describe(pads_) +
             ", dilations = " + Describe(dilations_);
    });
  }
  return out;
}

std::shared_ptr<const Plan> Convolution::PlanFor(const Tensor& x) const {
  {
    const std::lock_guard<std::mutex> lock(plan_mutex_);
    if (plan_ != nullptr && plan_->height == x.dims[1] && plan_->width == x.dims[2]) return plan_;
  }
  std::shared_ptr<const Plan> plan = MakePlan(x.dims[1], x.dims[2], OutputMap(x));
  const std::lock_guard<std::mutex> lock(plan_mutex_);
  plan_ = plan;
  return plan;
}

std::shared_ptr<const Plan> Convolution::MakePlan(int64_t height, int64_t width,
                                                  const std::array<int64_t, 2>& out) const {
  // A pixel's number has 32 bits; and so a plan that no memory holds is refused before it is made.
  Require(out[0] <= std::numeric_limits<uint32_t>::max() / out[1], [&] {
    return "the result of " + Describe({out[0], out[1]}) + " pixels is too large; the map has " +
           Describe({height, width}) + ", pads = " + Describe(pads_);
  });
  const Kernel& kernel = KernelFor({height, width}, out);
  const bool padded = kernel.multiplies;  // the prepared map, with zeros
  const int64_t begin[2] = {padded ? 0 : pads_[0], padded ? 0 : pads_[1]};
  const int64_t prepared[2] = {height + (padded ? pads_[0] + pads_[2] : 0), width + (padded ? pads_[1] + pads_[3] : 0)};
  std::map<Inside, std::vector<int64_t>> positions[2];  // output positions of an axis, by the taps inside
  for (size_t axis = 0; axis < 2; ++axis) {
    for (int64_t i = 0; i < out[axis]; ++i) {
      const Inside taps =
          InsideTaps(i, prepared[axis], kernel_shape_[axis], strides_[axis], begin[axis], dilations_[axis]);
      positions[axis][taps].push_back(i);
    }
  }

  auto plan = std::make_shared<Plan>();
  plan->kernel = &kernel;
  plan->filters = FiltersFor(kernel);
  plan->height = height;
  plan->width = width;
  plan->top = padded ? pads_[0] : 0;
  plan->left = padded ? pads_[1] : 0;
  plan->prepared_height = prepared[0];
  plan->prepared_width = prepared[1];
  const auto pixel = static_cast<ptrdiff_t>(pixel_words_ * kernel.input_word_bytes);
  const auto row = static_cast<ptrdiff_t>(prepared[1]) * pixel;
  plan->step = static_cast<ptrdiff_t>(strides_[1]) * pixel;
  const bool whole_rows = dilations_[1] == 1;  // the taps of a row are neighbors
  // The fewer pixels, the shorter the strips: chunks are made of whole ones.
  const auto pixels = static_cast<size_t>(out[0] * out[1]);
  const size_t strip = std::min(kernel.strip, std::max(kernel.strip / 2, pixels / 16));
  for (const auto& [rows, ys] : positions[0]) {
    for (const auto& [columns, xs] : positions[1]) {
      Plan::BorderClass border;
      const int64_t taps = (rows.last - rows.first) * (columns.last - columns.first);
      border.products = static_cast<uint64_t>(taps * (channels_ / static_cast<int64_t>(groups_)));
      border.run_words = pixel_words_ * static_cast<size_t>(whole_rows ? columns.last - columns.first : 1);
      border.base = Base(kernel, rows, columns);
      for (int64_t i = rows.first; taps != 0 && i < rows.last; ++i) {
        for (int64_t j = columns.first; j < (whole_rows ? columns.first + 1 : columns.last); ++j) {
          border.runs.push_back({(i - rows.first) * dilations_[0] * row + (j - columns.first) * dilations_[1] * pixel,
                                 static_cast<size_t>(i * kernel_shape_[1] + j) * pixel_words_});
        }
      }
      const size_t first = plan->pixel.size();
      for (const int64_t y : ys) {
        for (const int64_t x : xs) {
          const int64_t top = y * strides_[0] - begin[0] + rows.first * dilations_[0];
          const int64_t left = x * strides_[1] - begin[1] + columns.first * dilations_[1];
          plan->pixel.push_back(static_cast<uint32_t>(y * out[1] + x));
          plan->offset.push_back(taps == 0 ? 0 : top * row + left * pixel);
        }
      }
      plan->classes.push_back(std::move(border));
      if (!padded) AddStrips(first, strip, plan.get());
    }
  }
  if (padded) AddTiledStrips(strip, plan.get());
  MakeChunks(plan.get());
  AddBands(plan.get());
  return plan;
}

std::vector<int32_t> Convolution::Base(const Kernel& kernel, const Inside& rows, const Inside& columns) const {
  std::vector<int32_t> base(Slots(), 0);
  if (kernel.multiplies) return base;
  const int64_t products = (rows.last - rows.first) * (columns.last - columns.first) * channels_ /
                           static_cast<int64_t>(groups_);
  for (size_t b = 0; b < blocks_.size(); ++b) {
    for (size_t c = 0; c < blocks_[b].channels; ++c) {
      int32_t& value = base[b * kBlock + c];
      value = static_cast<int32_t>(products);
      if (low_ == -1) continue;
      value = 0;  // the weights that are +1
      for (int64_t i = rows.first; i < rows.last; ++i) {
        const auto filter = static_cast<int64_t>(blocks_[b].first_channel + c);
        const int64_t first_tap = (filter * kernel_shape_[0] + i) * kernel_shape_[1] + columns.first;
        const size_t first = static_cast<size_t>(first_tap) * pixel_words_;
        const size_t words = static_cast<size_t>(columns.last - columns.first) * pixel_words_;
        for (size_t k = first; k < first + words; ++k) {
          uint64_t word;
          std::memcpy(&word, weight_.data() + k * 8, 8);
          value += static_cast<int32_t>(std::bitset<64>(word).count());
        }
      }
    }
  }
  return base;
}

void Convolution::MakeChunks(Plan* plan) const {
  const auto work = [&](const Strip& strip) {  // of all blocks; a strip is never without any
    return strip.pixels * (plan->classes[strip.border_class].products * filter_count_ + 1);
  };
  uint64_t total = 0;
  for (const Strip& strip : plan->strips) total += work(strip);
  const size_t blocks = in_order_ ? 1 : blocks_.size();
  const uint64_t tasks = std::min<uint64_t>(kTasks, total / kProductsPerTask);
  // Every chunk reads the filters again, so it should have pixels to use them for.
  const uint64_t most = std::min<uint64_t>(tasks / blocks, plan->pixel.size() / kStrip);
  uint64_t chunks = 1;  // a power of two: processors mostly have an even number of cores
  while (2 * chunks <= most) chunks *= 2;
  plan->chunks.push_back(0);
  uint64_t done = 0;
  for (size_t s = 0; s < plan->strips.size(); ++s) {
    if (done * chunks >= total * plan->chunks.size()) plan->chunks.push_back(s);
    done += work(plan->strips[s]);
  }
  plan->chunks.push_back(plan->strips.size());
}

void Convolution::AddBands(Plan* plan) const {
  const Kernel& kernel = *plan->kernel;
  const auto row_bytes = plan->prepared_width * static_cast<ptrdiff_t>(pixel_words_ * kernel.input_word_bytes);
  const ptrdiff_t beyond = kernel.multiplies ? static_cast<ptrdiff_t>(kTile - 1) * plan->step : 0;  // rest of a tile
  for (size_t chunk = 0; chunk + 1 < plan->chunks.size(); ++chunk) {
    ptrdiff_t first = plan->prepared_height;
    ptrdiff_t last = 0;
    for (size_t s = plan->chunks[chunk]; s < plan->chunks[chunk + 1]; ++s) {
      const Strip& strip = plan->strips[s];
      const auto& runs = plan->classes[strip.border_class].runs;  // from the uppermost row on
      if (runs.empty()) continue;                                 // nothing of these windows is inside the map
      const ptrdiff_t last_window = plan->offset[strip.first_window + strip.windows - 1];
      first = std::min(first, plan->offset[strip.first_window] / row_bytes);
      last = std::max(last, (last_window + beyond) / row_bytes + runs.back().input / row_bytes + 1);
    }
    last = std::min<ptrdiff_t>(last, plan->prepared_height);
    plan->bands.push_back(
        {static_cast<size_t>(first) / kBandRows, (static_cast<size_t>(last) + kBandRows - 1) / kBandRows});
  }
}

void Convolution::PrepareBands(const Plan& plan, const uint8_t* source, const Plan::Bands& bands, BandState* states,
                               uint8_t* target) const {
  const auto rows = static_cast<size_t>(plan.prepared_height);
  for (size_t band = bands.first; band < bands.last; ++band) {
    uint8_t expected = kToDo;
    if (!states[band].compare_exchange_strong(expected, kBegun)) continue;
    for (size_t y = band * kBandRows; y < std::min(rows, (band + 1) * kBandRows); ++y) {
      PrepareRow(plan, source, y, target);
    }
    states[band].store(kDone, std::memory_order_release);
  }
  for (size_t band = bands.first; band < bands.last; ++band) {
    while (states[band].load(std::memory_order_acquire) != kDone) std::this_thread::yield();
  }
}

void Convolution::PrepareRow(const Plan& plan, const uint8_t* source, size_t y, uint8_t* target) const {
  const Kernel& kernel = *plan.kernel;
  const size_t group_channels = static_cast<size_t>(channels_) / groups_;
  const size_t pixel_bytes = pixel_words_ * kernel.input_word_bytes;
  const size_t row_bytes = static_cast<size_t>(plan.prepared_width) * pixel_bytes;
  const auto left = static_cast<size_t>(plan.left);
  const auto width = static_cast<size_t>(plan.width);
  const Pixel form{pixel_words_, FirstBits(group_channels - (pixel_words_ - 1) * 64), low_};
  for (size_t group = 0; group < groups_; ++group) {
    uint8_t* row = target + (group * static_cast<size_t>(plan.prepared_height) + y) * row_bytes;
    const auto from = static_cast<int64_t>(y) - plan.top;
    if (from < 0 || from >= plan.height) {
      std::memset(row, 0, row_bytes);
      continue;
    }
    std::memset(row, 0, left * pixel_bytes);
    std::memset(row + (left + width) * pixel_bytes, 0, row_bytes - (left + width) * pixel_bytes);
    row += left * pixel_bytes;
    const uint8_t* pixel = source + static_cast<size_t>(from) * width * row_bytes_;
    if (groups_ == 1) {
      kernel.prepare_input(pixel, width, form, row);
      continue;
    }
    for (size_t x = 0; x < width; ++x, pixel += row_bytes_) {
      for (size_t word = 0; word < pixel_words_; ++word, row += kernel.input_word_bytes) {
        const size_t count = std::min<size_t>(64, group_channels - word * 64);
        const uint64_t bits = Bits(pixel, group * group_channels + word * 64, count);
        uint8_t bytes[8];
        std::memcpy(bytes, &bits, 8);
        if (kernel.prepare_input != nullptr) {
          kernel.prepare_input(bytes, 1, Pixel{1, FirstBits(count), low_}, row);
        } else {
          std::memcpy(row, bytes, 8);
        }
      }
    }
  }
}

}  // namespace conv
}  // namespace bnnfx
