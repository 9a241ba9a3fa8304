// Binary convolution up to its accumulators, for any operator that goes on from there.

#ifndef BNNFX_CONV_CONVOLUTION_H_
#define BNNFX_CONV_CONVOLUTION_H_

#include <memory>
#include <mutex>
#include <vector>

#include "../ort.h"
#include "../scratch.h"
#include "kernel.h"

namespace bnnfx {
namespace conv {

// What depends on the size of the input map, and not on its contents.
struct Plan {
  int64_t height, width;                // of the input
  int64_t out_height, out_width;
  size_t padded_height, padded_width;   // of the copy that is read, or of the input itself where it is not copied
  std::vector<ptrdiff_t> pixel_offset;  // [out_height * out_width], bytes from the first pixel
  std::vector<uint32_t> border_class;   // [out_height * out_width]
  std::vector<int32_t> base;            // [classes][slots], see kernel.h
  std::vector<ptrdiff_t> run_offset;
  size_t run_words;
};

// A stretch of output channels of one group that is computed together.
struct Block {
  size_t group;
  size_t first_channel;  // of all output channels
  size_t channels;       // 1 to kBlock
  size_t lanes;          // channels, rounded up to a multiple of kLanes
  size_t weight_offset;  // into the repacked weights, in words
};

// What the sink of Convolution::Run gets: the accumulators of a strip of pixels and a block of channels.
struct Part {
  Counts counts;
  size_t image;
  size_t first_pixel;  // of the output map, row by row
  size_t slot;         // of the first channel: blocks are kBlock apart here, whatever they hold
  const Block* block;
  bool first_of_pixels;  // no other block has come for these pixels
};

class Convolution {
 public:
  // Reads attributes and the constant weight (input 1), checks them and repacks the weight.
  explicit Convolution(const Info& info);

  size_t OutChannels() const { return out_channels_; }
  size_t Slots() const { return blocks_.size() * kBlock; }
  size_t Groups() const { return groups_; }
  const std::vector<Block>& Blocks() const { return blocks_; }
  const Kernel& Row() const { return kernel_; }

  // Input 0, checked.
  Tensor CheckedInput(const Context& context) const;
  // The plan for a map of this size: the last one where it fits, else a new one.
  std::shared_ptr<const Plan> PlanFor(const Tensor& x) const;

  // Calls sink(Part) for all strips and blocks, on the threads of the session. The sink must not throw. Without
  // groups, the blocks of one strip may come on different threads at once; with groups, on one thread and in order.
  template <class Sink>
  void Run(const Context& context, const Tensor& x, const Plan& plan, const Sink& sink) const {
    const size_t images = static_cast<size_t>(x.dims[0]);
    const size_t pixels = plan.pixel_offset.size();
    if (images == 0) return;
    const Scratch::Lease scratch = scratch_.Take(copies_ ? images * ImageBytes(plan) : 0);
    const uint8_t* source = x.Data<uint8_t>();
    if (copies_) {
      context.ParallelFor(images, [&](size_t image) { CopyImage(plan, source, image, scratch.data()); });
      source = scratch.data();
    }
    const Window window{plan.run_offset.data(), plan.run_offset.size(), plan.run_words};
    const size_t chunk_pixels = ChunkPixels(pixels);
    const size_t chunks = (pixels + chunk_pixels - 1) / chunk_pixels;
    const size_t block_steps = groups_ == 1 ? blocks_.size() : 1;
    context.ParallelFor(images * block_steps * chunks, [&](size_t task) {
      const size_t chunk = task % chunks;
      const size_t block_step = task / chunks % block_steps;
      const size_t image = task / chunks / block_steps;
      alignas(64) int32_t differing[kStrip * kBlock];
      const size_t begin = chunk * chunk_pixels;
      const size_t end = pixels - begin < chunk_pixels ? pixels : begin + chunk_pixels;
      for (size_t first = begin; first < end; first += kStrip) {
        const size_t count = end - first < kStrip ? end - first : kStrip;
        const size_t last_block = groups_ == 1 ? block_step + 1 : blocks_.size();
        for (size_t b = block_step; b < last_block; ++b) {
          const Block& block = blocks_[b];
          const uint8_t* map = source + image * ImageBytes(plan) + block.group * GroupBytes(plan);
          kernel_.count(map, plan.pixel_offset.data() + first, count, window,
                        Filters{weights_.data() + block.weight_offset, block.lanes}, differing);
          sink(Part{Counts{differing, plan.base.data() + b * kBlock, Slots(), plan.border_class.data() + first, count,
                           block.lanes},
                    image, first, b * kBlock, &block, b == 0});
        }
      }
    });
  }

 private:
  void Repack(const Tensor& weight);
  std::shared_ptr<const Plan> MakePlan(int64_t height, int64_t width) const;
  size_t GroupBytes(const Plan& plan) const { return plan.padded_height * plan.padded_width * pixel_bytes_; }
  size_t ImageBytes(const Plan& plan) const { return groups_ * GroupBytes(plan); }
  // Writes one image, padded with 0 bits and its groups apart, to its place in `target`.
  void CopyImage(const Plan& plan, const uint8_t* source, size_t image, uint8_t* target) const;
  // How many of the pixels of an image one task takes.
  size_t ChunkPixels(size_t pixels) const;

  const Kernel& kernel_;
  int64_t channels_ = 0;                        // of the input, all groups
  std::vector<int64_t> strides_, pads_, dilations_;
  size_t groups_ = 1;
  size_t out_channels_ = 0;
  int64_t kernel_shape_[2] = {1, 1};
  size_t row_bytes_ = 0;    // of a pixel of the input
  size_t pixel_bytes_ = 0;  // of a pixel of one group; without groups the same
  bool copies_ = false;     // there are pads or groups
  std::vector<Block> blocks_;
  std::vector<uint32_t> weights_;   // per block uint32[taps * words][lanes]
  std::vector<int32_t> tap_count_;  // [taps][slots]: popcount of the weights of a tap

  mutable Scratch scratch_;
  mutable std::mutex plan_mutex_;
  mutable std::shared_ptr<const Plan> plan_;
};

}  // namespace conv
}  // namespace bnnfx

#endif  // BNNFX_CONV_CONVOLUTION_H_
