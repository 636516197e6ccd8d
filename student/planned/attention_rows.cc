#include "student/planned/attention_rows.h"

#include <algorithm>

#include "model/kernel_rows.h"

namespace stillhouse::planned::internal {
namespace {

using kernels::kLanes;
using vector_math::Exp;
using vector_math::Load;
using vector_math::Store;

SH_INLINE float MaxOf(const float* x, int64_t n) {
  float lanes[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) lanes[j] = x[0];
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
  }
  float largest = x[0];
  for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  for (int64_t j = 0; j < kLanes; ++j) largest = lanes[j] > largest ? lanes[j] : largest;
  return largest;
}

template <typename T>
SH_INLINE float Softmax(const float* __restrict scores, int64_t begin, int64_t end, int64_t n,
                        float scale, T* __restrict out, float* __restrict largest) {
  const float shift = MaxOf(scores + begin, end - begin) * scale;
  *largest = shift;
  std::fill(out, out + begin, T{0});
  std::fill(out + end, out + n, T{0});
  float lanes[kLanes] = {};
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const float value = Exp(scores[i + j] * scale - shift);
      lanes[j] += value;
      Store(value, &out[i + j]);
    }
  }
  float sum = kernels::SumLanes(lanes);
  for (; i < end; ++i) {
    const float value = Exp(scores[i] * scale - shift);
    sum += value;
    Store(value, &out[i]);
  }
  return sum;
}

template <typename T>
SH_INLINE void GradientSpan(const float* __restrict scores, const float* __restrict dp,
                            const float* __restrict lse, const float* __restrict delta, float scale,
                            int64_t begin, int64_t end, int64_t n, T* __restrict p,
                            T* __restrict d) {
  std::fill(p, p + begin, T{0});
  std::fill(d, d + begin, T{0});
  for (int64_t i = begin; i < end; ++i) {
    const float value = Exp(scores[i] * scale - lse[i]);
    Store(value, &p[i]);
    Store(value * (dp[i] - delta[i]) * scale, &d[i]);
  }
  std::fill(p + end, p + n, T{0});
  std::fill(d + end, d + n, T{0});
}

template <typename T>
SH_INLINE float Dot(const T* a, const T* b, int64_t n) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += Load(a[i + j]) * Load(b[i + j]);
  }
  float sum = kernels::SumLanes(lanes);
  for (; i < n; ++i) sum += Load(a[i]) * Load(b[i]);
  return sum;
}

#define SH_ATTENTION_ROWS(T)                                                                  \
  SH_DISPATCHED float SoftmaxSpan(const float* scores, int64_t begin, int64_t end, int64_t n, \
                                  float scale, T* out, float* largest) {                      \
    return Softmax(scores, begin, end, n, scale, out, largest);                               \
  }                                                                                           \
  SH_DISPATCHED void ScaleSpan(const float* __restrict x, float factor, int64_t n,            \
                               T* __restrict out) {                                           \
    for (int64_t i = 0; i < n; ++i) Store(factor* x[i], &out[i]);                             \
  }                                                                                           \
  SH_DISPATCHED void Gradients(const float* scores, const float* dp, const float* lse,        \
                               const float* delta, float scale, int64_t begin, int64_t end,   \
                               int64_t n, T* p, T* d) {                                       \
    GradientSpan(scores, dp, lse, delta, scale, begin, end, n, p, d);                         \
  }                                                                                           \
  SH_DISPATCHED float DotSpan(const T* a, const T* b, int64_t n) { return Dot(a, b, n); }
SH_ATTENTION_ROWS(float)
SH_ATTENTION_ROWS(uint16_t)
#undef SH_ATTENTION_ROWS

}  // namespace

template <typename T>
float SoftmaxRow(const float* scores, int64_t begin, int64_t end, int64_t n, float scale, T* out,
                 float* largest) {
  return SoftmaxSpan(scores, begin, end, n, scale, out, largest);
}
template <typename T>
void StoreScaled(const float* x, float factor, int64_t n, T* out) {
  ScaleSpan(x, factor, n, out);
}
template <typename T>
void GradientRow(const float* scores, const float* dp, const float* lse, const float* delta,
                 float scale, int64_t begin, int64_t end, int64_t n, T* p, T* d) {
  Gradients(scores, dp, lse, delta, scale, begin, end, n, p, d);
}
template <typename T>
float DotRow(const T* a, const T* b, int64_t n) {
  return DotSpan(a, b, n);
}

#define SH_INSTANTIATE(T)                                                                     \
  template float SoftmaxRow<T>(const float*, int64_t, int64_t, int64_t, float, T*, float*);   \
  template void StoreScaled<T>(const float*, float, int64_t, T*);                             \
  template void GradientRow<T>(const float*, const float*, const float*, const float*, float, \
                               int64_t, int64_t, int64_t, T*, T*);                            \
  template float DotRow<T>(const T*, const T*, int64_t)
SH_INSTANTIATE(float);
SH_INSTANTIATE(uint16_t);
#undef SH_INSTANTIATE

}  // namespace stillhouse::planned::internal
