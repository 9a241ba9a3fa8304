// ONNX Runtime in C++: errors as exceptions, tensors as views, and the adapter that makes a class an operator.
//
// Exceptions stay inside: the functions that the runtime calls (in CustomOp) turn them into a status that names the op,
// its node and what is wrong.

#ifndef BNNFX_ORT_H_
#define BNNFX_ORT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "ort_abi.h"

namespace bnnfx {

constexpr char kDomain[] = "ai.bnnfx";
constexpr int kOpsetVersion = 1;
constexpr uint32_t kApiVersion = 17;         // needed: the first one with KernelContext_ParallelFor
constexpr uint32_t kInplaceApiVersion = 18;  // used where the runtime has it: OrtCustomOp::GetMayInplace

// A node that is malformed, or an input that does not fit it. The message says what was given and what is needed.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// `message()` is what is wrong; it is not made for nothing, because that takes longer than many a check.
template <class Message>
void Require(bool condition, const Message& message) {
  if (!condition) throw Error(message());
}

// Bytes of a packed row of bits: whole 64-bit words.
inline int64_t RowBytes(int64_t channels) { return (channels + 63) / 64 * 8; }

// A view of a tensor that the runtime owns.
struct Tensor {
  int type;
  std::vector<int64_t> dims;
  void* data;

  template <class T>
  const T* Data() const {
    return static_cast<const T*>(data);
  }
  std::string Describe() const;  // like uint8[1, 7, 7, 8]
};

std::string Describe(const std::vector<int64_t>& values);

// What is known when a kernel is created: attributes and constant inputs.
class Info {
 public:
  Info(const OrtApi* api, const OrtKernelInfo* info) : api_(api), info_(info) {}
  std::string NodeName() const;
  int64_t Integer(const char* name) const;
  // An attribute of exactly `count` integers, each at least `least` (and below 2**20, so that sizes cannot overflow).
  std::vector<int64_t> Integers(const char* name, size_t count, int64_t least) const;
  // An input that has to be an initializer or a constant of the given element type.
  Tensor Constant(size_t index, const char* name, int type) const;

 private:
  const OrtApi* api_;
  const OrtKernelInfo* info_;
};

// What is known when a kernel runs.
class Context {
 public:
  Context(const OrtApi* api, OrtKernelContext* context) : api_(api), context_(context) {}
  Tensor Input(size_t index, const char* name, int type) const;
  void* Output(size_t index, const std::vector<int64_t>& dims) const;

  // Calls `function(i)`, which must not throw, for each i below `total`, on the threads of the session.
  template <class Function>
  void ParallelFor(size_t total, Function&& function) const {
    if (total == 1) return function(size_t{0});
    struct Call {
      static void Run(void* user, size_t i) { (*static_cast<std::remove_reference_t<Function>*>(user))(i); }
    };
    RunParallel(&Call::Run, total, &function);
  }

 private:
  void RunParallel(void (*function)(void*, size_t), size_t total, void* user) const;
  const OrtApi* api_;
  OrtKernelContext* context_;
};

// What the runtime is told of an operator: its name, and the element types of its inputs and outputs.
struct Signature {
  std::string name;
  std::vector<int> inputs, outputs;
  size_t reused = 0;  // the input, if not 0, in whose place the first output may be written
};

// One operator for one runtime.
using OpPointer = std::shared_ptr<OrtCustomOp>;

// Makes a class an operator. `Op` has
//   explicit Op(const Info&), or Op(const Info&, const Variant&) where one class stands for several operators: checks
//       attributes and constants, prepares what does not depend on the input;
//   void Compute(const Context&) const: may be called by several threads at once.
template <class Op, class... Variant>
class CustomOp : public OrtCustomOp {
 public:
  CustomOp(Signature signature, Variant... variant)
      : OrtCustomOp{}, signature_(std::move(signature)), variant_(std::move(variant)...) {
    version = kApiVersion;
    GetMayInplace = ReusedInput(signature_.reused);
    ReleaseMayInplace = [](int*, int*) {};
    GetName = [](const OrtCustomOp* op) { return Self(op).signature_.name.c_str(); };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetInputType = [](const OrtCustomOp* op, size_t index) { return Self(op).signature_.inputs[index]; };
    GetInputTypeCount = [](const OrtCustomOp* op) { return Self(op).signature_.inputs.size(); };
    GetOutputType = [](const OrtCustomOp* op, size_t index) { return Self(op).signature_.outputs[index]; };
    GetOutputTypeCount = [](const OrtCustomOp* op) { return Self(op).signature_.outputs.size(); };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
    GetStartVersion = [](const OrtCustomOp*) { return kOpsetVersion; };
    GetEndVersion = [](const OrtCustomOp*) { return kOpsetVersion; };
    CreateKernelV2 = &Create;
    KernelComputeV2 = &Compute;
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  }

 private:
  // The function that names this input: one each, because it is not told its operator.
  static decltype(OrtCustomOp::GetMayInplace) ReusedInput(size_t input) {
    switch (input) {
      case 0:
        return nullptr;
      case 4:
        return &Reuse<4>;
      case 5:
        return &Reuse<5>;
      case 6:
        return &Reuse<6>;
      case 7:
        return &Reuse<7>;
      default:
        throw Error("there is no function that names input " + std::to_string(input));
    }
  }

  template <int input>
  static size_t Reuse(int** inputs, int** outputs) {
    static int first[] = {input};
    static int second[] = {0};
    *inputs = first;
    *outputs = second;
    return 1;
  }

  struct Kernel {
    Kernel(const CustomOp& custom_op, const OrtApi* table, const Info& info)
        : type(custom_op),
          api(table),
          node(info.NodeName()),
          op(std::apply([&](const Variant&... variant) { return Op(info, variant...); }, custom_op.variant_)) {}
    const CustomOp& type;
    const OrtApi* api;
    std::string node;
    Op op;
  };

  static const CustomOp& Self(const OrtCustomOp* op) { return *static_cast<const CustomOp*>(op); }

  static OrtStatus* Create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* ort_info,
                           void** out) noexcept {
    const Info info(api, ort_info);
    return Self(op).Guard(
        api, [&] { return info.NodeName(); }, [&] { *out = new Kernel(Self(op), api, info); });
  }

  static OrtStatus* Compute(void* pointer, OrtKernelContext* context) noexcept {
    const Kernel& kernel = *static_cast<const Kernel*>(pointer);
    return kernel.type.Guard(
        kernel.api, [&] { return kernel.node; }, [&] { kernel.op.Compute(Context(kernel.api, context)); });
  }

  template <class Name, class Body>
  OrtStatus* Guard(const OrtApi* api, const Name& name, const Body& body) const noexcept {
    try {
      try {
        body();
        return nullptr;
      } catch (const Error& error) {
        return api->CreateStatus(ORT_INVALID_ARGUMENT, Message(name(), error.what()).c_str());
      } catch (const std::exception& error) {
        return api->CreateStatus(ORT_FAIL, Message(name(), error.what()).c_str());
      }
    } catch (...) {  // the message itself could not be made
      return api->CreateStatus(ORT_FAIL, signature_.name.c_str());
    }
  }

  std::string Message(const std::string& node, const char* what) const {
    return std::string(kDomain) + "::" + signature_.name + ", node '" + node + "': " + what;
  }

  Signature signature_;
  std::tuple<Variant...> variant_;
};

}  // namespace bnnfx

#endif  // BNNFX_ORT_H_
