#include "lanes.h"

namespace bnnfx {
namespace pack {

extern const Kernel kAvx2 = {Isa::kAvx2, &Pack};

}  // namespace pack
}  // namespace bnnfx
