// The operators of this folder, as the table in register.cpp lists them.

#ifndef BNNFX_PACK_OPS_H_
#define BNNFX_PACK_OPS_H_

#include "../ort_abi.h"

namespace bnnfx {

const OrtCustomOp* PackOp();

}  // namespace bnnfx

#endif  // BNNFX_PACK_OPS_H_
