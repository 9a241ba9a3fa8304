// NEON: one xor, one count and one add of bytes for each register of 128 bits, and the widening when bytes are full.

#include <arm_neon.h>

#include "kernel.h"

namespace bnnfx {
namespace bench {
namespace {

constexpr int kSums = 12;           // and as many operands: 25 of 32 registers, the rest for what is in between
constexpr int kStepsPerFlush = 31;  // a byte counts at most 8 bits per step, so it holds the sum of 31

uint64_t Run(uint64_t rounds) {
  uint32x4_t sum[kSums];
  uint8x16_t x[kSums];
  for (int i = 0; i < kSums; ++i) {
    sum[i] = vdupq_n_u32(0);
    x[i] = vdupq_n_u8(static_cast<uint8_t>(i * 23));
    asm volatile("" : "+w"(x[i]));  // not a constant to the compiler
  }
  uint8x16_t w = vdupq_n_u8(0x5a);
  for (uint64_t round = 0; round < rounds; ++round) {
    uint8x16_t bytes[kSums];
    for (int i = 0; i < kSums; ++i) bytes[i] = vdupq_n_u8(0);
    for (int step = 0; step < kStepsPerFlush; ++step) {
      asm volatile("" : "+w"(w));  // a new value in each step, for all that the compiler knows
      for (int i = 0; i < kSums; ++i) bytes[i] = vaddq_u8(bytes[i], vcntq_u8(veorq_u8(x[i], w)));
    }
    for (int i = 0; i < kSums; ++i) sum[i] = vpadalq_u16(sum[i], vpaddlq_u8(bytes[i]));
  }
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+w"(sum[i]));  // somebody reads it
  return rounds * kStepsPerFlush * kSums * 128;
}

}  // namespace

extern const Kernel kNeon = {Isa::kNeon, &Run};

}  // namespace bench
}  // namespace bnnfx
