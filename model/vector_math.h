// What vectorised loops are written with: runtime dispatch over instruction sets, and functions
// that the compiler can turn into vector code because they have no branch and no call.
#pragma once

#include <cstdint>
#include <cstring>

// Compiles a function for three levels of x86-64 and picks one when the program loads. Helpers
// called from it must be SH_INLINE, or they would be compiled for the lowest level only.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define SH_DISPATCHED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SH_DISPATCHED
#endif
#define SH_INLINE __attribute__((always_inline)) inline

namespace stillhouse::vector_math {

// Independent partial sums in a reduction: enough to fill two 512-bit registers of floats.
inline constexpr int64_t kLanes = 32;

SH_INLINE float Load(float value) { return value; }
SH_INLINE float Load(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// To nearest even; every NaN becomes the same quiet one.
SH_INLINE uint16_t ToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
SH_INLINE void Store(float value, float* out) { *out = value; }
SH_INLINE void Store(float value, uint16_t* out) { *out = ToBf16(value); }

// The value that a tensor of type T would hold.
template <typename T>
SH_INLINE float Round(float value) {
  T stored;
  Store(value, &stored);
  return Load(stored);
}

// e^x with a relative error below 2e-7; 0 below -87.3 and capped above 88.3, where fp32 ends. x =
// n·ln 2 + r with |r| <= ln 2 / 2, e^r by its Taylor polynomial of degree 7.
SH_INLINE float Exp(float x) {
  const float bounded = x > 88.3f ? 88.3f : (x < -87.3f ? -87.3f : x);
  const float shifted = bounded * 1.44269504088896341f + 12582912.0f;  // 1.5·2^23 rounds to integer
  const float n = shifted - 12582912.0f;
  const float r = (bounded - n * 0.693145751953125f) - n * 1.42860682030941723212e-6f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const uint32_t scale_bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &scale_bits, sizeof(scale));
  return x < -87.3f ? 0.0f : p * scale;
}

SH_INLINE float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }

}  // namespace stillhouse::vector_math
