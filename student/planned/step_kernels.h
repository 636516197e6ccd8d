// Step kernels: the elementwise parts of a planned training step, forward and backward, on plain
// memory.
//
// T is float, or uint16_t for bfloat16 bits. The residual stream and its gradient are fp32 for
// both, as under `torch.autocast`: a bf16 stream loses 8 bits with each of two additions a layer.
// Arithmetic is fp32 and rounds where `transformers` does. Each call covers all rows, on
// ParallelFor's threads; a row's result depends on that row only, and sums over rows run in one
// order whatever the number of threads. Nothing is allocated. Matrices are row-major; `stride` is
// the distance of their rows, in elements.
#pragma once

#include <cstdint>

namespace stillhouse::planned {

// x[r,:] = table[ids[r],:].
template <typename T>
void GatherRows(const T* table, const int64_t* ids, int64_t rows, int64_t width, float* x);
// table[ids[r],:] += dx[r,:], row after row: ids repeat, and the order of a sum decides its bits.
void AddToRows(const int64_t* ids, const float* dx, int64_t rows, int64_t width, float* table);

// sum = x + y, or x where y is null (`sum` is then not written);
// normed[r,:] = w · round(sum[r,:] · rstd[r]), rstd[r] = 1/sqrt(mean(sum[r,:]²) + eps).
template <typename T>
void AddAndNorm(const float* x, const T* y, const T* w, float eps, int64_t rows, int64_t width,
                float* sum, T* normed, float* rstd);

// Rows that share one partial sum of a norm's weight gradient.
inline constexpr int64_t kNormPartRows = 64;
inline int64_t NormParts(int64_t rows) { return (rows + kNormPartRows - 1) / kNormPartRows; }
// The gradient through the norm of x, added to dx, or written there where not `add`; dx_rounded is
// dx as T. dw_parts [NormParts(rows), width], to be summed by AddColumnSums.
template <typename T>
void NormBackward(const float* x, const T* w, const float* rstd, const T* dy, bool add,
                  int64_t rows, int64_t width, float* dx, T* dx_rounded, float* dw_parts);

// The norm over each head of x [rows, heads, size], rstd [rows, heads].
template <typename T>
void NormHeads(const T* x, int64_t x_stride, const T* w, float eps, int64_t rows, int64_t heads,
               int64_t size, T* y, int64_t y_stride, float* rstd);
// dy becomes dx. dw_parts [NormParts(rows), size].
template <typename T>
void NormHeadsBackward(const T* x, int64_t x_stride, const T* w, const float* rstd, int64_t rows,
                       int64_t heads, int64_t size, T* dy, int64_t dy_stride, float* dw_parts);

// Rotates each head of x [rows, heads, size] in place by the angles of its row's position (see
// model/kernels.h); `inverse` is the gradient. cos, sin [positions, size/2].
template <typename T>
void RotateHeads(T* x, int64_t stride, const float* cos, const float* sin, const int32_t* position,
                 bool inverse, int64_t rows, int64_t heads, int64_t size);

// y [rows, width] = silu(gate) · up.
template <typename T>
void SwiGluRows(const T* gate, const T* up, int64_t stride, int64_t rows, int64_t width, T* y);
// gate and up become their gradients, and y, computed again, is what SwiGluRows gave.
template <typename T>
void SwiGluRowsBackward(T* gate, T* up, int64_t stride, const T* dy, int64_t rows, int64_t width,
                        T* y);

// x[r,:] = row.
template <typename T>
void FillRows(const T* row, int64_t rows, int64_t width, T* x, int64_t stride);
// out[j] = Σ_r x[r,j], or += where `add`.
template <typename T>
void AddColumnSums(const T* x, int64_t stride, int64_t rows, int64_t width, bool add, float* out);

// out[i,:] = x[picked[i],:].
template <typename T>
void PickRows(const T* x, const int64_t* picked, int64_t count, int64_t width, T* out);
// out [rows, width]: x[i,:] at row picked[i], zero elsewhere. REQUIRES: picked ascends.
template <typename T>
void SpreadRows(const T* x, const int64_t* picked, int64_t count, int64_t rows, int64_t width,
                T* out);

}  // namespace stillhouse::planned
