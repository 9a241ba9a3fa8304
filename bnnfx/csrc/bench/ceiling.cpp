#include "ceiling.h"

#include <algorithm>
#include <chrono>

#include "kernel.h"

#include "generated/bench_kernels.h"

namespace bnnfx {
namespace {

constexpr double kSeconds = 0.005;  // of a measurement: long beside the clock's resolution, short beside a time slice
constexpr int kMeasurements = 9;    // the first ones also let the processor settle on its clock rate

struct Measurement {
  double bits;
  double seconds;
};

Measurement Measure(const bench::Kernel& kernel, uint64_t rounds) {
  const auto start = std::chrono::steady_clock::now();
  const uint64_t bits = kernel.run(rounds);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return {static_cast<double>(bits), elapsed.count()};
}

}  // namespace

double MeasureCeiling() {
  const bench::Kernel& kernel = Choose(bench::kKernels);
  uint64_t rounds = 1024;
  while (Measure(kernel, rounds).seconds < kSeconds) rounds *= 2;
  double best = 0;
  for (int i = 0; i < kMeasurements; ++i) {
    const Measurement measured = Measure(kernel, rounds);
    best = std::max(best, measured.bits / measured.seconds);
  }
  return best;
}

}  // namespace bnnfx
