// RegisterCustomOps: what ONNX Runtime calls after it has loaded this library for a set of session options.

#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../bench/ceiling.h"
#include "../kernels/isa.h"
#include "custom_op.h"
#include "generated/domain.h"

#if defined(_WIN32)
#define BNNFX_EXPORT __declspec(dllexport)
#else
#define BNNFX_EXPORT __attribute__((visibility("default")))
#endif

namespace bnnfx {
namespace ort {
namespace {

using CustomOps = std::vector<std::unique_ptr<CustomOp>>;

// Every op that has a kernel; a node whose op is not listed runs as the local function in its model file.
CustomOps MakeCustomOps(uint32_t api_version) {
  CustomOps ops;
  for (const Definition& definition : Definitions()) ops.push_back(std::make_unique<CustomOp>(definition, api_version));
  return ops;
}

// The version to write into the operators: no more than the runtime has, whose release 1.N has version N. It could be
// asked for its table of that version, but complains on the console if it has none.
uint32_t OpVersion(const OrtApiBase* api_base) {
  unsigned major = 0, minor = 0;
  const bool known = std::sscanf(api_base->GetVersionString(), "%u.%u", &major, &minor) == 2;
  return known && (major > 1 || minor >= kInplaceApiVersion) ? kInplaceApiVersion : kApiVersion;
}

// The op domains of this library and their operators, one per ONNX Runtime in the process (nearly always one).
//
// Session options and sessions keep the bare pointer to a domain and never free it, so it has to live as long as
// the last of them. Nobody tells this library when that is, but ONNX Runtime unloads the library only after the last
// session that uses it: a domain therefore lives until the library is unloaded or the process ends. A domain is not
// modified once it is made, so all sessions share one and the number of them does not grow with the sessions.
//
// A domain belongs to the runtime that made it. A process may hold two (a wheel's and an application's), which have
// different function tables: hence the look-up by table.
class Domains {
 public:
  Domains() = default;
  Domains(const Domains&) = delete;
  Domains& operator=(const Domains&) = delete;
  ~Domains() {
    for (const Entry& entry : entries_) entry.api->ReleaseCustomOpDomain(entry.domain);
  }

  // Sets `*out` to the domain for `api`, made on the first call; on failure returns the status and makes nothing.
  OrtStatus* Get(const OrtApi* api, uint32_t op_version, OrtCustomOpDomain** out) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Entry& entry : entries_) {
      if (entry.api == api) {
        *out = entry.domain;
        return nullptr;
      }
    }
    // What may throw comes first, so that no domain is lost.
    entries_.reserve(entries_.size() + 1);
    CustomOps ops = MakeCustomOps(op_version);
    OrtCustomOpDomain* domain = nullptr;
    if (OrtStatus* status = api->CreateCustomOpDomain(kDomain, &domain)) return status;
    for (const auto& op : ops) {
      if (OrtStatus* status = api->CustomOpDomain_Add(domain, op.get())) {
        api->ReleaseCustomOpDomain(domain);
        return status;
      }
    }
    entries_.push_back({api, domain, std::move(ops)});
    *out = domain;
    return nullptr;
  }

 private:
  struct Entry {
    const OrtApi* api;
    OrtCustomOpDomain* domain;
    CustomOps ops;
  };
  std::mutex mutex_;
  std::vector<Entry> entries_;
};

OrtStatus* Register(OrtSessionOptions* options, const OrtApi* api, uint32_t op_version) {
  static Domains domains;
  OrtCustomOpDomain* domain = nullptr;
  if (OrtStatus* status = domains.Get(api, op_version, &domain)) return status;
  return api->AddCustomOpDomain(options, domain);
}

// The runtime is older than kApiVersion. A status can only be made by a function of the runtime; every release serves
// version 1 and the table is append-only, so CreateStatus is there. Where even that is refused nothing can be
// reported, and null ("success") is still true to the caller's model: no kernel is registered, so each node runs as
// its local function, slower and with the same result.
OrtStatus* RefuseOldRuntime(const OrtApiBase* api_base) {
  const OrtApi* oldest = api_base->GetApi(1);
  if (oldest == nullptr) return nullptr;
  const std::string message = std::string("bnnfx needs ONNX Runtime 1.") + std::to_string(kApiVersion) +
                              " or newer, and this is " + api_base->GetVersionString() +
                              ". Upgrade it, or do not register this library: the model runs without it, slower.";
  return oldest->CreateStatus(ORT_FAIL, message.c_str());
}

}  // namespace
}  // namespace ort
}  // namespace bnnfx

// Not for ONNX Runtime: lets tests and benchmarks enumerate what the environment variable BNNFX_ISA may be here.
extern "C" BNNFX_EXPORT const char* bnnfx_isas() noexcept { return bnnfx::IsaNames(); }

// Likewise: what MeasureCeiling gives, or a negative number where BNNFX_ISA names no instruction set of this machine.
extern "C" BNNFX_EXPORT double bnnfx_ceiling() noexcept {
  try {
    return bnnfx::MeasureCeiling();
  } catch (const std::exception&) {
    return -1;
  }
}

extern "C" BNNFX_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* api_base) noexcept {
  const OrtApi* api = nullptr;
  try {
    api = api_base->GetApi(bnnfx::ort::kApiVersion);
    return api != nullptr ? bnnfx::ort::Register(options, api, bnnfx::ort::OpVersion(api_base))
                          : bnnfx::ort::RefuseOldRuntime(api_base);
  } catch (const std::exception& error) {  // out of memory, or a mutex that cannot be locked
    return api != nullptr ? api->CreateStatus(ORT_FAIL, error.what()) : nullptr;
  }
}
