#include "../lanes/avx512.h"
#include "pack.h"

namespace bnnfx {
namespace pack {

extern const Kernel kAvx512 = {Isa::kAvx512, &PackNchw, &PackNhwc<Avx512Lanes>};

}  // namespace pack
}  // namespace bnnfx
