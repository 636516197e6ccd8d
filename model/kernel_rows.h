// The arithmetic of one row of each kernel, as inline templates: what kernels.cc and other files
// compile for each instruction set. T is float, or uint16_t for bfloat16 bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "model/vector_math.h"

namespace stillhouse::kernels {

using vector_math::kLanes;
using vector_math::Load;
using vector_math::Round;
using vector_math::Sigmoid;
using vector_math::Store;

SH_INLINE float SumLanes(const float* lanes) {
  float sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

template <typename T>
SH_INLINE void NormRow(const T* x, const T* w, float eps, int64_t width, T* y, float* rstd) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const float value = Load(x[i + j]);
      lanes[j] += value * value;
    }
  }
  float sum = SumLanes(lanes);
  for (; i < width; ++i) sum += Load(x[i]) * Load(x[i]);
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
  *rstd = scale;
  for (int64_t j = 0; j < width; ++j) Store(Load(w[j]) * Round<T>(Load(x[j]) * scale), &y[j]);
}

// With h = x·rstd and g = w·dy: dx = rstd·(g − h·mean(g·h)), dw = Σ_rows dy·h.
template <typename T>
SH_INLINE void NormGradRow(const T* x, const T* w, float rstd, const T* dy, int64_t width, T* dx,
                           float* dw) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      lanes[j] += Load(w[i + j]) * Load(dy[i + j]) * Load(x[i + j]);
    }
  }
  float dot = SumLanes(lanes);
  for (; i < width; ++i) dot += Load(w[i]) * Load(dy[i]) * Load(x[i]);
  const float mean = dot * rstd / static_cast<float>(width);
  for (int64_t j = 0; j < width; ++j) {
    const float h = Load(x[j]) * rstd;
    Store(rstd * (Load(w[j]) * Load(dy[j]) - h * mean), &dx[j]);
    dw[j] += Load(dy[j]) * h;
  }
}

template <typename T>
SH_INLINE void RotateHead(const T* x, const float* cos, const float* sin, float sign, int64_t half,
                          T* y) {
  for (int64_t j = 0; j < half; ++j) {
    const float x1 = Load(x[j]), x2 = Load(x[half + j]);
    const float c = cos[j], s = sin[j] * sign;
    Store(Round<T>(x1 * c) - Round<T>(x2 * s), &y[j]);
    Store(Round<T>(x2 * c) + Round<T>(x1 * s), &y[half + j]);
  }
}

template <typename T>
SH_INLINE void SwiGluRange(const T* gate, const T* up, int64_t count, T* y) {
  for (int64_t j = 0; j < count; ++j) {
    const float g = Load(gate[j]);
    Store(Round<T>(g * Sigmoid(g)) * Load(up[j]), &y[j]);
  }
}

template <typename T>
SH_INLINE void SwiGluGradRange(const T* gate, const T* up, const T* dy, int64_t count, T* dgate,
                               T* dup) {
  for (int64_t j = 0; j < count; ++j) {
    const float g = Load(gate[j]), d = Load(dy[j]);
    const float sigmoid = Sigmoid(g);
    Store(d * Load(up[j]) * sigmoid * (1.0f + g * (1.0f - sigmoid)), &dgate[j]);
    Store(d * g * sigmoid, &dup[j]);
  }
}

}  // namespace stillhouse::kernels
