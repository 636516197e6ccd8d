#include "student/planned/step_kernels.h"

#include <algorithm>
#include <cmath>

#include "model/kernel_rows.h"
#include "model/parallel.h"

namespace stillhouse::planned {
namespace {

using kernels::kLanes;
using kernels::Load;
using kernels::Round;
using kernels::Store;

constexpr int64_t kGrainElements = 16 << 10;  // below this a thread costs more than it saves
// Columns that one thread sums: whole cache lines of fp32.
constexpr int64_t kColumnGrain = 64;

int64_t RowGrain(int64_t width) { return std::max<int64_t>(1, kGrainElements / width); }

template <typename T, bool kAdd>
SH_INLINE void AddNormRow(const float* x, const T* y, const T* w, float eps, int64_t width,
                          float* sum, T* normed, float* rstd) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const float value = kAdd ? x[i + j] + Load(y[i + j]) : x[i + j];
      if (kAdd) sum[i + j] = value;
      lanes[j] += value * value;
    }
  }
  float squares = kernels::SumLanes(lanes);
  for (; i < width; ++i) {
    const float value = kAdd ? x[i] + Load(y[i]) : x[i];
    if (kAdd) sum[i] = value;
    squares += value * value;
  }
  const float* row = kAdd ? sum : x;
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
  *rstd = scale;
  for (int64_t j = 0; j < width; ++j) Store(Load(w[j]) * Round<T>(row[j] * scale), &normed[j]);
}

// With h = x·rstd and g = w·dy: dx = rstd·(g − h·mean(g·h)), dw = Σ_rows dy·h.
template <typename T, bool kAdd>
SH_INLINE void NormBackRow(const float* __restrict x, const T* __restrict w, float rstd,
                           const T* __restrict dy, int64_t width, float* __restrict dx,
                           T* __restrict dx_rounded, float* __restrict dw) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += Load(w[i + j]) * Load(dy[i + j]) * x[i + j];
  }
  float dot = kernels::SumLanes(lanes);
  for (; i < width; ++i) dot += Load(w[i]) * Load(dy[i]) * x[i];
  const float mean = dot * rstd / static_cast<float>(width);
  for (int64_t j = 0; j < width; ++j) {
    const float h = x[j] * rstd, d = Load(dy[j]);
    const float through = rstd * (Load(w[j]) * d - h * mean);
    const float value = kAdd ? dx[j] + through : through;
    dx[j] = value;
    Store(value, &dx_rounded[j]);
    dw[j] += d * h;
  }
}

// As kernels::NormGradRow, where dx takes the place of dy.
template <typename T>
SH_INLINE void NormHeadBack(const T* x, const T* w, float rstd, int64_t width, T* dy, float* dw) {
  float dot = 0;
  for (int64_t j = 0; j < width; ++j) dot += Load(w[j]) * Load(dy[j]) * Load(x[j]);
  const float mean = dot * rstd / static_cast<float>(width);
  for (int64_t j = 0; j < width; ++j) {
    const float h = Load(x[j]) * rstd, d = Load(dy[j]);
    dw[j] += d * h;
    Store(rstd * (Load(w[j]) * d - h * mean), &dy[j]);
  }
}

template <typename T>
SH_INLINE void SwiGluBackRow(T* __restrict gate, T* __restrict up, const T* __restrict dy,
                             int64_t width, T* __restrict y) {
  for (int64_t j = 0; j < width; ++j) {
    const float g = Load(gate[j]), u = Load(up[j]), d = Load(dy[j]);
    const float sigmoid = kernels::Sigmoid(g);
    Store(Round<T>(g * sigmoid) * u, &y[j]);
    Store(d * u * sigmoid * (1.0f + g * (1.0f - sigmoid)), &gate[j]);
    Store(d * g * sigmoid, &up[j]);
  }
}

// kernels::RotateHead in place, on the two halves of a head.
template <typename T>
SH_INLINE void RotateHalves(T* __restrict low, T* __restrict high, const float* __restrict cos,
                            const float* __restrict sin, float sign, int64_t half) {
  for (int64_t j = 0; j < half; ++j) {
    const float x1 = Load(low[j]), x2 = Load(high[j]);
    const float c = cos[j], s = sin[j] * sign;
    Store(Round<T>(x1 * c) - Round<T>(x2 * s), &low[j]);
    Store(Round<T>(x2 * c) + Round<T>(x1 * s), &high[j]);
  }
}

SH_DISPATCHED void AddRow(const float* __restrict x, int64_t width, float* __restrict out) {
  for (int64_t j = 0; j < width; ++j) out[j] += x[j];
}

