#include "student/planned/block_product.h"

#include <algorithm>
#include <cstring>

#include "model/matmul.h"
#include "model/vector_math.h"
#include "student/planned/block_product_tiles.h"

namespace stillhouse::planned {
namespace {

using vector_math::Load;

constexpr int64_t kRowsAtOnce = 4;  // of C, whose sums stay in registers

typedef float Vector __attribute__((vector_size(64)));
// Two neighbouring bfloat16 values.
typedef uint32_t __attribute__((may_alias)) Pair;

template <typename T>
SH_INLINE void LoadVector(const T* x, Vector* out) {
  float values[16];
  for (int i = 0; i < 16; ++i) values[i] = Load(x[i]);
  std::memcpy(out, values, sizeof(*out));
}

// Rows [0, kRows) of C by one panel.
template <int64_t kRows, typename T>
SH_INLINE void MultiplyRows(const T* a, int64_t a_stride, const T* panel, int64_t k, bool add,
                            float* c, int64_t c_stride) {
  Vector low[kRows], high[kRows];
  for (int64_t r = 0; r < kRows; ++r) {
    low[r] = high[r] = Vector{};
    if (add) {
      std::memcpy(&low[r], c + r * c_stride, sizeof(Vector));
      std::memcpy(&high[r], c + r * c_stride + 16, sizeof(Vector));
    }
  }
  for (int64_t i = 0; i < k; ++i, panel += kPanel) {
    Vector b_low, b_high;
    LoadVector(panel, &b_low);
    LoadVector(panel + 16, &b_high);
    for (int64_t r = 0; r < kRows; ++r) {
      const float value = Load(a[r * a_stride + i]);
      low[r] += value * b_low;
      high[r] += value * b_high;
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    std::memcpy(c + r * c_stride, &low[r], sizeof(Vector));
    std::memcpy(c + r * c_stride + 16, &high[r], sizeof(Vector));
  }
}

template <typename T>
SH_INLINE void MultiplyPanel(const T* a, int64_t a_stride, const T* panel, int64_t m, int64_t k,
                             bool add, float* c, int64_t c_stride) {
  int64_t row = 0;
  for (; row + kRowsAtOnce <= m; row += kRowsAtOnce) {
    MultiplyRows<kRowsAtOnce>(a + row * a_stride, a_stride, panel, k, add, c + row * c_stride,
                              c_stride);
  }
  for (; row < m; ++row) {
    MultiplyRows<1>(a + row * a_stride, a_stride, panel, k, add, c + row * c_stride, c_stride);
  }
}

// Rows i and i+1 of B side by side, as one row of a panel for kTiles. `second` may be null: zeros.
SH_INLINE void InterleaveRow(const uint16_t* first, const uint16_t* second, uint16_t* out) {
  for (int64_t j = 0; j < kPanel; ++j) {
    out[2 * j] = first[j];
    out[2 * j + 1] = second == nullptr ? uint16_t{0} : second[j];
  }
}

SH_DISPATCHED void InterleaveRows(const uint16_t* __restrict first,
                                  const uint16_t* __restrict second, uint16_t* __restrict out) {
  InterleaveRow(first, second, out);
}

// 16×16 blocks, so that both sides are read and written by whole cache lines.
template <typename T>
SH_INLINE void TransposeBlocks(const T* __restrict x, int64_t stride, int64_t rows, int64_t columns,
                               T* __restrict out, int64_t out_stride) {
  for (int64_t i0 = 0; i0 < rows; i0 += 16) {
    const int64_t i1 = std::min(rows, i0 + 16);
    for (int64_t j0 = 0; j0 < columns; j0 += 16) {
      const int64_t j1 = std::min(columns, j0 + 16);
      for (int64_t j = j0; j < j1; ++j) {
        for (int64_t i = i0; i < i1; ++i) out[j * out_stride + i] = x[i * stride + j];
      }
    }
  }
}

// The compiled bodies: templates cannot be dispatched.
#define SH_BLOCK_PRODUCTS(T)                                                                     \
  SH_DISPATCHED void MultiplyPanels(const T* a, int64_t a_stride, const T* packed,               \
                                    int64_t panel_stride, int64_t m, int64_t n, int64_t k,       \
                                    bool add, float* c, int64_t c_stride) {                      \
    for (int64_t column = 0; column < n; column += kPanel) {                                     \
      MultiplyPanel(a, a_stride, packed + column / kPanel * panel_stride, m, k, add, c + column, \
                    c_stride);                                                                   \
    }                                                                                            \
  }                                                                                              \
  SH_DISPATCHED void TransposeAll(const T* x, int64_t stride, int64_t rows, int64_t columns,     \
                                  T* out, int64_t out_stride) {                                  \
    TransposeBlocks(x, stride, rows, columns, out, out_stride);                                  \
  }
SH_BLOCK_PRODUCTS(float)
SH_BLOCK_PRODUCTS(uint16_t)
#undef SH_BLOCK_PRODUCTS
SH_DISPATCHED void TransposeAll(const Pair* x, int64_t stride, int64_t rows, int64_t columns,
                                Pair* out, int64_t out_stride) {
  TransposeBlocks(x, stride, rows, columns, out, out_stride);
}

// Columns [column, column + width) of B as one panel, of pairs of rows.
void PackPairPanel(const uint16_t* b, int64_t stride, int64_t k, int64_t width, uint16_t* panel) {
  uint16_t first[kPanel] = {}, second[kPanel] = {};
  const int64_t pairs = RoundUp(k, kPanel) / 2;
  for (int64_t pair = 0; pair < pairs; ++pair, panel += 2 * kPanel) {
    const int64_t i = 2 * pair;
    if (width == kPanel && i + 1 < k) {
      InterleaveRows(b + i * stride, b + (i + 1) * stride, panel);
      continue;
    }
    std::fill_n(first, kPanel, uint16_t{0});
    std::fill_n(second, kPanel, uint16_t{0});
    if (i < k) std::copy_n(b + i * stride, width, first);
    if (i + 1 < k) std::copy_n(b + (i + 1) * stride, width, second);
    InterleaveRows(first, second, panel);
  }
}

}  // namespace

bool HasTiles() { return ops::HasMatrixUnit(); }

template <typename T>
void PackRows(ProductKind kind, const T* b, int64_t stride, int64_t k, int64_t n, T* packed) {
  const int64_t rows = RoundUp(k, kPanel);
  for (int64_t column = 0; column < n; column += kPanel, packed += rows * kPanel) {
    const int64_t width = std::min(kPanel, n - column);
    if constexpr (sizeof(T) == 2) {
      if (kind == ProductKind::kTiles) {
        PackPairPanel(b + column, stride, k, width, packed);
        continue;
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      T* row = packed + i * kPanel;
      const int64_t given = i < k ? width : 0;
      if (given > 0) std::copy_n(b + i * stride + column, given, row);
      std::fill(row + given, row + kPanel, T{0});
    }
  }
}

template <typename T>
void PackColumns(ProductKind kind, const T* b, int64_t stride, int64_t k, int64_t n, T* packed) {
  const int64_t rows = RoundUp(k, kPanel);
  for (int64_t column = 0; column < n; column += kPanel, packed += rows * kPanel) {
    const int64_t width = std::min(kPanel, n - column);
    const T* from = b + column * stride;
    if (width < kPanel || k < rows) std::fill_n(packed, rows * kPanel, T{0});
    if constexpr (sizeof(T) == 2) {
      if (kind == ProductKind::kTiles) {
        // A pair of neighbours in a row of b is one 32-bit word of the panel.
        if (k % 2 == 0 && stride % 2 == 0 && reinterpret_cast<uintptr_t>(from) % 4 == 0) {
          TransposeAll(reinterpret_cast<const Pair*>(from), stride / 2, width, k / 2,
                       reinterpret_cast<Pair*>(packed), kPanel);
          continue;
        }
        for (int64_t j = 0; j < width; ++j) {
          for (int64_t i = 0; i < k; ++i) {
            packed[i / 2 * 2 * kPanel + 2 * j + i % 2] = from[j * stride + i];
          }
        }
        continue;
      }
    }
    TransposeAll(from, stride, width, k, packed, kPanel);
  }
}

template <typename T>
void MultiplyPacked(ProductKind kind, const T* a, int64_t a_stride, const T* packed,
                    int64_t panel_stride, int64_t m, int64_t n, int64_t k, bool add, float* c,
                    int64_t c_stride) {
  if constexpr (sizeof(T) == 2) {
    if (kind == ProductKind::kTiles) {
      internal::MultiplyTiles(a, a_stride, packed, panel_stride, m, n, k, add, c, c_stride);
      return;
    }
  }
  MultiplyPanels(a, a_stride, packed, panel_stride, m, n, k, add, c, c_stride);
}

template <typename T>
void Transpose(const T* x, int64_t stride, int64_t rows, int64_t columns, T* out,
               int64_t out_stride) {
  TransposeAll(x, stride, rows, columns, out, out_stride);
}

#define SH_INSTANTIATE(T)                                                                     \
  template void PackRows<T>(ProductKind, const T*, int64_t, int64_t, int64_t, T*);            \
  template void PackColumns<T>(ProductKind, const T*, int64_t, int64_t, int64_t, T*);         \
  template void MultiplyPacked<T>(ProductKind, const T*, int64_t, const T*, int64_t, int64_t, \
                                  int64_t, int64_t, bool, float*, int64_t);                   \
  template void Transpose<T>(const T*, int64_t, int64_t, int64_t, T*, int64_t)
SH_INSTANTIATE(float);
SH_INSTANTIATE(uint16_t);
#undef SH_INSTANTIATE

}  // namespace stillhouse::planned
