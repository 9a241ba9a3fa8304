// The operators of this folder, for the table in register.cpp.

#ifndef BNNFX_CONV_OPS_H_
#define BNNFX_CONV_OPS_H_

#include <vector>

#include "../ort.h"

namespace bnnfx {

// BinaryConv2dThreshold, and BinaryConv2d with every epilogue (epilogue_variant.h).
std::vector<OpPointer> BinaryConv2dOps();

}  // namespace bnnfx

#endif  // BNNFX_CONV_OPS_H_
