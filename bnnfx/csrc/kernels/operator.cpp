#include "operator.h"

#include <cstring>

#include "generated/definitions.h"

namespace bnnfx {
namespace {

constexpr int64_t kLargest = (int64_t{1} << 20) - 1;

}  // namespace

const char* Name(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return "float";
    case ElementType::kUint8:
      return "uint8";
    case ElementType::kInt32:
      return "int32";
    default:
      return "another type";
  }
}

std::string Describe(const std::vector<int64_t>& values) {
  std::string text = "[";
  for (const int64_t value : values) text += (text.size() > 1 ? ", " : "") + std::to_string(value);
  return text + "]";
}

std::string Tensor::Describe() const { return Name(type) + bnnfx::Describe(dims); }

int64_t Node::Integer(const char* name) const {
  for (const Definition::Fixed& fixed : definition_.variant) {
    if (std::strcmp(fixed.name, name) == 0) return fixed.value;
  }
  return Integers(name).at(0);
}

std::vector<int64_t> Node::Integers(const char* name, size_t count, int64_t least) const {
  const std::vector<int64_t>& values = Integers(name);
  bool fits = values.size() == count;
  for (const int64_t value : values) fits = fits && value >= least && value <= kLargest;
  Require(fits, [&] {
    return std::string("attribute ") + name + " is a list of " + std::to_string(count) + " integers from " +
           std::to_string(least) + " to " + std::to_string(kLargest) + "; got " + Describe(values);
  });
  return values;
}

const std::vector<int64_t>& Node::Integers(const char* name) const {
  for (size_t i = 0; i < definition_.attributes.size(); ++i) {
    if (std::strcmp(definition_.attributes[i].name, name) == 0) return attributes_[i];
  }
  throw std::logic_error(std::string(definition_.name) + " has no attribute " + name);
}

List<Definition> Definitions() { return {kDefinitions, sizeof(kDefinitions) / sizeof(kDefinitions[0])}; }

}  // namespace bnnfx
