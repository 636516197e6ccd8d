#include "model/kernels.h"

#include <algorithm>
#include <vector>

#include "model/kernel_rows.h"
#include "model/parallel.h"

namespace stillhouse::kernels {
namespace {

constexpr int64_t kGrainElements = 16 << 10;  // below this a thread costs more than it saves

int64_t RowGrain(int64_t width) { return std::max<int64_t>(1, kGrainElements / width); }

// One compiled body per type and instruction set: templates cannot be dispatched, so these
// overloads are what is.
#define SH_ROW_KERNELS(T)                                                                     \
  SH_DISPATCHED void NormRows(const T* x, const T* w, float eps, int64_t rows, int64_t width, \
                              T* y, float* rstd) {                                            \
    for (int64_t r = 0; r < rows; ++r) {                                                      \
      NormRow(x + r * width, w, eps, width, y + r * width, rstd + r);                         \
    }                                                                                         \
  }                                                                                           \
  SH_DISPATCHED void NormGradRows(const T* x, const T* w, const float* rstd, const T* dy,     \
                                  int64_t rows, int64_t width, T* dx, float* dw) {            \
    for (int64_t r = 0; r < rows; ++r) {                                                      \
      NormGradRow(x + r * width, w, rstd[r], dy + r * width, width, dx + r * width, dw);      \
    }                                                                                         \
  }                                                                                           \
  SH_DISPATCHED void RotateRow(const T* x, const float* cos, const float* sin, float sign,    \
                               int64_t heads, int64_t size, T* y) {                           \
    for (int64_t h = 0; h < heads; ++h) {                                                     \
      RotateHead(x + h * size, cos, sin, sign, size / 2, y + h * size);                       \
    }                                                                                         \
  }                                                                                           \
  SH_DISPATCHED void SwiGluSpan(const T* gate, const T* up, int64_t count, T* y) {            \
    SwiGluRange(gate, up, count, y);                                                          \
  }                                                                                           \
  SH_DISPATCHED void SwiGluGradSpan(const T* gate, const T* up, const T* dy, int64_t count,   \
                                    T* dgate, T* dup) {                                       \
    SwiGluGradRange(gate, up, dy, count, dgate, dup);                                         \
  }
SH_ROW_KERNELS(float)
SH_ROW_KERNELS(uint16_t)
#undef SH_ROW_KERNELS

}  // namespace

template <typename T>
void RmsNorm(const T* x, const T* w, float eps, int64_t rows, int64_t width, T* y, float* rstd) {
  ParallelFor(0, rows, RowGrain(width), [&](int64_t begin, int64_t end) {
    NormRows(x + begin * width, w, eps, end - begin, width, y + begin * width, rstd + begin);
  });
}

template <typename T>
void RmsNormBackward(const T* x, const T* w, const float* rstd, const T* dy, int64_t rows,
                     int64_t width, T* dx, float* dw_parts) {
  const int64_t parts = (rows + kNormGradRows - 1) / kNormGradRows;
  ParallelFor(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * kNormGradRows;
      const int64_t count = std::min(kNormGradRows, rows - first);
      float* dw = dw_parts + part * width;
      std::fill(dw, dw + width, 0.0f);
      NormGradRows(x + first * width, w, rstd + first, dy + first * width, count, width,
                   dx + first * width, dw);
    }
  });
}

template <typename T>
void Rotate(const T* x, const float* cos, const float* sin, const int32_t* position, bool inverse,
            int64_t rows, int64_t heads, int64_t size, T* y) {
  const int64_t width = heads * size;
  ParallelFor(0, rows, RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t angle = position[r] * (size / 2);
      RotateRow(x + r * width, cos + angle, sin + angle, inverse ? -1.0f : 1.0f, heads, size,
                y + r * width);
    }
  });
}

template <typename T>
void SwiGlu(const T* gate, const T* up, int64_t count, T* y) {
  ParallelFor(0, count, kGrainElements, [&](int64_t begin, int64_t end) {
    SwiGluSpan(gate + begin, up + begin, end - begin, y + begin);
  });
}

template <typename T>
void SwiGluBackward(const T* gate, const T* up, const T* dy, int64_t count, T* dgate, T* dup) {
  ParallelFor(0, count, kGrainElements, [&](int64_t begin, int64_t end) {
    SwiGluGradSpan(gate + begin, up + begin, dy + begin, end - begin, dgate + begin, dup + begin);
  });
}

#define SH_INSTANTIATE(T)                                                                        \
  template void RmsNorm<T>(const T*, const T*, float, int64_t, int64_t, T*, float*);             \
  template void RmsNormBackward<T>(const T*, const T*, const float*, const T*, int64_t, int64_t, \
                                   T*, float*);                                                  \
  template void Rotate<T>(const T*, const float*, const float*, const int32_t*, bool, int64_t,   \
                          int64_t, int64_t, T*);                                                 \
  template void SwiGlu<T>(const T*, const T*, int64_t, T*);                                      \
  template void SwiGluBackward<T>(const T*, const T*, const T*, int64_t, T*, T*)
SH_INSTANTIATE(float);
SH_INSTANTIATE(uint16_t);
#undef SH_INSTANTIATE

}  // namespace stillhouse::kernels
