// The operators of this folder, as the table in register.cpp lists them.

#ifndef BNNFX_PACK_OPS_H_
#define BNNFX_PACK_OPS_H_

#include <vector>

#include "../ort.h"

namespace bnnfx {

std::vector<OpPointer> PackOps();

}  // namespace bnnfx

#endif  // BNNFX_PACK_OPS_H_
