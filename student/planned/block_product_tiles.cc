#include "student/planned/block_product_tiles.h"

#include "common/status.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stillhouse::planned::internal {

#if defined(__x86_64__)
namespace {

#define SH_TILES __attribute__((target("amx-tile,amx-bf16")))

// What LDTILECFG reads: all eight tiles with 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kConfig;

// One block of 32 columns of C and 32 rows, or 16: tiles 0 to 3 hold C (columns fastest), 4 and 5
// rows of A, 6 and 7 the two halves of a panel. Strides in bytes.
SH_TILES inline void MultiplyBlock32(const uint8_t* a, int64_t a_stride, const uint8_t* panel,
                                     int64_t k, bool add, float* c, int64_t c_stride) {
  uint8_t* out = reinterpret_cast<uint8_t*>(c);
  uint8_t* lower = out + 16 * c_stride;
  if (add) {
    _tile_loadd(0, out, c_stride);
    _tile_loadd(1, out + 64, c_stride);
    _tile_loadd(2, lower, c_stride);
    _tile_loadd(3, lower + 64, c_stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < k; step += 32, a += 64, panel += 2048) {
    _tile_loadd(4, a, a_stride);
    _tile_loadd(6, panel, 128);
    _tile_loadd(7, panel + 64, 128);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, a + 16 * a_stride, a_stride);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, c_stride);
  _tile_stored(1, out + 64, c_stride);
  _tile_stored(2, lower, c_stride);
  _tile_stored(3, lower + 64, c_stride);
}

SH_TILES inline void MultiplyBlock16(const uint8_t* a, int64_t a_stride, const uint8_t* panel,
                                     int64_t k, bool add, float* c, int64_t c_stride) {
  uint8_t* out = reinterpret_cast<uint8_t*>(c);
  if (add) {
    _tile_loadd(0, out, c_stride);
    _tile_loadd(1, out + 64, c_stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  for (int64_t step = 0; step < k; step += 32, a += 64, panel += 2048) {
    _tile_loadd(4, a, a_stride);
    _tile_loadd(6, panel, 128);
    _tile_loadd(7, panel + 64, 128);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, out, c_stride);
  _tile_stored(1, out + 64, c_stride);
}

}  // namespace

SH_TILES void MultiplyTiles(const uint16_t* a, int64_t a_stride, const uint16_t* packed,
                            int64_t panel_stride, int64_t m, int64_t n, int64_t k, bool add,
                            float* c, int64_t c_stride) {
  // Others (oneDNN) configure the same registers, and look whether they are as they want them.
  _tile_loadconfig(&kConfig);
  const int64_t a_bytes = 2 * a_stride, c_bytes = 4 * c_stride;
  for (int64_t column = 0; column < n; column += 32) {
    const auto* panel = reinterpret_cast<const uint8_t*>(packed + column / 32 * panel_stride);
    int64_t row = 0;
    for (; m - row > 16; row += 32) {
      MultiplyBlock32(reinterpret_cast<const uint8_t*>(a + row * a_stride), a_bytes, panel, k, add,
                      c + row * c_stride + column, c_bytes);
    }
    if (row < m) {
      MultiplyBlock16(reinterpret_cast<const uint8_t*>(a + row * a_stride), a_bytes, panel, k, add,
                      c + row * c_stride + column, c_bytes);
    }
  }
  _tile_release();
}

#else

void MultiplyTiles(const uint16_t*, int64_t, const uint16_t*, int64_t, int64_t, int64_t, int64_t,
                   bool, float*, int64_t) {
  SH_CHECK(false, "this processor has no matrix unit");
}

#endif

}  // namespace stillhouse::planned::internal
