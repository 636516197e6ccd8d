#include "student/losses/row_kernels.h"

#include <algorithm>
#include <cstring>

#include "model/vector_math.h"

namespace stillhouse {
namespace {

#define SH_INLINE_LAMBDA __attribute__((always_inline))

using vector_math::Exp;
using vector_math::Load;
using vector_math::ToBf16;

// Independent accumulators, so that a sum is a vector operation whose order the source fixes.
constexpr size_t kLanes = 16;
// fp32 lanes are emptied into fp64 after so many values: 64 additions lose at most 4e-6 of a lane.
constexpr size_t kBlock = 64 * kLanes;

SH_INLINE float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
SH_INLINE uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// Natural logarithm of a positive normal number, as in Cephes' logf: m · 2^e with m in [√½, √2).
SH_INLINE float Log(float x) {
  const uint32_t bits = BitsOf(x) - 0x3f3504f3u;
  const float e = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const float f = FromBits((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const float z = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  float y = f * z * p;
  y += e * -2.12194440e-4f;
  y -= 0.5f * z;
  return (f + y) + e * 0.693359375f;
}

// A vector of kLanes values; narrower machines use several registers for it.
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

// Σ term(i) for i in [0, n) in the order described at kBlock.
template <typename Term>
SH_INLINE double SumTerms(size_t n, Term term) {
  alignas(64) float block[kBlock];
  double total = 0;
  size_t from = 0;
  for (; from + kLanes <= n;) {
    const size_t count = std::min(kBlock, (n - from) / kLanes * kLanes);
    for (size_t i = 0; i < count; ++i) block[i] = term(from + i);
    Lanes sum = {};
    for (size_t i = 0; i < count; i += kLanes) {
      Lanes values;
      std::memcpy(&values, block + i, sizeof(values));
      sum += values;
    }
    for (size_t lane = 0; lane < kLanes; ++lane) total += sum[lane];
    from += count;
  }
  for (; from < n; ++from) total += term(from);
  return total;
}

SH_INLINE float MaxRow(const float* row, size_t n) {
  Lanes largest_lanes;
  for (size_t lane = 0; lane < kLanes; ++lane) largest_lanes[lane] = row[0];
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Lanes values;
    std::memcpy(&values, row + i, sizeof(values));
    largest_lanes = values > largest_lanes ? values : largest_lanes;
  }
  float largest = row[0];
  for (; i < n; ++i) largest = row[i] > largest ? row[i] : largest;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    largest = largest_lanes[lane] > largest ? largest_lanes[lane] : largest;
  }
  return largest;
}

}  // namespace

SH_DISPATCHED float LoadRow(const float* __restrict row, size_t n, float* __restrict out) {
  std::memcpy(out, row, n * sizeof(float));
  return MaxRow(out, n);
}
SH_DISPATCHED float LoadRow(const uint16_t* __restrict row, size_t n, float* __restrict out) {
  for (size_t i = 0; i < n; ++i) out[i] = Load(row[i]);
  return MaxRow(out, n);
}

SH_DISPATCHED double ExpRow(const float* row, size_t n, float shift, float scale, float* out) {
  for (size_t i = 0; i < n; ++i) out[i] = Exp((row[i] - shift) * scale);
  return SumTerms(n, [out](size_t i) SH_INLINE_LAMBDA { return out[i]; });
}

SH_DISPATCHED void ScaleRow(const float* row, size_t n, float factor, float* out) {
  for (size_t i = 0; i < n; ++i) out[i] = factor * row[i];
}
SH_DISPATCHED void AddScaledRow(const float* __restrict row, size_t n, float factor,
                                float* __restrict out) {
  for (size_t i = 0; i < n; ++i) out[i] += factor * row[i];
}

SH_DISPATCHED double WeightedDifference(const float* weight, const float* a, const float* b,
                                        size_t n) {
  return SumTerms(n, [=](size_t i) SH_INLINE_LAMBDA { return weight[i] * (a[i] - b[i]); });
}

void StoreRow(const float* row, size_t n, float* out) { std::memcpy(out, row, n * sizeof(float)); }
SH_DISPATCHED void StoreRow(const float* __restrict row, size_t n, uint16_t* __restrict out) {
  for (size_t i = 0; i < n; ++i) out[i] = ToBf16(row[i]);
}

SH_DISPATCHED double JensenShannonRow(const float* p_exp, float p_scale, const float* q_exp,
                                      float q_scale, size_t n) {
  return SumTerms(n, [=](size_t i) SH_INLINE_LAMBDA {
    // The floor keeps both logarithms finite; where it acts, the term is far below 1e-30.
    const float p = p_exp[i] * p_scale + 1e-36f;
    const float q = q_exp[i] * q_scale + 1e-36f;
    const float middle = 0.5f * (p + q);
    const float term = 0.5f * (p * Log(p / middle) + q * Log(q / middle));
    return term > 0.0f ? term : 0.0f;
  });
}

SH_DISPATCHED size_t ArgMaxRow(const float* row, size_t n) {
  const float largest = MaxRow(row, n);
  for (size_t i = 0; i < n; ++i) {
    if (row[i] == largest) return i;
  }
  return 0;  // only where every value is NaN
}

SH_DISPATCHED void AccumulateGradient(const uint16_t* __restrict gradient, size_t n, bool first,
                                      float* __restrict out) {
  if (first) {
    for (size_t i = 0; i < n; ++i) out[i] = Load(gradient[i]);
  } else {
    for (size_t i = 0; i < n; ++i) out[i] += Load(gradient[i]);
  }
}
SH_DISPATCHED void AccumulateGradient(const float* __restrict gradient, size_t n, bool first,
                                      float* __restrict out) {
  if (first) {
    std::memcpy(out, gradient, n * sizeof(float));
  } else {
    for (size_t i = 0; i < n; ++i) out[i] += gradient[i];
  }
}

}  // namespace stillhouse
