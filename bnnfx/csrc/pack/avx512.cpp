#include "lanes.h"

namespace bnnfx {
namespace pack {

extern const Kernel kAvx512 = {Isa::kAvx512, &Pack};

}  // namespace pack
}  // namespace bnnfx
