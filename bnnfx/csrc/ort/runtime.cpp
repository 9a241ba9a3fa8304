#include "runtime.h"

#include <memory>
#include <utility>

namespace bnnfx {
namespace ort {
namespace {

// `label`: what was asked for, where the runtime's message does not say.
void Check(const OrtApi* api, OrtStatus* status, const std::string& label = {}) {
  if (status == nullptr) return;
  const std::unique_ptr<OrtStatus, void (*)(OrtStatus*)> owner(status, api->ReleaseStatus);
  throw Error(label + api->GetErrorMessage(status));
}

ElementType TypeOf(int type) {
  switch (type) {
    case ORT_FLOAT:
      return ElementType::kFloat32;
    case ORT_UINT8:
      return ElementType::kUint8;
    case ORT_INT32:
      return ElementType::kInt32;
    default:
      return ElementType::kOther;
  }
}

Tensor View(const OrtApi* api, const OrtValue* value, const Definition::Input& input) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(api, api->GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owner(
      info, api->ReleaseTensorTypeAndShapeInfo);
  Tensor tensor{};
  int type = 0;
  Check(api, api->GetTensorElementType(info, &type));
  tensor.type = TypeOf(type);
  size_t rank = 0;
  Check(api, api->GetDimensionsCount(info, &rank));
  tensor.dims.resize(rank);
  Check(api, api->GetDimensions(info, tensor.dims.data(), rank));
  Require(tensor.type == input.type, [&] {
    return std::string(input.name) + " is a tensor of " + Name(input.type) + "; got " + tensor.Describe();
  });
  // The only function that gives the address; what came in as const is only read.
  Check(api, api->GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

std::string Numbered(size_t index, const Definition::Input& input) {
  return "input " + std::to_string(index) + " (" + input.name + ")";
}

std::vector<int64_t> Attribute(const OrtApi* api, const OrtKernelInfo* info, const Definition::Attribute& attribute) {
  const std::string label = std::string("attribute ") + attribute.name + ": ";
  if (!attribute.list) {
    int64_t value = 0;
    Check(api, api->KernelInfoGetAttribute_int64(info, attribute.name, &value), label);
    return {value};
  }
  size_t size = 0;
  Check(api, api->KernelInfoGetAttributeArray_int64(info, attribute.name, nullptr, &size), label);
  std::vector<int64_t> values(size);
  if (size != 0) Check(api, api->KernelInfoGetAttributeArray_int64(info, attribute.name, values.data(), &size), label);
  return values;
}

Tensor Constant(const OrtApi* api, const OrtKernelInfo* info, size_t index, const Definition::Input& input) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  Check(api, api->KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  Require(is_constant != 0 && value != nullptr, [&] {
    return Numbered(index, input) +
           " is prepared when the session is created, so it has to be an initializer or a constant; here it is "
           "computed by the graph or is an input of it";
  });
  return View(api, value, input);
}

}  // namespace

int OrtType(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return ORT_FLOAT;
    case ElementType::kUint8:
      return ORT_UINT8;
    case ElementType::kInt32:
      return ORT_INT32;
    default:
      throw Error("no operator has tensors of another type");
  }
}

std::string NodeName(const OrtApi* api, const OrtKernelInfo* info) {
  size_t size = 0;
  Check(api, api->KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, '\0');
  if (size == 0) return name;
  Check(api, api->KernelInfo_GetNodeName(info, &name[0], &size));
  name.resize(size - 1);
  return name;
}

Node ReadNode(const OrtApi* api, const OrtKernelInfo* info, const Definition& definition) {
  std::vector<std::vector<int64_t>> attributes;
  for (const Definition::Attribute& attribute : definition.attributes) {
    attributes.push_back(Attribute(api, info, attribute));
  }
  std::vector<Tensor> constants(definition.inputs.size());
  for (size_t i = 0; i < constants.size(); ++i) {
    if (definition.inputs[i].constant) constants[i] = Constant(api, info, i, definition.inputs[i]);
  }
  return Node(definition, std::move(attributes), std::move(constants));
}

std::vector<Tensor> Context::Inputs(const Definition& definition) const {
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < definition.inputs.size(); ++i) {
    const Definition::Input& input = definition.inputs[i];
    if (input.constant) continue;
    const OrtValue* value = nullptr;
    Check(api_, api_->KernelContext_GetInput(context_, i, &value));
    Require(value != nullptr, [&] { return Numbered(i, input) + " is missing"; });
    tensors.push_back(View(api_, value, input));
  }
  return tensors;
}

void* Context::Output(size_t index, const std::vector<int64_t>& dims) const {
  OrtValue* value = nullptr;
  Check(api_, api_->KernelContext_GetOutput(context_, index, dims.data(), dims.size(), &value));
  void* data = nullptr;
  Check(api_, api_->GetTensorMutableData(value, &data));
  return data;
}

void Context::RunParallel(void (*function)(void*, size_t), size_t total, void* user) const {
  Check(api_, api_->KernelContext_ParallelFor(context_, function, total, 0, user));
}

}  // namespace ort
}  // namespace bnnfx
