// Binary convolution up to its accumulators, for any operator that goes on from there.

#ifndef BNNFX_CONV_CONVOLUTION_H_
#define BNNFX_CONV_CONVOLUTION_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "../operator.h"
#include "../scratch.h"
#include "kernel.h"

namespace bnnfx {
namespace conv {

// Taps [first, last) of a window, along one axis, that lie inside the map.
struct Inside {
  int64_t first, last;
  bool operator<(const Inside& other) const {
    return std::pair(first, last) < std::pair(other.first, other.last);
  }
};

// A stretch of output pixels of one border class (kernel.h, step 2), in the order of Plan::pixel.
struct Strip {
  size_t first;
  size_t pixels;        // 1 to kStrip
  size_t first_window;  // or tile, of Plan::offset
  size_t windows;       // or tiles
  size_t border_class;  // of Plan::classes
};

// A stretch of output channels of one group that is computed together.
struct Block {
  size_t group;
  size_t first_channel;  // of all output channels
  size_t channels;       // 1 to kBlock
};

// The weight as one kernel needs it.
struct Filters {
  struct Part {
    size_t lanes;   // the block's channels, rounded up as the kernel needs it
    size_t offset;  // bytes
  };
  std::vector<Part> parts;  // by block
  std::vector<uint8_t> storage;
  const uint8_t* data;  // into the storage, aligned
  size_t bytes;         // from there
  uint64_t number;      // no other has it, nor had; not 0

  // Where share `index` of `count` begins of a block's filters; at the end of all of them where there is no such block.
  const uint8_t* Share(size_t block, size_t index, size_t count) const {
    if (block >= parts.size()) return data + bytes;
    const size_t end = block + 1 < parts.size() ? parts[block + 1].offset : bytes;
    return data + parts[block].offset + (end - parts[block].offset) * index / count;
  }
};

// What depends on the size of the input map, and not on its contents.
struct Plan {
  struct BorderClass {
    std::vector<Run> runs;
    size_t run_words;
    uint64_t products;
    std::vector<int32_t> base;  // [slots]
  };
  struct Bands {
    size_t first, last;  // kBandRows rows each of the prepared map, [first, last)
  };
  const Kernel* kernel;
  const Filters* filters;
  int64_t height, width;                    // of the input
  int64_t top, left;                        // where the input starts in the prepared map
  int64_t prepared_height, prepared_width;  // of that
  std::vector<BorderClass> classes;
  std::vector<Strip> strips;
  std::vector<size_t> chunks;     // where stretches of strips begin that take about equally long; and the end
  std::vector<Bands> bands;       // by chunk: what its windows read
  std::vector<uint32_t> pixel;    // of the output map, row by row; sorted by class
  std::vector<uint8_t> row;       // as in Counts
  std::vector<ptrdiff_t> offset;  // of windows or tiles: bytes from the first pixel of the prepared map
  ptrdiff_t step;                 // as in Window
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
  // Reads attributes and the constant weight (input 1), and checks them. An operator uses each sum `copies` times: its
  // channels are those of the weight, and then as many again.
  explicit Convolution(const Node& node);

  size_t OutChannels() const { return copies_ * filter_count_; }
  size_t Copies() const { return copies_; }
  size_t CopyChannels() const { return filter_count_; }
  size_t Slots() const { return blocks_.size() * kBlock; }  // of one copy
  // Whether blocks share words of a packed row, so that they come in order, all on one thread.
  bool InOrder() const { return in_order_; }
  const std::vector<Block>& Blocks() const { return blocks_; }

  // Rows and columns of the result, after a check that input 0 is a map that fits the weight and the window.
  std::array<int64_t, 2> OutputMap(const Tensor& x) const;
  // The plan for a map of this size, which takes memory for every pixel of the result: the last one where it fits, else
  // a new one. An empty batch needs none.
  std::shared_ptr<const Plan> PlanFor(const Tensor& x) const;

