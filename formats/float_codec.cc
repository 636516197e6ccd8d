#include "formats/float_codec.h"

#include <bit>
#include <cstring>

#include "common/status.h"
#include "common/tensor_view.h"

namespace stillhouse {
namespace {

template <typename T>
T LoadAt(absl::string_view bytes, size_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

float HalfToFloat(uint16_t bits) {
  // The exponent and fraction are moved into place and the bias is put right by a multiplication,
  // which normalises subnormals too; infinity and NaN are patched afterwards. No branch.
  const uint32_t magnitude = (bits & 0x7fffu) << 13;
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t special = (bits & 0x7c00u) == 0x7c00u ? 0x7f800000u | magnitude : 0u;
  const uint32_t finite = std::bit_cast<uint32_t>(scaled);
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  return std::bit_cast<float>((special != 0 ? special : finite) | sign);
}

uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 puts the last bit of a subnormal half at the last bit of the fp32
    // fraction, and the addition rounds to nearest even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

void DecodeF32(absl::string_view bytes, absl::Span<float> out) {
  SH_CHECK(bytes.size() == out.size() * 4);
  if (!out.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
}

void DecodeF64(absl::string_view bytes, absl::Span<float> out) {
  SH_CHECK(bytes.size() == out.size() * 8);
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(LoadAt<double>(bytes, i));
}

void DecodeF16(absl::string_view bytes, absl::Span<float> out) {
  SH_CHECK(bytes.size() == out.size() * 2);
  for (size_t i = 0; i < out.size(); ++i) out[i] = HalfToFloat(LoadAt<uint16_t>(bytes, i));
}

void DecodeBf16(absl::string_view bytes, absl::Span<float> out) {
  SH_CHECK(bytes.size() == out.size() * 2);
  for (size_t i = 0; i < out.size(); ++i) out[i] = Bf16ToFloat(LoadAt<uint16_t>(bytes, i));
}

}  // namespace stillhouse
