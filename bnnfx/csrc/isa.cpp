#include "isa.h"

#include <cstdlib>
#include <string>

#include "ort.h"

namespace bnnfx {
namespace {

struct Row {
  Isa isa;
  const char* name;
  const char* names_from_here;  // its own and the lesser ones
};

constexpr Row kRows[] = {
#if BNNFX_X86_KERNELS
    {Isa::kAvx512, "avx512", "avx512,avx2,portable"},
    {Isa::kAvx2, "avx2", "avx2,portable"},
#elif BNNFX_ARM_KERNELS
    {Isa::kNeon, "neon", "neon,portable"},
#endif
    {Isa::kPortable, "portable", "portable"},
};

// What both the processor and the operating system support, of what this library was compiled with.
Isa Detected() {
#if BNNFX_X86_KERNELS
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2")) return Isa::kPortable;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vpopcntdq");
  return avx512 ? Isa::kAvx512 : Isa::kAvx2;
#elif BNNFX_ARM_KERNELS
  return Isa::kNeon;  // part of AArch64
#else
  return Isa::kPortable;
#endif
}

}  // namespace

const char* IsaNames() {
  const Isa detected = Detected();
  for (const Row& row : kRows) {
    if (row.isa == detected) return row.names_from_here;
  }
  return "portable";
}

Isa AllowedIsa() {
  const Isa detected = Detected();
  const char* wanted = std::getenv("BNNFX_ISA");
  if (wanted == nullptr || *wanted == '\0') return detected;
  for (const Row& row : kRows) {
    if (row.isa <= detected && std::string(wanted) == row.name) return row.isa;
  }
  throw Error(std::string("the environment variable BNNFX_ISA is '") + wanted + "'; this machine has " + IsaNames());
}

}  // namespace bnnfx
