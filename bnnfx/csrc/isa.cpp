#include "isa.h"

#include <cstdlib>
#include <string>

#include "ort.h"

#if BNNFX_X86_KERNELS
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace bnnfx {
namespace {

struct Row {
  Isa isa;
  const char* name;
  const char* names_from_here;  // its own and the lesser ones
};

constexpr Row kRows[] = {
#if BNNFX_X86_KERNELS
    {Isa::kAmx, "amx", "amx,avx512,avx2,portable"},
    {Isa::kAvx512, "avx512", "avx512,avx2,portable"},
    {Isa::kAvx2, "avx2", "avx2,portable"},
#elif BNNFX_ARM_KERNELS
    {Isa::kNeon, "neon", "neon,portable"},
#endif
    {Isa::kPortable, "portable", "portable"},
};

#if BNNFX_X86_KERNELS
// AMX's registers are large, so Linux gives them to processes that ask, and to all their threads at once.
bool HasTiles() {
#if defined(__linux__)
  constexpr unsigned kTileBits = 3u << 24;  // of EDX: AMX-TILE, AMX-INT8
  constexpr unsigned kXsaveBit = 1u << 27;  // of ECX, leaf 1: the system manages extended registers
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & kXsaveBit) == 0) return false;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kTileBits) != kTileBits) return false;
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// What both the processor and the operating system support, of what this library was compiled with.
Isa Detected() {
#if BNNFX_X86_KERNELS
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2")) return Isa::kPortable;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vpopcntdq");
  if (!avx512) return Isa::kAvx2;
  static const bool tiles = HasTiles();
  return tiles ? Isa::kAmx : Isa::kAvx512;
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
