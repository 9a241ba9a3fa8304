// The operators of this folder, as the table in register.cpp lists them.

#ifndef BNNFX_CONV_OPS_H_
#define BNNFX_CONV_OPS_H_

#include "../ort_abi.h"

namespace bnnfx {

const OrtCustomOp* BinaryConv2dOp();
const OrtCustomOp* BinaryConv2dThresholdOp();

}  // namespace bnnfx

#endif  // BNNFX_CONV_OPS_H_