  // Calls sink(Part, Streams) for all strips and blocks, on the threads of the host, with the streams that
  // streams_of(Part) gave before the counting. Neither may throw. The blocks of one strip may come on different threads at
  // once, unless they come in order.
  template <class StreamsOf, class Sink>
  void Run(const Host& host, const Tensor& x, const Plan& plan, const StreamsOf& streams_of,
           const Sink& sink) const {
    const size_t images = static_cast<size_t>(x.dims[0]);
    const Kernel& kernel = *plan.kernel;
    const size_t map = static_cast<size_t>(plan.height * plan.width);
    const size_t rows = static_cast<size_t>(plan.prepared_height);
    const size_t group_bytes = rows * static_cast<size_t>(plan.prepared_width) * pixel_words_ * kernel.input_word_bytes;
    const size_t image_bytes = groups_ * group_bytes;
    const bool prepares = groups_ > 1 || kernel.prepare_input != nullptr;
    const size_t beyond = kernel.multiplies ? kTile * static_cast<size_t>(plan.step) : 0;
    const size_t map_bytes = prepares ? images * image_bytes + beyond : 0;
    const size_t bands = (rows + kBandRows - 1) / kBandRows;
    const Scratch::Lease scratch =
        SharedScratch().Take(map_bytes + (prepares ? images * bands * sizeof(BandState) : 0));
    const uint8_t* packed = x.Data<uint8_t>();
    const uint8_t* source = prepares ? scratch.data() : packed;
    auto* const states = reinterpret_cast<BandState*>(scratch.data() + map_bytes);
    if (prepares) std::uninitialized_fill_n(states, images * bands, uint8_t{kToDo});
    const size_t chunks = plan.chunks.size() - 1;
    const size_t block_steps = in_order_ ? 1 : blocks_.size();
    std::atomic<bool> out_of_memory{false};  // an exception cannot leave a task
    // Chunk by chunk, so that threads do not write to the same cache lines: those hold a pixel's values of all blocks.
    host.ParallelFor(images * block_steps * chunks, [&](size_t task) {
      const KernelUse use(kernel);
      const size_t block_step = task % block_steps;
      const size_t chunk = task / block_steps % chunks;
      const size_t image = task / block_steps / chunks;
      alignas(64) int32_t counted[kStrip * kBlock];
      if (prepares) {
        PrepareBands(plan, packed + image * map * row_bytes_, plan.bands[chunk], states + image * bands,
                     scratch.data() + image * image_bytes);
      }
      const size_t last_block = in_order_ ? blocks_.size() : block_step + 1;
      const FiltersInUse filters(*plan.filters, kernel);
      if (filters.OutOfMemory()) {
        out_of_memory = true;
        return;
      }
      for (size_t s = plan.chunks[chunk]; s < plan.chunks[chunk + 1]; ++s) {
        const Strip& strip = plan.strips[s];
        const Plan::BorderClass& border = plan.classes[strip.border_class];
        const Window window{border.runs.data(), border.runs.size(), border.run_words, plan.step, low_ == -1 ? 1 : 0};
        for (size_t b = block_step; b < last_block; ++b) {
          const Block& block = blocks_[b];
          const size_t slot = b * kBlock;
          const Counts counts{counted, plan.row.data() + strip.first, border.base.data() + slot, strip.pixels,
                              filters.Lanes(b)};
          const Part part{counts, image, plan.pixel.data() + strip.first, slot, &block};
          const uint8_t* next = plan.filters->Share(b + 1, strip.first, plan.pixel.size());
          const uint8_t* end = plan.filters->Share(b + 1, strip.first + strip.pixels, plan.pixel.size());
          const Upcoming upcoming{streams_of(part), next, static_cast<size_t>(end - next)};
          kernel.count(source + image * image_bytes + block.group * group_bytes,
                       plan.offset.data() + strip.first_window, strip.windows, window, filters.Data(b),
                       filters.Lanes(b), upcoming, counted);
          sink(part, upcoming.streams);
        }
      }
    });
    if (out_of_memory) throw std::bad_alloc();
  }

 private:
  static constexpr size_t kBandRows = 16;  // prepared at once
  enum : uint8_t { kToDo, kBegun, kDone };
  using BandState = std::atomic<uint8_t>;

