#include "ort.h"

namespace bnnfx {
namespace {

constexpr int64_t kLargest = (int64_t{1} << 20) - 1;

// `label`: what was asked for, where the runtime's message does not say.
void Check(const OrtApi* api, OrtStatus* status, const std::string& label = {}) {
  if (status == nullptr) return;
  const std::unique_ptr<OrtStatus, void (*)(OrtStatus*)> owner(status, api->ReleaseStatus);
  throw Error(label + api->GetErrorMessage(status));
}

std::string AttributeLabel(const char* name) { return std::string("attribute ") + name + ": "; }

const char* TypeName(int type) {
  switch (type) {
    case ORT_FLOAT:
      return "float";
    case ORT_UINT8:
      return "uint8";
    case ORT_INT32:
      return "int32";
    default:
      return "another type";
  }
}

Tensor View(const OrtApi* api, const OrtValue* value, const char* name, int type) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(api, api->GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owner(
      info, api->ReleaseTensorTypeAndShapeInfo);
  Tensor tensor{};
  Check(api, api->GetTensorElementType(info, &tensor.type));
  size_t rank = 0;
  Check(api, api->GetDimensionsCount(info, &rank));
  tensor.dims.resize(rank);
  Check(api, api->GetDimensions(info, tensor.dims.data(), rank));
  Require(tensor.type == type,
          [&] { return std::string(name) + " is a tensor of " + TypeName(type) + "; got " + tensor.Describe(); });
  // The only function that gives the address; what came in as const is only read.
  Check(api, api->GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

}  // namespace

std::string Describe(const std::vector<int64_t>& values) {
  std::string text = "[";
  for (const int64_t value : values) text += (text.size() > 1 ? ", " : "") + std::to_string(value);
  return text + "]";
}

std::string Tensor::Describe() const { return TypeName(type) + bnnfx::Describe(dims); }

std::string Info::NodeName() const {
  size_t size = 0;
  Check(api_, api_->KernelInfo_GetNodeName(info_, nullptr, &size));
  std::string name(size, '\0');
  if (size == 0) return name;
  Check(api_, api_->KernelInfo_GetNodeName(info_, &name[0], &size));
  name.resize(size - 1);
  return name;
}

int64_t Info::Integer(const char* name) const {
  int64_t value = 0;
  Check(api_, api_->KernelInfoGetAttribute_int64(info_, name, &value), AttributeLabel(name));
  return value;
}

std::vector<int64_t> Info::Integers(const char* name, size_t count, int64_t least) const {
  size_t size = 0;
  Check(api_, api_->KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size), AttributeLabel(name));
  std::vector<int64_t> values(size);
  if (size != 0) Check(api_, api_->KernelInfoGetAttributeArray_int64(info_, name, values.data(), &size));
  bool fits = size == count;
  for (const int64_t value : values) fits = fits && value >= least && value <= kLargest;
  Require(fits, [&] {
    return std::string("attribute ") + name + " is a list of " + std::to_string(count) + " integers from " +
           std::to_string(least) + " to " + std::to_string(kLargest) + "; got " + Describe(values);
  });
  return values;
}

Tensor Info::Constant(size_t index, const char* name, int type) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  Check(api_, api_->KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
  Require(is_constant != 0 && value != nullptr, [&] {
    return std::string("input ") + std::to_string(index) + " (" + name +
           ") is prepared when the session is created, so it has to be an initializer or a constant; here it is "
           "computed by the graph or is an input of it";
  });
  return View(api_, value, name, type);
}

Tensor Context::Input(size_t index, const char* name, int type) const {
  const OrtValue* value = nullptr;
  Check(api_, api_->KernelContext_GetInput(context_, index, &value));
  Require(value != nullptr,
          [&] { return std::string("input ") + std::to_string(index) + " (" + name + ") is missing"; });
  return View(api_, value, name, type);
}

void* Context::Output(size_t index, const std::vector<int64_t>& dims) const {
  OrtValue* value = nullptr;
  Check(api_, api_->KernelContext_GetOutput(context_, index, dims.data(), dims.size(), &value));
  void* data = nullptr;
  Check(api_, api_->GetTensorMutableData(value, &data));
  return data;
}

void Context::RunParallel(void (*function)(void*, size_t), size_t total, void* user) const {
  if (total != 0) Check(api_, api_->KernelContext_ParallelFor(context_, function, total, 0, user));
}

}  // namespace bnnfx
