// Kernels of MaxPool2d on packed bits.

#ifndef BNNFX_POOL_KERNEL_H_
#define BNNFX_POOL_KERNEL_H_

#include <cstddef>
#include <cstdint>

#include "../isa.h"

namespace bnnfx {
namespace pool {

// The taps of a window that lie inside the map: rows x columns pixels, from `first` on, with steps in bytes.
struct Taps {
  const uint8_t* first;
  size_t rows, columns;
  ptrdiff_t row_step, column_step;
};

// There is one row: the work is a few loads per output word, and memory is what takes the time.
struct Kernel {
  Isa isa;
  // out[i] = mask[i] xor (OR over the taps of (x[i] xor mask[i])) for the `bytes` bytes of a pixel: an OR of the bits,
  // and where the mask is 1 an AND. No taps at all give the mask.
  void (*pool)(const Taps& taps, const uint8_t* mask, size_t bytes, uint8_t* out);
};

}  // namespace pool
}  // namespace bnnfx

#endif  // BNNFX_POOL_KERNEL_H_
