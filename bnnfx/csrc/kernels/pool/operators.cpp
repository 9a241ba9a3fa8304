#include <string>
#include <vector>

#include "../operator.h"
#include "kernel.h"

#include "generated/pool_kernels.h"

namespace bnnfx {
namespace {

// One axis of the pooling: sizes of the map and of the result, and what the attributes say.
struct Axis {
  int64_t size, kernel, stride, begin, end, dilation;

  // Windows along the axis. With `ceil_mode` the last may reach beyond the padding, but none starts behind the map:
  // 1. `room` is the farthest start of a window that stays inside.
  // 2. It is divided by the stride, rounded down, or up with ceil_mode.
  // 3. A start is allowed up to size + begin - 1.
  int64_t Count(bool ceil_mode) const {
    const int64_t room = size + begin + end - dilation * (kernel - 1) - 1;
    if (!ceil_mode) return room < 0 ? 0 : room / stride + 1;
    const int64_t up = room > 0 ? (room + stride - 1) / stride : -(-room / stride);
    return (up * stride >= size + begin ? up - 1 : up) + 1;
  }

  // First tap inside the map and number of taps inside, of window `out`.
  void Inside(int64_t out, int64_t* first, size_t* count) const {
    const int64_t start = out * stride - begin;
    int64_t i = 0;
    while (i < kernel && start + i * dilation < 0) ++i;
    *first = start + i * dilation;
    *count = 0;
    for (; i < kernel && start + i * dilation < size; ++i) ++*count;
  }
};

class MaxPool2d : public Operator {
 public:
  explicit MaxPool2d(const Node& node)
      : kernel_(Choose(pool::kKernels)),
        kernel_shape_(node.Integers("kernel_shape", 2, 1)),
        strides_(node.Integers("strides", 2, 1)),
        pads_(node.Integers("pads", 4, 0)),
        dilations_(node.Integers("dilations", 2, 1)),
        ceil_mode_(node.Integer("ceil_mode") != 0) {
    const Tensor& mask = node.Constant(1);
    Require(mask.dims.size() == 1, [&] { return "and_mask is uint8[B]; got " + mask.Describe(); });
    mask_.assign(mask.Data<uint8_t>(), mask.Data<uint8_t>() + mask.dims[0]);
  }

  void Run(const std::vector<Tensor>& inputs, const Host& host) const override {
    const Tensor& x = inputs[0];
    const auto bytes = static_cast<int64_t>(mask_.size());
    Require(x.dims.size() == 4 && x.dims[3] == bytes,
            [&] { return "x is uint8[N, H, W, " + std::to_string(bytes) + "] like and_mask; got " + x.Describe(); });
    const Axis rows = MakeAxis(x, 0);
    const Axis columns = MakeAxis(x, 1);
    const int64_t out_rows = rows.Count(ceil_mode_);
    const int64_t out_columns = columns.Count(ceil_mode_);
    Require(out_rows >= 1 && out_columns >= 1, [&] {
      return "a window of " + Describe(kernel_shape_) + " does not fit into a map of " +
             Describe({rows.size, columns.size}) + " with pads = " + Describe(pads_) +
             ", dilations = " + Describe(dilations_);
    });
    auto* out = static_cast<uint8_t*>(host.Output(0, {x.dims[0], out_rows, out_columns, bytes}));
    const int64_t row_bytes = columns.size * bytes;
    const auto* source = x.Data<uint8_t>();
    host.ParallelFor(static_cast<size_t>(x.dims[0] * out_rows), [&](size_t task) {
      const auto line = static_cast<int64_t>(task);
      pool::Taps taps{};
      int64_t y = 0;
      rows.Inside(line % out_rows, &y, &taps.rows);
      taps.row_step = static_cast<ptrdiff_t>(rows.dilation * row_bytes);
      taps.column_step = static_cast<ptrdiff_t>(columns.dilation * bytes);
      for (int64_t i = 0; i < out_columns; ++i) {
        int64_t column = 0;
        columns.Inside(i, &column, &taps.columns);
        const bool any = taps.rows != 0 && taps.columns != 0;
        taps.first = any ? source + (line / out_rows * rows.size + y) * row_bytes + column * bytes : source;
        kernel_.pool(taps, mask_.data(), mask_.size(), out + (line * out_columns + i) * bytes);
      }
    });
  }

 private:
  Axis MakeAxis(const Tensor& x, size_t axis) const {
    return {x.dims[1 + axis], kernel_shape_[axis], strides_[axis], pads_[axis], pads_[axis + 2], dilations_[axis]};
  }

  const pool::Kernel& kernel_;
  std::vector<int64_t> kernel_shape_, strides_, pads_, dilations_;
  bool ceil_mode_;
  std::vector<uint8_t> mask_;
};

}  // namespace

OperatorPointer MakeMaxPool2d(const Node& node) { return std::make_unique<MaxPool2d>(node); }

}  // namespace bnnfx
