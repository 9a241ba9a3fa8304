// ONNX Runtime as the host of our operators: its nodes as plain data, and its context for a run.

#ifndef BNNFX_ORT_RUNTIME_H_
#define BNNFX_ORT_RUNTIME_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../kernels/operator.h"
#include "abi.h"

namespace bnnfx {
namespace ort {

constexpr uint32_t kApiVersion = 17;         // needed: the first one with KernelContext_ParallelFor
constexpr uint32_t kInplaceApiVersion = 18;  // used where the runtime has it: OrtCustomOp::GetMayInplace

int OrtType(ElementType type);

std::string NodeName(const OrtApi* api, const OrtKernelInfo* info);

// Attributes and constant inputs of a node, as the definition asks for them. Throws Error.
Node ReadNode(const OrtApi* api, const OrtKernelInfo* info, const Definition& definition);

// What is known when a kernel runs.
class Context : public Host {
 public:
  Context(const OrtApi* api, OrtKernelContext* context) : api_(api), context_(context) {}

  // The inputs that are not constant. Throws Error.
  std::vector<Tensor> Inputs(const Definition& definition) const;
  void* Output(size_t index, const std::vector<int64_t>& dims) const override;

 protected:
  void RunParallel(void (*function)(void*, size_t), size_t total, void* user) const override;

 private:
  const OrtApi* api_;
  OrtKernelContext* context_;
};

}  // namespace ort
}  // namespace bnnfx

#endif  // BNNFX_ORT_RUNTIME_H_
