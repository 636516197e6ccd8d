// Values of float or of bfloat16 bits, for the kernels' tests.
#pragma once

#include <cstdint>
#include <vector>

#include "common/random.h"
#include "common/tensor_view.h"

namespace stillhouse::planned {

inline double Widen(float value) { return value; }
inline double Widen(uint16_t value) { return Bf16ToFloat(value); }
inline void Narrow(double value, float* out) { *out = static_cast<float>(value); }
inline void Narrow(double value, uint16_t* out) { *out = FloatToBf16(static_cast<float>(value)); }

// Normal, and finite.
template <typename T>
std::vector<T> Random(int64_t count, uint64_t seed) {
  RandomStream random(seed);
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) Narrow(random.NextNormal(), &value);
  return values;
}

}  // namespace stillhouse::planned
