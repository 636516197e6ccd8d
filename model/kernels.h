// Kernels: the elementwise parts of a decoder layer, forward and backward, on plain memory.
//
// T is float, or uint16_t for bfloat16 bits. Arithmetic is fp32; where `transformers` rounds to the
// tensor's type in between, so do these. Each call covers all rows, on ParallelFor's threads; a
// row's result depends on that row only. Matrices are row-major and contiguous.
#pragma once

#include <cstdint>

namespace stillhouse::kernels {

// y[r,:] = w · round(x[r,:] · rstd[r]), rstd[r] = 1/sqrt(mean(x[r,:]²) + eps).
template <typename T>
void RmsNorm(const T* x, const T* w, float eps, int64_t rows, int64_t width, T* y, float* rstd);

// Rows that share one partial sum of the weight's gradient: fixes the order of the sum whatever the
// number of threads.
inline constexpr int64_t kNormGradRows = 64;
// dx [rows, width]; dw_parts [ceil(rows / kNormGradRows), width], to be summed by the caller.
template <typename T>
void RmsNormBackward(const T* x, const T* w, const float* rstd, const T* dy, int64_t rows,
                     int64_t width, T* dx, float* dw_parts);

// Rotates each head of x [rows, heads, size] by the angles of its row's position:
// y = (x1·c − x2·s, x2·c + x1·s) with x = (x1, x2) halves. cos, sin [positions, size/2], already
// rounded to T. `inverse` turns the other way, which is the gradient. x and y may be the same.
template <typename T>
void Rotate(const T* x, const float* cos, const float* sin, const int32_t* position, bool inverse,
            int64_t rows, int64_t heads, int64_t size, T* y);

// y = round(gate · sigmoid(gate)) · up.
template <typename T>
void SwiGlu(const T* gate, const T* up, int64_t count, T* y);
template <typename T>
void SwiGluBackward(const T* gate, const T* up, const T* dy, int64_t count, T* dgate, T* dup);

}  // namespace stillhouse::kernels
