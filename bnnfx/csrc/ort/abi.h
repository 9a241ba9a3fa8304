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
struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

struct OrtApi;
struct OrtCustomOp;

// Error codes of CreateStatus (an enum in C, so an int in the ABI).
enum OrtErrorCode : int {
  ORT_FAIL = 1,
  ORT_INVALID_ARGUMENT = 2,
};

// Element types of tensors (an enum in C, so an int in the ABI).
enum OrtElementType : int {
  ORT_FLOAT = 1,
  ORT_UINT8 = 2,
  ORT_INT32 = 6,
};

// Members are in the order of the table; `unused_A_B` covers the slots A to B.
struct OrtApi {
  // 0: copies `message`.
  OrtStatus* (*CreateStatus)(int code, const char* message);
  void* unused_1[1];
  // 2: the text belongs to the status.
  const char* (*GetErrorMessage)(const OrtStatus* status);
  void* unused_3_25[23];
  // 26: copies `name`; the caller owns the domain.
  OrtStatus* (*CreateCustomOpDomain)(const char* name, OrtCustomOpDomain** out);
  // 27: keeps the pointer `op`, which has to outlive the domain.
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, const OrtCustomOp* op);
  // 28: keeps the pointer `domain`, which has to outlive every session made from `options`.
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);
  void* unused_29_50[22];
  // 51
  OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** out);
  void* unused_52_59[8];
  // 60, 61, 62
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo* info, int* out);
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* out);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* dims, size_t count);
  void* unused_63_64[2];
  // 65: the caller owns the info.
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** out);
  void* unused_66_85[20];
  // 86
  OrtStatus* (*KernelInfoGetAttribute_int64)(const OrtKernelInfo* info, const char* name, int64_t* out);
  void* unused_87_89[3];
  // 90, 91: the context owns the values.
  OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext* context, size_t index, const OrtValue** out);
  OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext* context, size_t index, const int64_t* dims, size_t count,
                                        OrtValue** out);
  void* unused_92[1];
  // 93
  void (*ReleaseStatus)(OrtStatus* status);
  void* unused_94_98[5];
  // 99
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);
  void* unused_100[1];
  // 101
  void (*ReleaseCustomOpDomain)(OrtCustomOpDomain* domain);
  void* unused_102_162[61];
  // 163: with `out` null only `*size` is set.
  OrtStatus* (*KernelInfoGetAttributeArray_int64)(const OrtKernelInfo* info, const char* name, int64_t* out,
                                                  size_t* size);
  void* unused_164_243[80];
  // 244: with `out` null only `*size` is set; it counts the terminating null character.
  OrtStatus* (*KernelInfo_GetNodeName)(const OrtKernelInfo* info, char* out, size_t* size);
  void* unused_245_248[4];
  // 249: `*out` belongs to the session, and is null unless `*is_constant`.
  OrtStatus* (*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo* info, size_t index, int* is_constant,
                                                  const OrtValue** out);
  void* unused_250_273[24];
  // 274: calls `function(user, i)` for every i below `total`, on the threads of the session, and returns when all calls
  // are done; `batches` 0 leaves the grouping to the runtime.
  OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext* context, void (*function)(void* user, size_t i),
                                          size_t total, size_t batches, void* user);
};

// One operator: a table of functions that the runtime calls, with the table itself as first argument where it describes
// the operator. A function left null is not called, or has the stated default.
struct OrtCustomOp {
  uint32_t version;  // of the API: how much of this table the runtime may read; not above its own
  void* unused_1[1];
  const char* (*GetName)(const OrtCustomOp* op);
  const char* (*GetExecutionProviderType)(const OrtCustomOp* op);  // null text = CPU
  int (*GetInputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp* op);
  int (*GetOutputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp* op);
  void* unused_8[1];
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp* op, size_t index);  // 0 = required
  int (*GetOutputCharacteristic)(const OrtCustomOp* op, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp* op, size_t index);  // 0 = default
  void* unused_13_16[4];                                           // variadic inputs and outputs
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext* context);
  void* unused_19[1];                                // shape inference: the file states the shapes
  int (*GetStartVersion)(const OrtCustomOp* op);     // first and last version of the operator set
  int (*GetEndVersion)(const OrtCustomOp* op);
  // Since version 18: pairs of an input and an output, of the same size, that may be in the same memory. The runtime
  // does not say which operator it asks about, and gives the lists back.
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  void* unused_24_25[2];
};

