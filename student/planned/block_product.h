// Block products: small products of matrices on the calling thread, without allocation.
//
// The right operand is packed first, once for all products that read it. T is float, or uint16_t
// for bfloat16 bits; sums are fp32. Two kinds compute the same up to the order of a sum:
//   kPortable  vector code that the compiler makes for three levels of x86-64 (model/vector_math.h)
//   kTiles     bfloat16 on the matrix unit of a CPU that has one (Intel AMX, where the kernel
//              grants it)
//
// Packed form of B [k, n]: panels of 32 columns, each of RoundUp(k, 32) rows, row after row; rows
// and columns past B's are zero. kTiles interleaves neighbouring rows in pairs. A range of columns
// that begins at a multiple of 32 is a range of panels; a range of rows that begins at one is
// `row · kPanel` elements into each panel.
//
// kTiles reads A in whole blocks: up to RoundUp(m, 16) rows of RoundUp(k, 32) elements. What lies
// past A's own must be readable and finite: it is multiplied by zero, or lands in rows of C past m,
// which must be writable, as must columns up to RoundUp(n, 32).
#pragma once

#include <cstdint>

namespace stillhouse::planned {

inline constexpr int64_t kPanel = 32;
inline int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

enum class ProductKind { kPortable, kTiles };

// Whether kTiles works here. The first call asks the kernel for the right to use the matrix unit,
// for the whole process.
bool HasTiles();

// Elements that a packed B [k, n] takes.
inline int64_t PackedSize(int64_t k, int64_t n) { return RoundUp(k, kPanel) * RoundUp(n, kPanel); }

// B[i,j] = b[i·stride + j].
template <typename T>
void PackRows(ProductKind kind, const T* b, int64_t stride, int64_t k, int64_t n, T* packed);
// B[i,j] = b[j·stride + i].
template <typename T>
void PackColumns(ProductKind kind, const T* b, int64_t stride, int64_t k, int64_t n, T* packed);

// C [m, n] = A [m, k] · B, or += where `add`. `panel_stride` is the distance of B's panels in
// elements.
template <typename T>
void MultiplyPacked(ProductKind kind, const T* a, int64_t a_stride, const T* packed,
                    int64_t panel_stride, int64_t m, int64_t n, int64_t k, bool add, float* c,
                    int64_t c_stride);

// out[j·out_stride + i] = x[i·stride + j], for i < rows, j < columns.
template <typename T>
void Transpose(const T* x, int64_t stride, int64_t rows, int64_t columns, T* out,
               int64_t out_stride);

}  // namespace stillhouse::planned
