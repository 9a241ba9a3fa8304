#include "ops.h"

#include <algorithm>
#include <string>
#include <vector>

#include "../ort.h"
#include "kernel.h"

namespace bnnfx {
namespace {

const pack::Kernel* const kKernels[] = {
#if BNNFX_X86_KERNELS
    &pack::kAvx512,
    &pack::kAvx2,
#endif
    &pack::kPortable,
};

constexpr size_t kFloatsPerTask = size_t{1} << 16;  // some microseconds of memory traffic

class Pack {
 public:
  static constexpr const char* kName = "Pack";
  static constexpr int kInputs[] = {ORT_FLOAT, ORT_FLOAT};
  static constexpr int kOutput = ORT_UINT8;

  explicit Pack(const Info&) : kernel_(Choose(kKernels)) {}

  void Compute(const Context& context) const {
    const Tensor x = context.Input(0, "x", ORT_FLOAT);
    const Tensor threshold = context.Input(1, "threshold", ORT_FLOAT);
    Require(x.dims.size() == 4, "x is float[N, C, H, W]; got " + x.Describe());
    size_t strides[4];
    BroadcastStrides(x, threshold, strides);
    const int64_t row_bytes = RowBytes(x.dims[1]);
    auto* out = static_cast<uint8_t*>(context.Output(0, {x.dims[0], x.dims[2], x.dims[3], row_bytes}));
    const auto images = static_cast<size_t>(x.dims[0]);
    const auto channels = static_cast<size_t>(x.dims[1]);
    const auto width = static_cast<size_t>(x.dims[3]);
    const size_t map = static_cast<size_t>(x.dims[2]) * width;
    if (images * map == 0) return;
    // A span is a stretch of pixels over which the threshold moves evenly: a whole map, or else a row.
    const bool even = strides[2] == strides[3] * width;
    const size_t wanted = std::max<size_t>(64, kFloatsPerTask / std::max<size_t>(1, channels) / 64 * 64);
    const size_t span = even ? std::min(map, wanted) : width;
    const size_t spans = (map + span - 1) / span;
    const auto* values = x.Data<float>();
    const auto* least = threshold.Data<float>();
    context.ParallelFor(images * spans, [&](size_t task) {
      const size_t image = task / spans;
      const size_t first = task % spans * span;
      const size_t pixels = std::min(span, map - first);
      const size_t offset =
          image * strides[0] + (even ? first * strides[3] : first / width * strides[2]);
      kernel_.pack(values + image * channels * map + first, map, least + offset, strides[1], strides[3], channels,
                   pixels, out + (image * map + first) * static_cast<size_t>(row_bytes),
                   static_cast<size_t>(row_bytes));
    });
  }

 private:
  // How far the threshold moves with each axis of x, in floats.
  static void BroadcastStrides(const Tensor& x, const Tensor& threshold, size_t (&strides)[4]) {
    const size_t rank = threshold.dims.size();
    bool fits = rank <= 4;
    size_t stride = 1;
    for (size_t i = 0; fits && i < 4; ++i) {  // from the last axis
      const int64_t size = i < rank ? threshold.dims[rank - 1 - i] : 1;
      fits = size == 1 || size == x.dims[3 - i];
      strides[3 - i] = size == 1 ? 0 : stride;
      stride *= static_cast<size_t>(size);
    }
    Require(fits, "threshold broadcasts to the shape of x; got x = " + x.Describe() + ", threshold = " +
                      threshold.Describe());
  }

  const pack::Kernel& kernel_;
};

}  // namespace

const OrtCustomOp* PackOp() {
  static const CustomOp<Pack> op;
  return &op;
}

}  // namespace bnnfx
