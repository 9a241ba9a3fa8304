#include "lanes.h"

namespace bnnfx {
namespace pack {

extern const Kernel kPortable = {Isa::kPortable, &Pack};

}  // namespace pack
}  // namespace bnnfx
