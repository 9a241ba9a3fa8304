// The operators of this folder, as the table in register.cpp lists them.

#ifndef BNNFX_POOL_OPS_H_
#define BNNFX_POOL_OPS_H_

#include "../ort_abi.h"

namespace bnnfx {

const OrtCustomOp* MaxPool2dOp();

}  // namespace bnnfx

#endif  // BNNFX_POOL_OPS_H_