// One compiled body per type and instruction set: templates cannot be dispatched, so these
// overloads are what is.
#define SH_STEP_ROWS(T)                                                                            \
  SH_DISPATCHED void WidenRow(const T* __restrict x, int64_t width, float* __restrict out) {       \
    for (int64_t j = 0; j < width; ++j) out[j] = Load(x[j]);                                       \
  }                                                                                                \
  SH_DISPATCHED void AddNormRows(const float* x, const T* y, const T* w, float eps, int64_t rows,  \
                                 int64_t width, float* sum, T* normed, float* rstd) {              \
    for (int64_t r = 0; r < rows; ++r) {                                                           \
      const int64_t at = r * width;                                                                \
      if (y == nullptr) {                                                                          \
        AddNormRow<T, false>(x + at, y, w, eps, width, sum, normed + at, rstd + r);                \
      } else {                                                                                     \
        AddNormRow<T, true>(x + at, y + at, w, eps, width, sum + at, normed + at, rstd + r);       \
      }                                                                                            \
    }                                                                                              \
  }                                                                                                \
  SH_DISPATCHED void NormBackRows(const float* x, const T* w, const float* rstd, const T* dy,      \
                                  bool add, int64_t rows, int64_t width, float* dx, T* dx_rounded, \
                                  float* dw) {                                                     \
    for (int64_t r = 0; r < rows; ++r) {                                                           \
      const int64_t at = r * width;                                                                \
      if (add) {                                                                                   \
        NormBackRow<T, true>(x + at, w, rstd[r], dy + at, width, dx + at, dx_rounded + at, dw);    \
      } else {                                                                                     \
        NormBackRow<T, false>(x + at, w, rstd[r], dy + at, width, dx + at, dx_rounded + at, dw);   \
      }                                                                                            \
    }                                                                                              \
  }                                                                                                \
  SH_DISPATCHED void NormHeadsRow(const T* x, const T* w, float eps, int64_t heads, int64_t size,  \
                                  T* y, float* rstd) {                                             \
    for (int64_t h = 0; h < heads; ++h) {                                                          \
      kernels::NormRow(x + h * size, w, eps, size, y + h * size, rstd + h);                        \
    }                                                                                              \
  }                                                                                                \
  SH_DISPATCHED void NormHeadsBackRow(const T* x, const T* w, const float* rstd, int64_t heads,    \
                                      int64_t size, T* dy, float* dw) {                            \
    for (int64_t h = 0; h < heads; ++h) {                                                          \
      NormHeadBack(x + h * size, w, rstd[h], size, dy + h * size, dw);                             \
    }                                                                                              \
  }                                                                                                \
  SH_DISPATCHED void RotateRow(T* x, const float* cos, const float* sin, float sign,               \
                               int64_t heads, int64_t size) {                                      \
    for (int64_t h = 0; h < heads; ++h) {                                                          \
      RotateHalves(x + h * size, x + h * size + size / 2, cos, sin, sign, size / 2);               \
    }                                                                                              \
  }                                                                                                \
  SH_DISPATCHED void SwiGluRow(const T* __restrict gate, const T* __restrict up, int64_t width,    \
                               T* __restrict y) {                                                  \
    kernels::SwiGluRange(gate, up, width, y);                                                      \
  }                                                                                                \
  SH_DISPATCHED void SwiGluGradRow(T* gate, T* up, const T* dy, int64_t width, T* y) {             \
    SwiGluBackRow(gate, up, dy, width, y);                                                         \
  }                                                                                                \
  SH_DISPATCHED void SumColumns(const T* x, int64_t stride, int64_t rows, int64_t width, bool add, \
                                float* __restrict out) {                                           \
    if (!add) std::fill(out, out + width, 0.0f);                                                   \
    for (int64_t r = 0; r < rows; ++r) {                                                           \
      for (int64_t j = 0; j < width; ++j) out[j] += Load(x[r * stride + j]);                       \
    }                                                                                              \
  }
SH_STEP_ROWS(float)
SH_STEP_ROWS(uint16_t)
#undef SH_STEP_ROWS

}  // namespace

template <typename T>
void GatherRows(const T* table, const int64_t* ids, int64_t rows, int64_t width, float* x) {
  ParallelFor(0, rows, RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) WidenRow(table + ids[r] * width, width, x + r * width);
  });
}

void AddToRows(const int64_t* ids, const float* dx, int64_t rows, int64_t width, float* table) {
  ParallelFor(0, width, kColumnGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < rows; ++r) {
      AddRow(dx + r * width + begin, end - begin, table + ids[r] * width + begin);
    }
  });
}

template <typename T>
void AddAndNorm(const float* x, const T* y, const T* w, float eps, int64_t rows, int64_t width,
                float* sum, T* normed, float* rstd) {
  ParallelFor(0, rows, RowGrain(width), [&](int64_t begin, int64_t end) {
    const int64_t at = begin * width;
    AddNormRows(x + at, y == nullptr ? nullptr : y + at, w, eps, end - begin, width,
                y == nullptr ? nullptr : sum + at, normed + at, rstd + begin);
  });
}

template <typename T>
void NormBackward(const float* x, const T* w, const float* rstd, const T* dy, bool add,
                  int64_t rows, int64_t width, float* dx, T* dx_rounded, float* dw_parts) {
  ParallelFor(0, NormParts(rows), 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * kNormPartRows, at = first * width;
      float* dw = dw_parts + part * width;
      std::fill(dw, dw + width, 0.0f);
      NormBackRows(x + at, w, rstd + first, dy + at, add, std::min(kNormPartRows, rows - first),
                   width, dx + at, dx_rounded + at, dw);
    }
  });
}

