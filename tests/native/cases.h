// Random nodes: sound ones with everything that a kernel could trip over, and ones that are malformed.

#ifndef BNNFX_TESTS_NATIVE_CASES_H_
#define BNNFX_TESTS_NATIVE_CASES_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "fake_ort.h"

namespace native {

// The same numbers on every platform, which the distributions of the standard library do not promise.
class Random {
 public:
  Random(uint64_t seed, uint64_t stream) : engine_(seed * 1000003 + stream) {}
  uint64_t Next() { return engine_(); }
  int64_t Below(int64_t limit) { return static_cast<int64_t>(Next() % static_cast<uint64_t>(limit)); }
  int64_t Between(int64_t least, int64_t most) { return least + Below(most - least + 1); }
  bool OneIn(int64_t n) { return Below(n) == 0; }

 private:
  std::mt19937_64 engine_;
};

// A sound node of an operator. Throws std::invalid_argument for a name that the reference does not know.
Node RandomNode(const std::string& op, Random* random);

// A sound node that was spoiled in one place, and where that has to be noticed.
struct Malformed {
  std::string what;
  Node node;
  bool at_creation;  // else when it runs
};

std::vector<Malformed> Spoil(const Node& sound);

}  // namespace native

#endif  // BNNFX_TESTS_NATIVE_CASES_H_
