#include "isa.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "operator.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace bnnfx {
namespace {

struct IsaRow {
  Isa isa;
  const char* name;
  bool (*is_there)();  // whether the processor has it, and the operating system supports it
};

// AMX's registers are large, so Linux gives them to processes that ask, and to all their threads at once.
[[maybe_unused]] bool HasTiles() {
#if defined(__x86_64__) && defined(__linux__)
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

}  // namespace
}  // namespace bnnfx

#include "generated/isa_rows.h"

namespace bnnfx {
namespace {

// The rows that are there, best first.
const std::vector<IsaRow>& Detected() {
  static const std::vector<IsaRow> detected = [] {
    std::vector<IsaRow> rows;
    for (const IsaRow& row : kIsaRows) {
      if (row.is_there()) rows.push_back(row);
    }
    return rows;
  }();
  return detected;
}

}  // namespace

const char* IsaNames() {
  static const std::string names = [] {
    std::string text;
    for (const IsaRow& row : Detected()) text += (text.empty() ? "" : ",") + std::string(row.name);
    return text;
  }();
  return names.c_str();
}

Isas AllowedIsas() {
  const char* wanted = std::getenv("BNNFX_ISA");
  bool allowed = wanted == nullptr || *wanted == '\0';
  Isas isas;
  for (const IsaRow& row : Detected()) {
    allowed = allowed || std::string(wanted) == row.name;
    if (allowed) isas.Add(row.isa);
  }
  Require(allowed, [&] {
    return std::string("the environment variable BNNFX_ISA is '") + wanted + "'; this machine has " + IsaNames();
  });
  return isas;
}

}  // namespace bnnfx