  // The filters as `count` wants them. Expanded by the thread that uses them, because from another core's cache they would
  // come more slowly than it expands them; and kept by it, because its next task is most likely of the same node.
  class FiltersInUse {
   public:
    FiltersInUse(const Filters& filters, const Kernel& kernel)
        : filters_(filters), expansion_(kernel.expansion), data_(filters.data) {
      if (kernel.expand_filters == nullptr) return;
      thread_local Expanded mine;
      if (mine.filters != filters.number) {
        mine.filters = 0;  // until it is done
        const size_t bytes = filters.bytes * expansion_;
        try {
          if (mine.storage.size() < bytes + kAlign) mine.storage.resize(bytes + kAlign);
        } catch (const std::bad_alloc&) {
          data_ = nullptr;
          return;
        }
        void* start = mine.storage.data();
        size_t space = mine.storage.size();
        mine.data = static_cast<uint8_t*>(std::align(kAlign, bytes, start, space));
        kernel.expand_filters(filters.data, filters.bytes, mine.data);
        mine.filters = filters.number;
      }
      data_ = mine.data;
    }
    bool OutOfMemory() const { return data_ == nullptr; }
    size_t Lanes(size_t block) const { return filters_.parts[block].lanes; }
    const uint8_t* Data(size_t block) const { return data_ + filters_.parts[block].offset * expansion_; }

   private:
    struct Expanded {
      uint64_t filters = 0;  // Filters::number
      std::vector<uint8_t> storage;
      uint8_t* data = nullptr;
    };
    const Filters& filters_;
    size_t expansion_;
    const uint8_t* data_;
  };

  struct KernelUse {
    explicit KernelUse(const Kernel& used) : kernel(used) {
      if (kernel.begin != nullptr) kernel.begin();
    }
    KernelUse(const KernelUse&) = delete;
    KernelUse& operator=(const KernelUse&) = delete;
    ~KernelUse() {
      if (kernel.end != nullptr) kernel.end();
    }
    const Kernel& kernel;
  };

  // The first kernel that is allowed and suits maps like this one.
  const Kernel& KernelFor(const int64_t (&size)[2], const std::array<int64_t, 2>& out) const;
  // The weight for a kernel, prepared once.
  const Filters* FiltersFor(const Kernel& kernel) const;
  std::shared_ptr<const Plan> MakePlan(int64_t height, int64_t width, const std::array<int64_t, 2>& out) const;
  // acc of each slot before anything is counted, where the taps [first, last) of both axes are inside the map.
  std::vector<int32_t> Base(const Kernel& kernel, const Inside& rows, const Inside& columns) const;
  void AddBands(Plan* plan) const;
  // Sees to it that bands of one image's prepared map are there: prepares those that no thread has begun with, and
  // waits for the others. So there is no phase of its own for it, at whose end all threads wait for one another.
  void PrepareBands(const Plan& plan, const uint8_t* source, const Plan::Bands& bands, BandState* states,
                    uint8_t* target) const;
  // Writes the prepared form of row y, its groups apart.
  void PrepareRow(const Plan& plan, const uint8_t* source, size_t y, uint8_t* target) const;
  void MakeChunks(Plan* plan) const;

  Isas isas_;
  int64_t channels_ = 0;  // of the input, all groups
  std::vector<int64_t> strides_, pads_, dilations_;
  size_t groups_ = 1;
  int32_t low_ = -1;  // value of a zero bit of the map
  bool in_order_ = false;
  size_t copies_ = 1;
  size_t filter_count_ = 0;
  int64_t kernel_shape_[2] = {1, 1};
  size_t row_bytes_ = 0;    // of a pixel of the input
  size_t pixel_words_ = 0;  // 64-bit words of a pixel of one group
  std::vector<Block> blocks_;
  std::vector<uint8_t> weight_;  // packed

  mutable std::mutex filters_mutex_;
  mutable std::map<const Kernel*, Filters> filters_;
  mutable std::mutex plan_mutex_;
  mutable std::shared_ptr<const Plan> plan_;
};

}  // namespace conv
}  // namespace bnnfx

#endif  // BNNFX_CONV_CONVOLUTION_H_
