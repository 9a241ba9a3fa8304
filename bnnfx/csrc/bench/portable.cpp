// Plain C++. The loop over lanes is of fixed length and without branches, so that a compiler turns it into vector
// instructions of whatever the target is sure to have (SSE2, NEON).

#include "kernel.h"

namespace bnnfx {
namespace bench {
namespace {

constexpr int kLanes = 4;
constexpr int kStepsPerFlush = 31;  // a byte counts at most 8 bits per step, so it holds the sum of 31

volatile uint64_t step_in_memory = 0x9e3779b97f4a7c15u;  // read and written where the compiler cannot look
volatile uint64_t result_in_memory;

// The number of set bits of each byte, by adding neighbors: pairs, then fours, then eights.
inline uint64_t CountPerByte(uint64_t v) {
  v = v - ((v >> 1) & 0x5555555555555555u);
  v = (v & 0x3333333333333333u) + ((v >> 2) & 0x3333333333333333u);
  return (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fu;
}

uint64_t Run(uint64_t rounds) {
  const uint64_t change = step_in_memory;
  uint64_t x[kLanes];
  uint64_t total[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = step_in_memory * static_cast<uint64_t>(lane + 1);
  uint64_t w = change;
  for (uint64_t round = 0; round < rounds; ++round) {
    uint64_t bytes[kLanes] = {};
    for (int step = 0; step < kStepsPerFlush; ++step) {
      w += change;  // one instruction for all lanes; without it nothing would change from step to step
      for (int lane = 0; lane < kLanes; ++lane) bytes[lane] += CountPerByte(x[lane] ^ w);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t pairs = (bytes[lane] & 0x00ff00ff00ff00ffu) + ((bytes[lane] >> 8) & 0x00ff00ff00ff00ffu);
      total[lane] += pairs * 0x0001000100010001u >> 48;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) result_in_memory = total[lane];
  return rounds * kStepsPerFlush * kLanes * 64;
}

}  // namespace

extern const Kernel kPortable = {Isa::kPortable, &Run};

}  // namespace bench
}  // namespace bnnfx
