#include "fake_ort.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* api_base) noexcept;

namespace {

std::atomic<int> live_objects{0};

struct Counted {
  Counted() { ++live_objects; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  ~Counted() { --live_objects; }
};

}  // namespace

// The rest of what is opaque to the library.
struct OrtStatus : Counted {
  int code;
  std::string message;
};
struct OrtTensorTypeAndShapeInfo : Counted {
  int type;
  native::Dims dims;
};
struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp*> ops;
};
struct OrtSessionOptions {
  std::vector<OrtCustomOpDomain*> domains;
};
struct OrtKernelInfo {
  const native::Node* node;
  const std::vector<OrtValue>* inputs;
};
struct OrtKernelContext {
  struct Output {
    OrtValue value;
    native::GuardedMemory memory;
  };
  const OrtCustomOp* op;
  std::vector<OrtValue> inputs;
  std::vector<std::unique_ptr<Output>> outputs;
  size_t threads;
};

namespace native {
namespace {

constexpr size_t kMostBytes = size_t{1} << 30;  // of an output; more cannot be allocated

OrtStatus* NewStatus(int code, const std::string& message) {
  auto* status = new OrtStatus;
  status->code = code;
  status->message = message;
  return status;
}

OrtStatus* CreateStatus(int code, const char* message) { return NewStatus(code, message); }

OrtStatus* Fail(const std::string& message) { return NewStatus(ORT_FAIL, message); }

OrtStatus* GetTensorTypeAndShape(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) {
  *out = new OrtTensorTypeAndShapeInfo;
  (*out)->type = value->type;
  (*out)->dims = value->dims;
  return nullptr;
}

OrtStatus* GetDimensions(const OrtTensorTypeAndShapeInfo* info, int64_t* dims, size_t count) {
  std::copy_n(info->dims.begin(), std::min(count, info->dims.size()), dims);
  return nullptr;
}

OrtStatus* GetInteger(const OrtKernelInfo* info, const char* name, int64_t* out) {
  const auto found = info->node->integers.find(name);
  if (found == info->node->integers.end()) return Fail(std::string("there is no integer attribute ") + name);
  *out = found->second;
  return nullptr;
}

OrtStatus* GetIntegers(const OrtKernelInfo* info, const char* name, int64_t* out, size_t* size) {
  const auto found = info->node->lists.find(name);
  if (found == info->node->lists.end()) return Fail(std::string("there is no list attribute ") + name);
  if (out != nullptr && *size < found->second.size()) return Fail("the buffer is too small");
  if (out != nullptr) std::copy(found->second.begin(), found->second.end(), out);
  *size = found->second.size();
  return nullptr;
}

OrtStatus* GetNodeName(const OrtKernelInfo*, char* out, size_t* size) {
  if (out != nullptr && *size < sizeof(kNodeName)) return Fail("the buffer is too small");
  if (out != nullptr) std::memcpy(out, kNodeName, sizeof(kNodeName));
  *size = sizeof(kNodeName);
  return nullptr;
}

OrtStatus* GetConstantInput(const OrtKernelInfo* info, size_t index, int* is_constant, const OrtValue** out) {
  if (index >= info->inputs->size()) return Fail("there is no such input");
  *is_constant = info->node->constant[index] ? 1 : 0;
  *out = *is_constant != 0 ? &(*info->inputs)[index] : nullptr;
  return nullptr;
}

OrtStatus* GetInput(const OrtKernelContext* context, size_t index, const OrtValue** out) {
  if (index >= context->inputs.size()) return Fail("there is no such input");
  *out = &context->inputs[index];
  return nullptr;
}

OrtStatus* GetOutput(OrtKernelContext* context, size_t index, const int64_t* dims, size_t count, OrtValue** out) {
  if (index >= context->outputs.size()) return Fail("there is no such output");
  const int type = context->op->GetOutputType(context->op, index);
  if (context->outputs[index] != nullptr) {  // in the place of an input
    *out = &context->outputs[index]->value;
    const bool fits = (*out)->type == type && (*out)->dims == Dims(dims, dims + count);
    return fits ? nullptr : Fail("an output has another shape than the input whose memory it asked for");
  }
  size_t bytes = ElementBytes(type);
  for (size_t i = 0; i < count; ++i) {
    if (dims[i] < 0) return Fail("a dimension is negative");
    const auto size = static_cast<size_t>(dims[i]);
    if (size != 0 && bytes > kMostBytes / size) return Fail("the output cannot be allocated");
    bytes *= size;
  }
  auto output = std::make_unique<OrtKernelContext::Output>(
      OrtKernelContext::Output{OrtValue{type, Dims(dims, dims + count), nullptr}, GuardedMemory(bytes)});
  output->value.data = output->memory.data();
  context->outputs[index] = std::move(output);
  *out = &context->outputs[index]->value;
  return nullptr;
}

// One thread takes the tasks backwards and several race for them: nothing may depend on the order.
OrtStatus* ParallelFor(const OrtKernelContext* context, void (*function)(void*, size_t), size_t total, size_t,
                       void* user) {
  if (context->threads == 1) {
    for (size_t i = total; i-- != 0;) function(user, i);
    return nullptr;
  }
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < total; i = next++) function(user, i);
  };
  std::vector<std::thread> others;
  for (size_t i = 1; i < context->threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
  return nullptr;
}

// A function that is not filled in is null, and a call of it crashes.
OrtApi MakeApi() {
  OrtApi api{};
  api.CreateStatus = &CreateStatus;
  api.GetErrorMessage = [](const OrtStatus* status) { return status->message.c_str(); };
  api.CreateCustomOpDomain = [](const char*, OrtCustomOpDomain** out) -> OrtStatus* {
    *out = new OrtCustomOpDomain;
    return nullptr;
  };
  api.CustomOpDomain_Add = [](OrtCustomOpDomain* domain, const OrtCustomOp* op) -> OrtStatus* {
    domain->ops.push_back(op);
    return nullptr;
  };
  api.AddCustomOpDomain = [](OrtSessionOptions* options, OrtCustomOpDomain* domain) -> OrtStatus* {
    options->domains.push_back(domain);
    return nullptr;
  };
  api.GetTensorMutableData = [](OrtValue* value, void** out) -> OrtStatus* {
    *out = value->data;
    return nullptr;
  };
  api.GetTensorElementType = [](const OrtTensorTypeAndShapeInfo* info, int* out) -> OrtStatus* {
    *out = info->type;
    return nullptr;
  };
  api.GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo* info, size_t* out) -> OrtStatus* {
    *out = info->dims.size();
    return nullptr;
  };
  api.GetDimensions = &GetDimensions;
  api.GetTensorTypeAndShape = &GetTensorTypeAndShape;
  api.KernelInfoGetAttribute_int64 = &GetInteger;
  api.KernelContext_GetInput = &GetInput;
  api.KernelContext_GetOutput = &GetOutput;
  api.ReleaseStatus = [](OrtStatus* status) { delete status; };
  api.ReleaseTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo* info) { delete info; };
  api.ReleaseCustomOpDomain = [](OrtCustomOpDomain* domain) { delete domain; };
  api.KernelInfoGetAttributeArray_int64 = &GetIntegers;
  api.KernelInfo_GetNodeName = &GetNodeName;
  api.KernelInfoGetConstantInput_tensor = &GetConstantInput;
  api.KernelContext_ParallelFor = &ParallelFor;
  return api;
}

