#include <algorithm>
#include <string>
#include <vector>

#include "../operator.h"
#include "kernel.h"

#include "generated/pack_kernels.h"

namespace bnnfx {
namespace {

using pack::Threshold;

constexpr size_t kFloatsPerTask = size_t{1} << 16;  // some microseconds of memory traffic

// Where the axes of a map are.
struct Layout {
  const char* text;
  size_t channels, rows, columns;
};

constexpr Layout kNchw = {"[N, C, H, W]", 1, 2, 3};
constexpr Layout kNhwc = {"[N, H, W, C]", 3, 1, 2};

// The float map that comes in, the threshold that is compared with it, and the spans they are cut into.
class Source {
 public:
  Source(const std::vector<Tensor>& inputs, const Layout& layout) : x_(inputs[0]), threshold_(inputs[1]) {
    Require(x_.dims.size() == 4, [&] { return std::string("x is float") + layout.text + "; got " + x_.Describe(); });
    BroadcastStrides();
    images = Size(0);
    channels = Size(layout.channels);
    rows = Size(layout.rows);
    columns = Size(layout.columns);
    map = rows * columns;
    image_step_ = strides_[0];
    channel_step_ = strides_[layout.channels];
    row_step_ = strides_[layout.rows];
    column_step_ = strides_[layout.columns];
    // A span is a stretch of pixels over which the threshold moves evenly: a whole map, or else a row.
    even_ = row_step_ == column_step_ * columns;
    const size_t wanted = std::max<size_t>(64, kFloatsPerTask / std::max<size_t>(1, channels) / 64 * 64);
    span_ = even_ ? std::min(map, wanted) : columns;
  }

  // Calls function(image, first pixel, pixels, threshold from there) for all spans, on the threads of the host.
  template <class Function>
  void ForEachSpan(const Host& host, const Function& function) const {
    if (images * map * channels == 0) return;  // nothing to write
    const size_t spans = (map + span_ - 1) / span_;
    host.ParallelFor(images * spans, [&](size_t task) {
      const size_t image = task / spans;
      const size_t first = task % spans * span_;
      const size_t offset = image * image_step_ + (even_ ? first * column_step_ : first / columns * row_step_);
      const Threshold threshold{threshold_.Data<float>() + offset, channel_step_, column_step_};
      function(image, first, std::min(span_, map - first), threshold);
    });
  }

  const float* Image(size_t image) const { return x_.Data<float>() + image * channels * map; }
  size_t RowSize() const { return static_cast<size_t>(RowBytes(static_cast<int64_t>(channels))); }

  uint8_t* Bits(const Host& host) const {
    return static_cast<uint8_t*>(
        host.Output(0, {x_.dims[0], static_cast<int64_t>(rows), static_cast<int64_t>(columns),
                           static_cast<int64_t>(RowSize())}));
  }

  size_t images, channels, rows, columns, map;

 private:
  size_t Size(size_t axis) const { return static_cast<size_t>(x_.dims[axis]); }

  // How far the threshold moves with each axis of x, in floats.
  void BroadcastStrides() {
    const size_t rank = threshold_.dims.size();
    bool fits = rank <= 4;
    size_t stride = 1;
    for (size_t i = 0; fits && i < 4; ++i) {  // from the last axis
      const int64_t size = i < rank ? threshold_.dims[rank - 1 - i] : 1;
      fits = size == 1 || size == x_.dims[3 - i];
      strides_[3 - i] = size == 1 ? 0 : stride;
      stride *= static_cast<size_t>(size);
    }
    Require(fits, [&] {
      return "threshold broadcasts to the shape of x; got x = " + x_.Describe() +
             ", threshold = " + threshold_.Describe();
    });
  }

  const Tensor& x_;
  const Tensor& threshold_;
  size_t strides_[4];
  size_t image_step_, channel_step_, row_step_, column_step_, span_;
  bool even_;
};

class Pack : public Operator {
 public:
  explicit Pack(const Node&) : kernel_(Choose(pack::kKernels)) {}

  void Run(const std::vector<Tensor>& inputs, const Host& host) const override {
    const Source x(inputs, kNchw);
    uint8_t* out = x.Bits(host);
    x.ForEachSpan(host, [&](size_t image, size_t first, size_t pixels, const Threshold& threshold) {
      kernel_.pack_nchw(x.Image(image) + first, x.map, threshold, x.channels, pixels,
                        out + (image * x.map + first) * x.RowSize(), x.RowSize());
    });
  }

 private:
  const pack::Kernel& kernel_;
};

class PackNhwc : public Operator {
 public:
  explicit PackNhwc(const Node&) : kernel_(Choose(pack::kKernels)) {}

  void Run(const std::vector<Tensor>& inputs, const Host& host) const override {
    const Source x(inputs, kNhwc);
    uint8_t* out = x.Bits(host);
    x.ForEachSpan(host, [&](size_t image, size_t first, size_t pixels, const Threshold& threshold) {
      kernel_.pack_nhwc(x.Image(image) + first * x.channels, threshold, x.channels, pixels,
                        out + (image * x.map + first) * x.RowSize(), x.RowSize());
    });
  }

 private:
  const pack::Kernel& kernel_;
};

}  // namespace

OperatorPointer MakePack(const Node& node) { return std::make_unique<Pack>(node); }

OperatorPointer MakePackNhwc(const Node& node) { return std::make_unique<PackNhwc>(node); }

}  // namespace bnnfx
