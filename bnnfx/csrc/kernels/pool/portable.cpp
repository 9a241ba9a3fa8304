#include <cstring>

#include "kernel.h"

namespace bnnfx {
namespace pool {
namespace {

// `Word` is uint64_t, or uint8_t for a rest that is no whole word.
template <class Word>
void PoolWord(const Taps& taps, const uint8_t* mask_bytes, size_t byte, uint8_t* out) {
  Word mask;
  std::memcpy(&mask, mask_bytes + byte, sizeof(Word));
  Word any = 0;
  for (size_t i = 0; i < taps.rows; ++i) {
    const uint8_t* x = taps.first + static_cast<ptrdiff_t>(i) * taps.row_step + byte;
    for (size_t j = 0; j < taps.columns; ++j, x += taps.column_step) {
      Word word;
      std::memcpy(&word, x, sizeof(Word));
      any = static_cast<Word>(any | (word ^ mask));
    }
  }
  any = static_cast<Word>(any ^ mask);
  std::memcpy(out + byte, &any, sizeof(Word));
}

void Pool(const Taps& taps, const uint8_t* mask, size_t bytes, uint8_t* out) {
  size_t byte = 0;
  for (; byte + 8 <= bytes; byte += 8) PoolWord<uint64_t>(taps, mask, byte, out);
  for (; byte < bytes; ++byte) PoolWord<uint8_t>(taps, mask, byte, out);
}

}  // namespace

extern const Kernel kPortable = {Isa::kPortable, &Pool};

}  // namespace pool
}  // namespace bnnfx
