// The dequantisers of GgmlDecode. Block layouts are llama.cpp's (ggml-common.h): a scale d, for
// Q4_1 a minimum m, both half precision, then 32 quants.
#include <cstring>

#include "common/status.h"
#include "formats/float_codec.h"
#include "formats/gguf.h"

namespace stillhouse {
namespace {

constexpr size_t kBlock = 32;

float HalfAt(const char* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return HalfToFloat(bits);
}

// d, then 32 signed bytes.
void DecodeQ8_0(const char* block, float* out, size_t count) {
  for (size_t i = 0; i < count; i += kBlock, block += 34, out += kBlock) {
    const float d = HalfAt(block);
    const auto* quants = reinterpret_cast<const int8_t*>(block + 2);
    for (size_t j = 0; j < kBlock; ++j) out[j] = d * static_cast<float>(quants[j]);
  }
}

// d, m, then 16 bytes: the low halves are values 0 to 15, the high ones 16 to 31.
void DecodeQ4_1(const char* block, float* out, size_t count) {
  for (size_t i = 0; i < count; i += kBlock, block += 20, out += kBlock) {
    const float d = HalfAt(block);
    const float m = HalfAt(block + 2);
    const auto* quants = reinterpret_cast<const uint8_t*>(block + 4);
    for (size_t j = 0; j < kBlock / 2; ++j) out[j] = d * static_cast<float>(quants[j] & 15) + m;
    for (size_t j = 0; j < kBlock / 2; ++j) {
      out[j + kBlock / 2] = d * static_cast<float>(quants[j] >> 4) + m;
    }
  }
}

}  // namespace

void GgmlDecode(const GgmlType& type, absl::string_view bytes, absl::Span<float> out) {
  SH_CHECK(out.size() % type.block == 0 && bytes.size() == out.size() / type.block * type.bytes);
  if (type.name == "F32") return DecodeF32(bytes, out);
  if (type.name == "F16") return DecodeF16(bytes, out);
  if (type.name == "Q8_0") return DecodeQ8_0(bytes.data(), out.data(), out.size());
  SH_CHECK(type.name == "Q4_1", type.name);
  DecodeQ4_1(bytes.data(), out.data(), out.size());
}

}  // namespace stillhouse
