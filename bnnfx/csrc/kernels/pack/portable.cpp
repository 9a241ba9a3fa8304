#include "../lanes/portable.h"
#include "pack.h"

namespace bnnfx {
namespace pack {

extern const Kernel kPortable = {Isa::kPortable, &PackNchw, &PackNhwc<PortableLanes>};

}  // namespace pack
}  // namespace bnnfx