template <typename T>
void NormHeads(const T* x, int64_t x_stride, const T* w, float eps, int64_t rows, int64_t heads,
               int64_t size, T* y, int64_t y_stride, float* rstd) {
  ParallelFor(0, rows, RowGrain(heads * size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      NormHeadsRow(x + r * x_stride, w, eps, heads, size, y + r * y_stride, rstd + r * heads);
    }
  });
}

template <typename T>
void NormHeadsBackward(const T* x, int64_t x_stride, const T* w, const float* rstd, int64_t rows,
                       int64_t heads, int64_t size, T* dy, int64_t dy_stride, float* dw_parts) {
  ParallelFor(0, NormParts(rows), 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      float* dw = dw_parts + part * size;
      std::fill(dw, dw + size, 0.0f);
      const int64_t last = std::min(rows, (part + 1) * kNormPartRows);
      for (int64_t r = part * kNormPartRows; r < last; ++r) {
        NormHeadsBackRow(x + r * x_stride, w, rstd + r * heads, heads, size, dy + r * dy_stride,
                         dw);
      }
    }
  });
}

template <typename T>
void RotateHeads(T* x, int64_t stride, const float* cos, const float* sin, const int32_t* position,
                 bool inverse, int64_t rows, int64_t heads, int64_t size) {
  ParallelFor(0, rows, RowGrain(heads * size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t angle = position[r] * (size / 2);
      RotateRow(x + r * stride, cos + angle, sin + angle, inverse ? -1.0f : 1.0f, heads, size);
    }
  });
}

template <typename T>
void SwiGluRows(const T* gate, const T* up, int64_t stride, int64_t rows, int64_t width, T* y) {
  ParallelFor(0, rows, RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      SwiGluRow(gate + r * stride, up + r * stride, width, y + r * width);
    }
  });
}

template <typename T>
void SwiGluRowsBackward(T* gate, T* up, int64_t stride, const T* dy, int64_t rows, int64_t width,
                        T* y) {
  ParallelFor(0, rows, RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      SwiGluGradRow(gate + r * stride, up + r * stride, dy + r * width, width, y + r * width);
    }
  });
}

template <typename T>
void FillRows(const T* row, int64_t rows, int64_t width, T* x, int64_t stride) {
  ParallelFor(0, rows, RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) std::copy_n(row, width, x + r * stride);
  });
}

template <typename T>
void AddColumnSums(const T* x, int64_t stride, int64_t rows, int64_t width, bool add, float* out) {
  ParallelFor(0, width, kColumnGrain, [&](int64_t begin, int64_t end) {
    SumColumns(x + begin, stride, rows, end - begin, add, out + begin);
  });
}

template <typename T>
void PickRows(const T* x, const int64_t* picked, int64_t count, int64_t width, T* out) {
  ParallelFor(0, count, RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::copy_n(x + picked[i] * width, width, out + i * width);
    }
  });
}

template <typename T>
void SpreadRows(const T* x, const int64_t* picked, int64_t count, int64_t rows, int64_t width,
                T* out) {
  int64_t next = 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (next < count && picked[next] == r) {
      std::copy_n(x + next * width, width, out + r * width);
      ++next;
    } else {
      std::fill_n(out + r * width, width, T{0});
    }
  }
}

#define SH_INSTANTIATE(T)                                                                         \
  template void GatherRows<T>(const T*, const int64_t*, int64_t, int64_t, float*);                \
  template void AddAndNorm<T>(const float*, const T*, const T*, float, int64_t, int64_t, float*,  \
                              T*, float*);                                                        \
  template void NormBackward<T>(const float*, const T*, const float*, const T*, bool, int64_t,    \
                                int64_t, float*, T*, float*);                                     \
  template void NormHeads<T>(const T*, int64_t, const T*, float, int64_t, int64_t, int64_t, T*,   \
                             int64_t, float*);                                                    \
  template void NormHeadsBackward<T>(const T*, int64_t, const T*, const float*, int64_t, int64_t, \
                                     int64_t, T*, int64_t, float*);                               \
  template void RotateHeads<T>(T*, int64_t, const float*, const float*, const int32_t*, bool,     \
                               int64_t, int64_t, int64_t);                                        \
  template void SwiGluRows<T>(const T*, const T*, int64_t, int64_t, int64_t, T*);                 \
  template void SwiGluRowsBackward<T>(T*, T*, int64_t, const T*, int64_t, int64_t, T*);           \
  template void FillRows<T>(const T*, int64_t, int64_t, T*, int64_t);                             \
  template void AddColumnSums<T>(const T*, int64_t, int64_t, int64_t, bool, float*);              \
  template void PickRows<T>(const T*, const int64_t*, int64_t, int64_t, T*);                      \
  template void SpreadRows<T>(const T*, const int64_t*, int64_t, int64_t, int64_t, T*)
SH_INSTANTIATE(float);
SH_INSTANTIATE(uint16_t);
#undef SH_INSTANTIATE

}  // namespace stillhouse::planned
