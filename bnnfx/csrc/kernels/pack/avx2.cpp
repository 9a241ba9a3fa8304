#include "../lanes/avx2.h"
#include "pack.h"

namespace bnnfx {
namespace pack {

extern const Kernel kAvx2 = {Isa::kAvx2, &PackNchw, &PackNhwc<Avx2Lanes>};

}  // namespace pack
}  // namespace bnnfx
