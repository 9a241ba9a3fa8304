#include "../lanes/neon.h"
#include "pack.h"

namespace bnnfx {
namespace pack {

extern const Kernel kNeon = {Isa::kNeon, &PackNchw, &PackNhwc<NeonLanes>};

}  // namespace pack
}  // namespace bnnfx
