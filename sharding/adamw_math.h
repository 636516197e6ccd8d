// The arithmetic of AdamW on one element, shared word for word by the CPU loop and the CUDA kernel.
//
// Loshchilov and Hutter, "Decoupled weight decay regularization" (ICLR 2019), with the bias
// corrections of Kingma and Ba. Both users are compiled without contraction into fused
// multiply-adds, so that every instruction set rounds alike.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SH_HOST_DEVICE __host__ __device__
#else
#define SH_HOST_DEVICE
#endif

namespace stillhouse {

// Constants of one step, made once per step in double (AdamWScalarsFor).
struct AdamWScalars {
  float gradient_scale = 1;  // of clipping
  float beta1 = 0, one_minus_beta1 = 1;
  float beta2 = 0, one_minus_beta2 = 1;
  float decay = 1;            // 1 - lr · weight decay
  float step_size = 0;        // lr / (1 - beta1^t)
  float root_correction = 1;  // 1 / sqrt(1 - beta2^t)
  float epsilon = 0;
};

SH_HOST_DEVICE inline void AdamWElement(float gradient, const AdamWScalars& s, float* master,
                                        float* first, float* second) {
  const float g = gradient * s.gradient_scale;
  const float m = s.beta1 * *first + s.one_minus_beta1 * g;
  const float v = s.beta2 * *second + s.one_minus_beta2 * g * g;
  const float denominator = sqrtf(v) * s.root_correction + s.epsilon;
  *first = m;
  *second = v;
  *master = *master * s.decay - s.step_size * (m / denominator);
}

// Round to nearest even; NaN stays NaN. The same function as FloatToBf16, callable on a device.
SH_HOST_DEVICE inline uint16_t RoundToBf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

}  // namespace stillhouse