const OrtApi kApi = MakeApi();

void Check(OrtStatus* status) {
  if (status == nullptr) return;
  const Refusal refusal(status->code, status->message);
  delete status;
  throw refusal;
}

std::vector<OrtValue> Values(const std::vector<Tensor>& tensors) {
  std::vector<OrtValue> values;
  for (const Tensor& tensor : tensors) {
    values.push_back({tensor.type, tensor.dims, const_cast<uint8_t*>(tensor.bytes.data())});
  }
  return values;
}

std::string Text(const Dims& values) {
  std::string text;
  for (const int64_t value : values) text += (text.empty() ? "" : ", ") + std::to_string(value);
  return "[" + text + "]";
}

}  // namespace

size_t ElementBytes(int type) { return type == ORT_UINT8 ? 1 : 4; }

size_t Elements(const Dims& dims) {
  size_t count = 1;
  for (const int64_t size : dims) count *= static_cast<size_t>(size);
  return count;
}

std::string Tensor::Describe() const {
  return (type == ORT_FLOAT ? "float" : type == ORT_UINT8 ? "uint8" : "int32") + Text(dims);
}

std::string Node::Describe() const {
  std::string text = op + "(";
  for (size_t i = 0; i < inputs.size(); ++i) text += (i == 0 ? "" : ", ") + inputs[i].Describe();
  text += ")";
  for (const auto& [name, value] : integers) text += " " + name + "=" + std::to_string(value);
  for (const auto& [name, values] : lists) text += " " + name + "=" + Text(values);
  return text;
}

