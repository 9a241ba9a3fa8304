#include "custom_op.h"

#include <exception>
#include <utility>

#include "generated/domain.h"

namespace bnnfx {
namespace ort {
namespace {

constexpr size_t kMostInputs = 16;

// That input `input` may be the memory of output 0. The runtime asks without saying which operator it means, so there
// is a function for each input.
template <size_t input>
size_t InPlace(int** inputs, int** outputs) {
  static int first[] = {static_cast<int>(input)};
  static int second[] = {0};
  *inputs = first;
  *outputs = second;
  return 1;
}

using MayInPlace = decltype(OrtCustomOp::GetMayInplace);

template <size_t... inputs>
MayInPlace InPlaceOf(size_t input, std::index_sequence<inputs...>) {
  static constexpr MayInPlace kFunctions[] = {&InPlace<inputs>...};
  if (input >= kMostInputs) throw Error("there is no function that names input " + std::to_string(input));
  return kFunctions[input];
}

}  // namespace

CustomOp::CustomOp(const Definition& definition, uint32_t api_version) : OrtCustomOp{}, definition_(definition) {
  version = api_version;
  if (definition.in_place != 0) {
    GetMayInplace = InPlaceOf(definition.in_place, std::make_index_sequence<kMostInputs>());
  }
  ReleaseMayInplace = [](int*, int*) {};
  GetName = [](const OrtCustomOp* op) { return Self(op).definition_.name; };
  GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  GetInputType = [](const OrtCustomOp* op, size_t index) { return OrtType(Self(op).definition_.inputs[index].type); };
  GetInputTypeCount = [](const OrtCustomOp* op) { return Self(op).definition_.inputs.size(); };
  GetOutputType = [](const OrtCustomOp* op, size_t index) { return OrtType(Self(op).definition_.outputs[index]); };
  GetOutputTypeCount = [](const OrtCustomOp* op) { return Self(op).definition_.outputs.size(); };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };
  GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  GetStartVersion = [](const OrtCustomOp*) { return kOpsetVersion; };
  GetEndVersion = [](const OrtCustomOp*) { return kOpsetVersion; };
  CreateKernelV2 = &Create;
  KernelComputeV2 = &Compute;
  KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
}

template <class Name, class Body>
OrtStatus* CustomOp::Guard(const OrtApi* api, const Name& name, const Body& body) const noexcept {
  const auto status = [&](int code, const char* what) {
    const std::string message = std::string(kDomain) + "::" + definition_.name + ", node '" + name() + "': " + what;
    return api->CreateStatus(code, message.c_str());
  };
  try {
    try {
      body();
      return nullptr;
    } catch (const Error& error) {
      return status(ORT_INVALID_ARGUMENT, error.what());
    } catch (const std::exception& error) {
      return status(ORT_FAIL, error.what());
    }
  } catch (...) {  // the message itself could not be made
    return api->CreateStatus(ORT_FAIL, definition_.name);
  }
}

OrtStatus* CustomOp::Create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** out) noexcept {
  const CustomOp& self = Self(op);
  return self.Guard(
      api, [&] { return NodeName(api, info); },
      [&] {
        *out = new Kernel{self, api, NodeName(api, info),
                          self.definition_.make(ReadNode(api, info, self.definition_))};
      });
}

OrtStatus* CustomOp::Compute(void* pointer, OrtKernelContext* ort_context) noexcept {
  const Kernel& kernel = *static_cast<const Kernel*>(pointer);
  return kernel.type.Guard(
      kernel.api, [&] { return kernel.node; },
      [&] {
        const Context context(kernel.api, ort_context);
        kernel.op->Run(context.Inputs(kernel.type.definition_), context);
      });
}

}  // namespace ort
}  // namespace bnnfx
