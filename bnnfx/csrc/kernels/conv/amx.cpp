// AMX multiplies matrices of bytes: 16 pixels, 16 filters and 64 input channels in one instruction. Once bits
// have become bytes, that is more products per second than the same processor can count with VPOPCNTDQ.
//
// 1. A bit becomes a byte: +1, -1, or 0 where a zero bit of the map means that, and 0 around the map. Sums of products
//    are exact in 32 bits, like counts.
// 2. A row of the first matrix is a 64-bit word of one pixel, so 64 bytes; its 16 rows are the windows of a tile, which
//    lie at equal distances in the map. Where a tile reaches from one row of pixels into the next, there are windows in
//    between that nobody asked for; what is computed for them is not read.
// 3. The second matrix holds for each four channels the bytes of 16 filters side by side, with the opposite sign: the
//    result is -acc (kernel.h, step 2a).
// 4. Two by two matrices at a time: each is loaded once for two products, and that is less than the time of these.

#include <immintrin.h>

#include <cstring>

#include "../lanes/load.h"
#include "kernel.h"

namespace bnnfx {
namespace conv {
namespace {

constexpr size_t kLanes = 16;
constexpr size_t kChannels = 64;                        // of a word
constexpr size_t kMatrix = kLanes * kChannels;          // bytes
constexpr size_t kRowBytes = kBlock * sizeof(int32_t);  // of `counted`
constexpr size_t kLeastPixels = 512;                    // for fewer it takes too long to expand the filters

// As LDTILECFG wants it. In memory before anything runs: GCC's intrinsic does not say that it reads more than 8 bytes.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

constexpr TileConfiguration kConfiguration;

void Begin() { _tile_loadconfig(&kConfiguration); }

void End() { _tile_release(); }

// Channels that do not exist are 0, whatever the filters are there.
void PrepareInput(const uint8_t* words, size_t pixels, const Pixel& pixel, uint8_t* out) {
  const __m512i zero_bit = _mm512_set1_epi8(static_cast<char>(pixel.low));
  const __m512i one_bit = _mm512_set1_epi8(1);
  for (size_t p = 0; p < pixels; ++p) {
    for (size_t k = 0; k < pixel.words; ++k, words += 8, out += kChannels) {
      const __mmask64 channels = k + 1 < pixel.words ? ~uint64_t{0} : pixel.in_last;
      const __m512i values = _mm512_mask_blend_epi8(Load<uint64_t>(words), zero_bit, one_bit);
      _mm512_storeu_si512(out, _mm512_maskz_mov_epi8(channels, values));
    }
  }
}

// Bits in the order of the matrices: per 64-bit word bit[lanes / 16][16][16][4], fours of channels, filters, channels.
void PrepareFilters(const uint64_t* words, size_t lanes, uint8_t* out) {
  for (size_t first = 0; first < lanes; first += kLanes) {
    for (size_t row = 0; row < kTile; ++row, out += 8) {
      uint64_t bits = 0;
      for (size_t lane = 0; lane < kLanes; ++lane) {
        bits |= (words[first + lane] >> (4 * row) & 15) << (4 * lane);
      }
      std::memcpy(out, &bits, 8);
    }
  }
}

void ExpandFilters(const uint8_t* prepared, size_t bytes, uint8_t* out) {
  const __m512i zero_bit = _mm512_set1_epi8(1);
  const __m512i one_bit = _mm512_set1_epi8(-1);
  for (size_t i = 0; i < bytes; i += 8) {
    const __m512i values = _mm512_mask_blend_epi8(Load<uint64_t>(prepared + i), zero_bit, one_bit);
    _mm512_store_si512(out + 8 * i, values);
  }
}

// `pixel_tiles` tiles that start at x, and `lane_tiles` * 16 filters; result (p, l) goes to registers 2 * p + l.
template <size_t pixel_tiles, size_t lane_tiles>
inline void Multiply(const uint8_t* x0, const uint8_t* x1, const Window& window, const uint8_t* filters, size_t lanes) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const auto step = static_cast<size_t>(window.step);
  for (size_t run = 0; run < window.run_count; ++run) {
    const uint8_t* a0 = x0 + window.runs[run].input;
    const uint8_t* a1 = x1 + window.runs[run].input;
    const uint8_t* b = filters + window.runs[run].filter * lanes * kChannels;
    for (size_t k = 0; k < window.run_words; ++k, a0 += kChannels, a1 += kChannels, b += lanes * kChannels) {
      _tile_loadd(4, a0, step);
      _tile_loadd(6, b, 64);
      _tile_dpbssd(0, 4, 6);
      if (lane_tiles == 2) {
        _tile_loadd(7, b + kMatrix, 64);
        _tile_dpbssd(1, 4, 7);
      }
      if (pixel_tiles == 2) {
        _tile_loadd(5, a1, step);
        _tile_dpbssd(2, 5, 6);
        if (lane_tiles == 2) _tile_dpbssd(3, 5, 7);
      }
    }
  }
}

void Count(const uint8_t* image, const ptrdiff_t* offset, size_t count, const Window& window, const uint8_t* filters,
           size_t lanes, const Upcoming&, int32_t* counted) {
  for (size_t lane = 0; lane < lanes; lane += 2 * kLanes) {
    const bool two_lanes = lanes - lane > kLanes;
    const uint8_t* w = filters + lane * kChannels;
    for (size_t t = 0; t < count; t += 2) {
      const bool two_tiles = t + 1 < count;
      const auto multiply = two_tiles ? (two_lanes ? &Multiply<2, 2> : &Multiply<2, 1>)
                                      : (two_lanes ? &Multiply<1, 2> : &Multiply<1, 1>);
      multiply(image + offset[t], image + offset[two_tiles ? t + 1 : t], window, w, lanes);
      int32_t* to = counted + t * kTile * kBlock + lane;
      _tile_stored(0, to, kRowBytes);
      if (two_lanes) _tile_stored(1, to + kLanes, kRowBytes);
      if (!two_tiles) continue;
      _tile_stored(2, to + kTile * kBlock, kRowBytes);
      if (two_lanes) _tile_stored(3, to + kTile * kBlock + kLanes, kRowBytes);
    }
  }
}

}  // namespace

extern const Kernel kAmx = {
    Isa::kAmx, true, 32, kLeastPixels, kLanes, kChannels, 8, &Begin, &End, &PrepareInput, &PrepareFilters,
    kChannels / 8, &ExpandFilters, &Count, &Avx512Threshold, &Avx512Epilogue};

}  // namespace conv
}  // namespace bnnfx
