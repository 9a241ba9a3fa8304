// One of our operators as ONNX Runtime sees it.
//
// Exceptions stay inside: the functions that the runtime calls turn them into a status that names the op, its node and
// what is wrong.

#ifndef BNNFX_ORT_CUSTOM_OP_H_
#define BNNFX_ORT_CUSTOM_OP_H_

#include <string>

#include "runtime.h"

namespace bnnfx {
namespace ort {

class CustomOp : public OrtCustomOp {
 public:
  // For a runtime with that version of the API.
  CustomOp(const Definition& definition, uint32_t api_version);

 private:
  struct Kernel {
    const CustomOp& type;
    const OrtApi* api;
    std::string node;
    OperatorPointer op;
  };

  static const CustomOp& Self(const OrtCustomOp* op) { return *static_cast<const CustomOp*>(op); }
  static OrtStatus* Create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** out) noexcept;
  static OrtStatus* Compute(void* kernel, OrtKernelContext* context) noexcept;

  // Calls `body()`; what it throws becomes a status, in which `name()` names the node.
  template <class Name, class Body>
  OrtStatus* Guard(const OrtApi* api, const Name& name, const Body& body) const noexcept;

  const Definition& definition_;
};

}  // namespace ort
}  // namespace bnnfx

#endif  // BNNFX_ORT_CUSTOM_OP_H_
