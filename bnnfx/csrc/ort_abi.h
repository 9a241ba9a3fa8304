// The part of ONNX Runtime's C ABI that this library uses, and nothing else.
//
// The onnxruntime wheel ships no headers, so the layout is declared here. It may be: the table of functions is
// append-only, so the slot of a function (its offset in pointers) is the same in every release that has it, and a
// library built against these declarations runs in all of them.
//
// A function that returns OrtStatus* reports success as null. The caller owns a status that it gets.

#ifndef BNNFX_ORT_ABI_H_
#define BNNFX_ORT_ABI_H_

#include <cstddef>
#include <cstdint>

extern "C" {

// Opaque: only pointers to these cross the boundary.
struct OrtCustomOp;
struct OrtCustomOpDomain;
struct OrtSessionOptions;
struct OrtStatus;

// Error codes of CreateStatus (an enum in C, so an int in the ABI).
enum OrtErrorCode : int {
  ORT_FAIL = 1,
};

// Members are in the order of the table; `unused_A_B` covers the slots A to B.
struct OrtApi {
  // 0: copies `message`.
  OrtStatus* (*CreateStatus)(int code, const char* message);
  void* unused_1_25[25];
  // 26: copies `name`; the caller owns the domain.
  OrtStatus* (*CreateCustomOpDomain)(const char* name, OrtCustomOpDomain** out);
  // 27: keeps the pointer `op`, which has to outlive the domain.
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, const OrtCustomOp* op);
  // 28: keeps the pointer `domain`, which has to outlive every session made from `options`.
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);
  void* unused_29_100[72];
  // 101
  void (*ReleaseCustomOpDomain)(OrtCustomOpDomain* domain);
};

struct OrtApiBase {
  // Null when this ONNX Runtime is older than API version `version`; version N came with release 1.N.
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

}  // extern "C"

static_assert(offsetof(OrtApi, CreateStatus) == 0 * sizeof(void*), "slot 0");
static_assert(offsetof(OrtApi, CreateCustomOpDomain) == 26 * sizeof(void*), "slot 26");
static_assert(offsetof(OrtApi, CustomOpDomain_Add) == 27 * sizeof(void*), "slot 27");
static_assert(offsetof(OrtApi, AddCustomOpDomain) == 28 * sizeof(void*), "slot 28");
static_assert(offsetof(OrtApi, ReleaseCustomOpDomain) == 101 * sizeof(void*), "slot 101");

#endif  // BNNFX_ORT_ABI_H_