std::vector<const OrtCustomOp*> RegisteredOps(uint32_t version) {
  static std::string release;
  static std::map<uint32_t, OrtApi> tables;  // a runtime has a table of its own
  static uint32_t newest;
  release = "1." + std::to_string(version) + ".0";
  newest = version;
  tables[version] = kApi;
  const OrtApiBase base = {
      [](uint32_t wanted) -> const OrtApi* { return wanted <= newest ? &tables[newest] : nullptr; },
      [] { return release.c_str(); }};
  OrtSessionOptions options;
  Check(RegisterCustomOps(&options, &base));
  std::vector<const OrtCustomOp*> ops;
  for (const OrtCustomOpDomain* domain : options.domains) ops.insert(ops.end(), domain->ops.begin(), domain->ops.end());
  return ops;
}

Kernel::Kernel(const OrtCustomOp& op, const Node& node) : op_(op), constants_(Values(node.inputs)) {
  const OrtKernelInfo info{&node, &constants_};
  Check(op.CreateKernelV2(&op, &kApi, &info, &kernel_));
}

Kernel::~Kernel() { op_.KernelDestroy(kernel_); }

std::vector<Tensor> Kernel::Run(const std::vector<Tensor>& inputs, size_t threads, bool in_place) const {
  OrtKernelContext context{&op_, Values(inputs), {}, threads};
  context.outputs.resize(op_.GetOutputTypeCount(&op_));
  if (in_place && op_.GetMayInplace != nullptr) {
    int* from = nullptr;
    int* to = nullptr;
    const size_t pairs = op_.GetMayInplace(&from, &to);
    for (size_t i = 0; i < pairs; ++i) {
      const auto input = static_cast<size_t>(from[i]);
      auto output = std::make_unique<OrtKernelContext::Output>(
          OrtKernelContext::Output{context.inputs[input], GuardedMemory(inputs[input].bytes.size())});
      std::copy(inputs[input].bytes.begin(), inputs[input].bytes.end(), output->memory.data());
      output->value.data = context.inputs[input].data = output->memory.data();
      context.outputs[static_cast<size_t>(to[i])] = std::move(output);
    }
    op_.ReleaseMayInplace(from, to);
  }
  Check(op_.KernelComputeV2(kernel_, &context));
  std::vector<Tensor> results;
  for (const auto& output : context.outputs) {
    if (output == nullptr) throw Breach("an output was not made");
    if (!output->memory.Intact()) throw Breach("a kernel wrote outside an output");
    Tensor tensor;
    tensor.type = output->value.type;
    tensor.dims = output->value.dims;
    tensor.bytes.assign(output->memory.data(), output->memory.data() + output->memory.size());
    results.push_back(std::move(tensor));
  }
  return results;
}

GuardedMemory::GuardedMemory(size_t bytes) : memory_(bytes + 2 * kGuard, kFill) {}

bool GuardedMemory::Intact() const {
  const auto is_fill = [](uint8_t byte) { return byte == kFill; };
  return std::all_of(memory_.begin(), memory_.begin() + kGuard, is_fill) &&
         std::all_of(memory_.end() - kGuard, memory_.end(), is_fill);
}

int LiveObjects() { return live_objects; }

}  // namespace native
