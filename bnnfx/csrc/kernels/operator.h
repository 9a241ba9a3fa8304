// Operators as plain data and one interface, whatever runtime they run in: what a node is made of, what an operator
// asks of its host while it runs, and errors.

#ifndef BNNFX_KERNELS_OPERATOR_H_
#define BNNFX_KERNELS_OPERATOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace bnnfx {

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

enum class ElementType { kFloat32, kUint8, kInt32, kOther };

const char* Name(ElementType type);

std::string Describe(const std::vector<int64_t>& values);

// A view of a tensor that somebody else owns.
struct Tensor {
  ElementType type;
  std::vector<int64_t> dims;
  void* data;

  template <class T>
  const T* Data() const {
    return static_cast<const T*>(data);
  }
  std::string Describe() const;  // like uint8[1, 7, 7, 8]
};

// Constant data of a known length.
template <class T>
struct List {
  const T* first;
  size_t count;
  const T* begin() const { return first; }
  const T* end() const { return first + count; }
  size_t size() const { return count; }
  const T& operator[](size_t i) const { return first[i]; }
};

class Node;
class Operator;
using OperatorPointer = std::unique_ptr<const Operator>;

// An operator as the table in bnnfx/ops/signatures.py has it; the rows here are generated from that.
struct Definition {
  struct Input {
    const char* name;
    ElementType type;
    bool constant;  // known when the operator is made
  };
  struct Attribute {
    const char* name;
    bool list;  // of integers; else one
  };
  struct Fixed {  // what tells apart the operators of one class
    const char* name;
    int64_t value;
  };
  const char* name;
  OperatorPointer (*make)(const Node& node);
  List<Input> inputs;
  List<Attribute> attributes;
  List<Fixed> variant;
  List<ElementType> outputs;
  size_t in_place;  // the input, if not 0, in whose place the first output may be written
};

// What is known when an operator is made.
class Node {
 public:
  // `attributes` and `constants` are in the order of the definition; of inputs that are not constant there is nothing.
  Node(const Definition& definition, std::vector<std::vector<int64_t>> attributes, std::vector<Tensor> constants)
      : definition_(definition), attributes_(std::move(attributes)), constants_(std::move(constants)) {}

  // An attribute, or a number of the variant.
  int64_t Integer(const char* name) const;
  // An attribute of exactly `count` integers, each at least `least` (and below 2**20, so that sizes cannot overflow).
  std::vector<int64_t> Integers(const char* name, size_t count, int64_t least) const;
  const char* InputName(size_t index) const { return definition_.inputs[index].name; }
  const Tensor& Constant(size_t index) const { return constants_[index]; }

 private:
  const std::vector<int64_t>& Integers(const char* name) const;

  const Definition& definition_;
  std::vector<std::vector<int64_t>> attributes_;
  std::vector<Tensor> constants_;
};

// What an operator asks for while it runs.
class Host {
 public:
  virtual ~Host() = default;

  // Memory for an output of this shape.
  virtual void* Output(size_t index, const std::vector<int64_t>& dims) const = 0;

  // Calls `function(i)`, which must not throw, for each i below `total`, on as many threads as there are.
  template <class Function>
  void ParallelFor(size_t total, Function&& function) const {
    if (total == 1) return function(size_t{0});
    struct Call {
      static void Run(void* user, size_t i) { (*static_cast<std::remove_reference_t<Function>*>(user))(i); }
    };
    if (total != 0) RunParallel(&Call::Run, total, &function);
  }

 protected:
  virtual void RunParallel(void (*function)(void*, size_t), size_t total, void* user) const = 0;
};

// Its constructor checks attributes and constants, and prepares what does not depend on the input. Throws Error.
class Operator {
 public:
  virtual ~Operator() = default;

  // `inputs` are those that are not constant, in order, of the types of the definition. May be called by several
  // threads at once. Throws Error.
  virtual void Run(const std::vector<Tensor>& inputs, const Host& host) const = 0;
};

// All operators that have a kernel.
List<Definition> Definitions();

}  // namespace bnnfx

#endif  // BNNFX_KERNELS_OPERATOR_H_