struct OrtApiBase {
  // Null when this ONNX Runtime is older than API version `version`; version N came with release 1.N.
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

}  // extern "C"

static_assert(offsetof(OrtApi, CreateStatus) == 0 * sizeof(void*), "slot 0");
static_assert(offsetof(OrtApi, GetErrorMessage) == 2 * sizeof(void*), "slot 2");
static_assert(offsetof(OrtApi, CreateCustomOpDomain) == 26 * sizeof(void*), "slot 26");
static_assert(offsetof(OrtApi, CustomOpDomain_Add) == 27 * sizeof(void*), "slot 27");
static_assert(offsetof(OrtApi, AddCustomOpDomain) == 28 * sizeof(void*), "slot 28");
static_assert(offsetof(OrtApi, GetTensorMutableData) == 51 * sizeof(void*), "slot 51");
static_assert(offsetof(OrtApi, GetTensorElementType) == 60 * sizeof(void*), "slot 60");
static_assert(offsetof(OrtApi, GetDimensions) == 62 * sizeof(void*), "slot 62");
static_assert(offsetof(OrtApi, GetTensorTypeAndShape) == 65 * sizeof(void*), "slot 65");
static_assert(offsetof(OrtApi, KernelInfoGetAttribute_int64) == 86 * sizeof(void*), "slot 86");
static_assert(offsetof(OrtApi, KernelContext_GetInput) == 90 * sizeof(void*), "slot 90");
static_assert(offsetof(OrtApi, KernelContext_GetOutput) == 91 * sizeof(void*), "slot 91");
static_assert(offsetof(OrtApi, ReleaseStatus) == 93 * sizeof(void*), "slot 93");
static_assert(offsetof(OrtApi, ReleaseTensorTypeAndShapeInfo) == 99 * sizeof(void*), "slot 99");
static_assert(offsetof(OrtApi, ReleaseCustomOpDomain) == 101 * sizeof(void*), "slot 101");
static_assert(offsetof(OrtApi, KernelInfoGetAttributeArray_int64) == 163 * sizeof(void*), "slot 163");
static_assert(offsetof(OrtApi, KernelInfo_GetNodeName) == 244 * sizeof(void*), "slot 244");
static_assert(offsetof(OrtApi, KernelInfoGetConstantInput_tensor) == 249 * sizeof(void*), "slot 249");
static_assert(offsetof(OrtApi, KernelContext_ParallelFor) == 274 * sizeof(void*), "slot 274");
static_assert(offsetof(OrtCustomOp, GetName) == 2 * sizeof(void*), "slot 2");
static_assert(offsetof(OrtCustomOp, GetInputType) == 4 * sizeof(void*), "slot 4");
static_assert(offsetof(OrtCustomOp, KernelDestroy) == 9 * sizeof(void*), "slot 9");
static_assert(offsetof(OrtCustomOp, GetInputMemoryType) == 12 * sizeof(void*), "slot 12");
static_assert(offsetof(OrtCustomOp, CreateKernelV2) == 17 * sizeof(void*), "slot 17");
static_assert(offsetof(OrtCustomOp, KernelComputeV2) == 18 * sizeof(void*), "slot 18");
static_assert(offsetof(OrtCustomOp, GetStartVersion) == 20 * sizeof(void*), "slot 20");
static_assert(offsetof(OrtCustomOp, GetEndVersion) == 21 * sizeof(void*), "slot 21");
static_assert(offsetof(OrtCustomOp, ReleaseMayInplace) == 23 * sizeof(void*), "slot 23");

#endif  // BNNFX_ORT_ABI_H_
