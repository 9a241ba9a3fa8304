// Memory that a kernel needs while it runs, kept from one run to the next.

#ifndef BNNFX_SCRATCH_H_
#define BNNFX_SCRATCH_H_

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

namespace bnnfx {

// A pool with one buffer per run that is under way: sessions may be run by several threads at once. All nodes share one,
// so that what one node has used is still in the cache when the next one writes to it.
class Scratch {
  static constexpr size_t kLine = 64;

 public:
  class Lease {
   public:
    Lease(Scratch* pool, std::vector<uint8_t> buffer) : pool_(pool), buffer_(std::move(buffer)) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() { pool_->Return(std::move(buffer_)); }
    // Starts at a cache line.
    uint8_t* data() const {
      const auto address = reinterpret_cast<uintptr_t>(buffer_.data());
      return const_cast<uint8_t*>(buffer_.data()) + (kLine - address % kLine) % kLine;
    }

   private:
    Scratch* pool_;
    std::vector<uint8_t> buffer_;
  };

  // At least `bytes` bytes with any contents; they go back to the pool when the lease ends.
  Lease Take(size_t bytes) {
    std::vector<uint8_t> buffer;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        buffer = std::move(free_.back());
        free_.pop_back();
      }
      free_.reserve(free_.size() + ++taken_);  // so that Return cannot fail
    }
    try {
      if (buffer.size() < bytes + kLine) buffer.resize(bytes + kLine);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      --taken_;
      throw;
    }
    return Lease(this, std::move(buffer));
  }

 private:
  void Return(std::vector<uint8_t> buffer) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    --taken_;
    free_.push_back(std::move(buffer));
  }

  std::mutex mutex_;
  std::vector<std::vector<uint8_t>> free_;
  size_t taken_ = 0;
};

inline Scratch& SharedScratch() {
  static Scratch scratch;
  return scratch;
}

}  // namespace bnnfx

#endif  // BNNFX_SCRATCH_H_
