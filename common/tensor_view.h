// TensorView: a flat run of numbers somewhere in memory. It owns nothing and knows no shape, so
// that sharding and storage need no tensor library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "absl/strings/string_view.h"

namespace stillhouse {

enum class DType : uint8_t { kF32 = 0, kBF16 = 1, kF16 = 2, kI64 = 3, kI32 = 4, kU8 = 5 };
enum class Device : uint8_t { kCpu = 0, kCuda = 1 };

constexpr size_t DTypeSize(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kI64:
      return 8;
    case DType::kU8:
      return 1;
  }
  return 0;
}

// "F32", "BF16", …: the names safetensors uses.
absl::string_view DTypeName(DType dtype);

struct TensorView {
  void* data = nullptr;  // borrowed; must outlive every use of the view
  size_t count = 0;      // elements
  DType dtype = DType::kF32;
  Device device = Device::kCpu;
  void* stream = nullptr;  // the CUDA stream that orders accesses; null on the CPU

  size_t size_bytes() const { return count * DTypeSize(dtype); }
};

// bfloat16 as bits. Rounding is to nearest even; NaN stays NaN.
inline float Bf16ToFloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}
inline uint16_t FloatToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
// IEEE half precision from its bits.
float F16ToFloat(uint16_t bits);

}  // namespace stillhouse
