// A stand-in for ONNX Runtime: the functions of its C ABI that the library uses, and nothing else. So the operators
// run wherever a C++ compiler is, under an emulator and under sanitizers, with memory that ends where a tensor ends.

#ifndef BNNFX_TESTS_NATIVE_FAKE_ORT_H_
#define BNNFX_TESTS_NATIVE_FAKE_ORT_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ort/abi.h"

namespace native {

constexpr char kNodeName[] = "the_node";

using Dims = std::vector<int64_t>;

size_t ElementBytes(int type);
size_t Elements(const Dims& dims);

struct Tensor {
  Tensor() = default;
  Tensor(int element_type, Dims shape) : type(element_type), dims(std::move(shape)) {
    bytes.resize(Elements(dims) * ElementBytes(type));
  }

  template <class T>
  T* As() {
    return reinterpret_cast<T*>(bytes.data());
  }
  template <class T>
  const T* As() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
  std::string Describe() const;  // like float[1, 7, 7, 64]

  int type = ORT_FLOAT;
  Dims dims;
  std::vector<uint8_t> bytes;
};

// A node of a model, with the values of all of its inputs.
struct Node {
  std::string Describe() const;

  std::string op;
  std::map<std::string, int64_t> integers;
  std::map<std::string, Dims> lists;
  std::vector<Tensor> inputs;
  std::vector<bool> constant;  // per input: known when the kernel is created
};

// The library returned a status: its code and message.
class Refusal : public std::runtime_error {
 public:
  Refusal(int status_code, const std::string& message) : std::runtime_error(message), code(status_code) {}
  int code;
};

// The library did what it may not do towards ONNX Runtime.
class Breach : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What RegisterCustomOps adds for release 1.`version`, which has that version of the API.
std::vector<const OrtCustomOp*> RegisteredOps(uint32_t version);

// The kernel of a node, as a session holds it. `node` outlives it.
class Kernel {
 public:
  Kernel(const OrtCustomOp& op, const Node& node);  // throws Refusal
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;
  ~Kernel();

  // Runs it on a pool of `threads` threads, with `in_place` in the memory of inputs where the operator allows that.
  // Throws Refusal or Breach.
  std::vector<Tensor> Run(const std::vector<Tensor>& inputs, size_t threads, bool in_place = false) const;

 private:
  const OrtCustomOp& op_;
  std::vector<OrtValue> constants_;
  void* kernel_ = nullptr;
};

// Outputs lie between two guards. Exposed for the check that a guard does its work.
class GuardedMemory {
 public:
  explicit GuardedMemory(size_t bytes);
  uint8_t* data() { return memory_.data() + kGuard; }
  size_t size() const { return memory_.size() - 2 * kGuard; }
  bool Intact() const;

 private:
  static constexpr size_t kGuard = 128;  // a write of two registers, wherever they begin
  static constexpr uint8_t kFill = 0xa5;
  std::vector<uint8_t> memory_;
};

// Statuses and shapes that the library got and has not given back.
int LiveObjects();

}  // namespace native

// Opaque to the library.
struct OrtValue {
  int type;
  native::Dims dims;
  void* data;
};

#endif  // BNNFX_TESTS_NATIVE_FAKE_ORT_H_
