// The operators of this folder, as the table in register.cpp lists them.

#ifndef BNNFX_POOL_OPS_H_
#define BNNFX_POOL_OPS_H_

#include "../ort.h"

namespace bnnfx {

OpPointer MaxPool2dOp();

}  // namespace bnnfx

#endif  // BNNFX_POOL_OPS_H_
