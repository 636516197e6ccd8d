// The elementwise loops of attention, for one row of scores.
#pragma once

#include <cstdint>

namespace stillhouse::planned::internal {

// The softmax of scores[begin, end) · scale, not yet divided by its sum, in out; zero elsewhere in
// out[0, n). Returns the sum; *largest is the largest scaled score.
template <typename T>
float SoftmaxRow(const float* scores, int64_t begin, int64_t end, int64_t n, float scale, T* out,
                 float* largest);

// out[i] = factor · x[i].
template <typename T>
void StoreScaled(const float* x, float factor, int64_t n, T* out);

// One key against queries [begin, end) of a block of n: p = exp(scores · scale − lse),
// d = p · (dp − delta) · scale; both are zero outside.
template <typename T>
void GradientRow(const float* scores, const float* dp, const float* lse, const float* delta,
                 float scale, int64_t begin, int64_t end, int64_t n, T* p, T* d);

// Σ a[i] · b[i].
template <typename T>
float DotRow(const T* a, const T* b, int64_t n);

}  // namespace stillhouse::planned::internal
