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

// A stretch of output pixels of one border class (kernel.h, step 2), in the order of Plan::pixel.
struct Strip {
  size_t first;
  size_t pixels;        // 1 to kStrip
  size_t border_class;  // of Plan::classes
};

// What depends on the size of the input map, and not on its contents.
struct Plan {
  struct BorderClass {
    std::vector<Run> runs;
    size_t run_words;
    int32_t products;
  };
  int64_t height, width;  // of the input
  int64_t out_height, out_width;
  std::vector<BorderClass> classes;
  std::vector<Strip> strips;
  std::vector<size_t> chunks;           // where stretches of strips begin that take about equally long; and the end
  std::vector<uint32_t> pixel;          // of the output map, row by row; sorted by class
  std::vector<ptrdiff_t> pixel_offset;  // where its window starts: bytes from the first pixel of the prepared map
};

// A stretch of output channels of one group that is computed together.
struct Block {
  size_t group;
  size_t first_channel;  // of all output channels
  size_t channels;       // 1 to kBlock
  size_t lanes;          // channels, rounded up as the kernel needs it
  size_t filter_offset;  // bytes into the prepared filters
};

// What Convolution::Run hands out: the counts of a strip of pixels and a block of channels.
struct Part {
  Counts counts;
  size_t image;
  const uint32_t* pixel;  // [counts.pixels], of the output map
  size_t slot;            // of the first channel: blocks are kBlock apart here, whatever they hold
  const Block* block;
};

class Convolution {
 public:
  // Reads attributes and the constant weight (input 1), checks them and prepares the weight.
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

  // Calls sink(Part, Streams) for all strips and blocks, on the threads of the session, with the streams that
  // streams_of(Part) gave before the counting. Neither may throw. Without groups, the blocks of one strip may come on
  // different threads at once; with groups, on one thread and in order.
  template <class StreamsOf, class Sink>
  void Run(const Context& context, const Tensor& x, const Plan& plan, const StreamsOf& streams_of,
           const Sink& sink) const {
    const size_t images = static_cast<size_t>(x.dims[0]);
    if (images == 0) return;
    const size_t map = static_cast<size_t>(plan.height * plan.width);
    const size_t group_bytes = map * pixel_words_ * kernel_.input_word_bytes;
    const size_t image_bytes = groups_ * group_bytes;
    const bool prepares = groups_ > 1 || kernel_.prepare_input != nullptr;
    const Scratch::Lease scratch = scratch_.Take(prepares ? images * image_bytes : 0);
    const uint8_t* source = x.Data<uint8_t>();
    if (prepares) {
      context.ParallelFor(images, [&](size_t image) {
        PrepareImage(source + image * map * row_bytes_, map, scratch.data() + image * image_bytes);
      });
      source = scratch.data();
    }
    const size_t chunks = plan.chunks.size() - 1;
    const size_t block_steps = groups_ == 1 ? blocks_.size() : 1;
    // Chunk by chunk, so that threads do not write to the same cache lines: those hold a pixel's values of all blocks.
    context.ParallelFor(images * block_steps * chunks, [&](size_t task) {
      const size_t block_step = task % block_steps;
      const size_t chunk = task / block_steps % chunks;
      const size_t image = task / block_steps / chunks;
      alignas(64) int32_t differing[kStrip * kBlock];
      const size_t last_block = groups_ == 1 ? block_step + 1 : blocks_.size();
      for (size_t s = plan.chunks[chunk]; s < plan.chunks[chunk + 1]; ++s) {
        const Strip& strip = plan.strips[s];
        const Plan::BorderClass& border = plan.classes[strip.border_class];
        const Window window{border.runs.data(), border.runs.size(), border.run_words};
        for (size_t b = block_step; b < last_block; ++b) {
          const Block& block = blocks_[b];
          const Part part{Counts{differing, border.products, strip.pixels, block.lanes}, image,
                          plan.pixel.data() + strip.first, b * kBlock, &block};
          const Streams streams = streams_of(part);
          kernel_.count(source + image * image_bytes + block.group * group_bytes,
                        plan.pixel_offset.data() + strip.first, strip.pixels, window, filters_ + block.filter_offset,
                        block.lanes, streams, differing);
          sink(part, streams);
        }
      }
    });
  }

 private:
  void PrepareFilters(const Tensor& weight);
  std::shared_ptr<const Plan> MakePlan(int64_t height, int64_t width) const;
  // Writes the prepared form of one image's map of `pixels` pixels, its groups apart.
  void PrepareImage(const uint8_t* source, size_t pixels, uint8_t* target) const;
  void MakeChunks(Plan* plan) const;

  const Kernel& kernel_;
  int64_t channels_ = 0;  // of the input, all groups
  std::vector<int64_t> strides_, pads_, dilations_;
  size_t groups_ = 1;
  size_t out_channels_ = 0;
  int64_t kernel_shape_[2] = {1, 1};
  size_t row_bytes_ = 0;    // of a pixel of the input
  size_t pixel_words_ = 0;  // 64-bit words of a pixel of one group
  std::vector<Block> blocks_;
  std::vector<uint8_t> filter_storage_;
  const uint8_t* filters_ = nullptr;  // into the storage, aligned

  mutable Scratch scratch_;
  mutable std::mutex plan_mutex_;
  mutable std::shared_ptr<const Plan> plan_;
};

}  // namespace conv
}  // namespace bnnfx

#endif  // BNNFX_CONV_CONVOLUTION_H_
