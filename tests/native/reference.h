// What the operators mean, in plain scalar code that shares nothing with the library: bits are unpacked to +1 and -1 (or 0),
// windows run over every tap, floats go through the steps one by one.

#ifndef BNNFX_TESTS_NATIVE_REFERENCE_H_
#define BNNFX_TESTS_NATIVE_REFERENCE_H_

#include <string>
#include <vector>

#include "fake_ort.h"

namespace native {

// The parts of an operator's name behind BinaryConv2d, like {"Clamp", "Add", "Float", "Bits"} or {"Threshold"}; empty
// for another name.
std::vector<std::string> ConvolutionSteps(const std::string& op);

// How far the windows of a convolution or a pooling go along the two axes.
struct WindowAxis {
  int64_t size, kernel, stride, begin, end, dilation;
  int64_t Outputs() const;         // windows that fit
  int64_t OutputsCeiling() const;  // of a pooling with ceil_mode
};
// `axis`: 0 for rows, 1 for columns.
WindowAxis AxisOf(const Node& node, size_t axis, int64_t kernel);

// Bytes of a packed row.
int64_t RowBytes(int64_t channels);

std::vector<Tensor> Expected(const Node& node);

// Where the two differ first, in words; empty if they are equal in type, shape and every bit. NaNs are all alike: which
// operand's payload a sum keeps depends on their order, and that is the compiler's choice.
std::string Difference(const std::vector<Tensor>& actual, const std::vector<Tensor>& expected);

}  // namespace native

#endif  // BNNFX_TESTS_NATIVE_REFERENCE_H_
