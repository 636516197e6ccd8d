// VectorProduct: a matrix times one row, what a decoder does for each token that it generates.
//
// Reading the matrix once is all the work there is, so it is read in whole rows by all threads.
// (oneDNN lays bfloat16 matrices out anew for each product.) Sums are fp32, in an order that
// depends on `inputs` alone; T is float, or uint16_t for bfloat16 bits.
#pragma once

#include <cstdint>

namespace stillhouse::kernels {

// y[n] = Σ_k w[n,k] · x[k] + bias[n]; `bias` may be null. w is row-major and contiguous.
template <typename T>
void VectorProduct(const T* x, const T* w, const T* bias, int64_t outputs, int64_t inputs, T* y);

}  // namespace stillhouse::kernels
