// What the headers of this folder have in common.
//
// A `Lanes` says what a vector is for one instruction set:
//   static constexpr size_t kWidth;      values
//   typedef ... Floats, Integers;        vectors of float and int32_t (the compilers' vector extension)
//   static uint32_t AtLeast(a, b);       bit per lane of a >= b, for both; false for a NaN
//
// Everything here is in unnamed namespaces, so that each file that includes it gets its own copy, compiled with its own
// flags: the linker would keep one copy for all, perhaps that of a set the processor lacks.

#ifndef BNNFX_LANES_LOAD_H_
#define BNNFX_LANES_LOAD_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace bnnfx {
namespace {

// A vector, or a number, from memory of any alignment.
template <class Value>
inline Value Load(const void* from) {
  Value value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

}  // namespace
}  // namespace bnnfx

#endif  // BNNFX_LANES_LOAD_H_
