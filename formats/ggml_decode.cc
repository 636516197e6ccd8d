// The dequantisers of GgmlDecode. Block layouts are llama.cpp's (ggml-common.h): half-precision
// scales d and, where a block has one, minimum m, then quants of 4 to 8 bits.
//
// Plain loops of fixed length, which the compiler vectorises. Products and sums are rounded one by
// one, in llama.cpp's order, so that values are the same on every machine (CMake forbids
// contraction in this file).
#include <cstring>

#include "common/status.h"
#include "formats/float_codec.h"
#include "formats/gguf.h"

namespace stillhouse {
namespace {

constexpr size_t kBlock = 32;
constexpr size_t kSuperBlock = 256;  // of the K types: 8 or 16 groups with scales of their own

float HalfAt(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return HalfToFloat(bits);
}

// d, then 32 signed bytes.
void DecodeQ8_0(const uint8_t* block, float* out) {
  const float d = HalfAt(block);
  for (size_t j = 0; j < kBlock; ++j) out[j] = d * static_cast<float>(int8_t(block[2 + j]));
}

// d, then 16 bytes: the low halves are values 0 to 15, the high ones 16 to 31; 8 means zero.
void DecodeQ4_0(const uint8_t* block, float* out) {
  const float d = HalfAt(block);
  const uint8_t* quants = block + 2;
  for (size_t j = 0; j < 16; ++j) out[j] = d * static_cast<float>((quants[j] & 15) - 8);
  for (size_t j = 0; j < 16; ++j) out[j + 16] = d * static_cast<float>((quants[j] >> 4) - 8);
}

// d, m, then the same 16 bytes.
void DecodeQ4_1(const uint8_t* block, float* out) {
  const float d = HalfAt(block);
  const float m = HalfAt(block + 2);
  const uint8_t* quants = block + 4;
  for (size_t j = 0; j < 16; ++j) out[j] = d * static_cast<float>(quants[j] & 15) + m;
  for (size_t j = 0; j < 16; ++j) out[j + 16] = d * static_cast<float>(quants[j] >> 4) + m;
}

// The quants of Q5_0 and Q5_1: `high` has the fifth bits, bit j that of value j.
void FiveBits(const uint8_t* high, const uint8_t* low, int32_t* quants) {
  uint32_t bits;
  std::memcpy(&bits, high, sizeof(bits));
  for (uint32_t j = 0; j < 16; ++j) quants[j] = (low[j] & 15) | (bits >> j & 1) << 4;
  for (uint32_t j = 0; j < 16; ++j) quants[j + 16] = (low[j] >> 4) | (bits >> (j + 16) & 1) << 4;
}

// d, 4 bytes of fifth bits, 16 bytes of the lower four; 16 means zero.
void DecodeQ5_0(const uint8_t* block, float* out) {
  const float d = HalfAt(block);
  int32_t quants[kBlock];
  FiveBits(block + 2, block + 6, quants);
  for (size_t j = 0; j < kBlock; ++j) out[j] = d * static_cast<float>(quants[j] - 16);
}

// d, m, then the same.
void DecodeQ5_1(const uint8_t* block, float* out) {
  const float d = HalfAt(block);
  const float m = HalfAt(block + 2);
  int32_t quants[kBlock];
  FiveBits(block + 4, block + 8, quants);
  for (size_t j = 0; j < kBlock; ++j) out[j] = d * static_cast<float>(quants[j]) + m;
}

// The 8 scales and 8 minima of Q4_K and Q5_K, 6 bits each, in 12 bytes: bytes 0 to 3 hold scales 0
// to 3, bytes 4 to 7 minima 0 to 3; bytes 8 to 11 the lower four bits of the others, whose upper
// two stand above those of the first.
struct GroupScales {
  uint8_t scale[8];
  uint8_t minimum[8];
};
GroupScales UnpackScales(const uint8_t* packed) {
  GroupScales all;
  for (size_t j = 0; j < 4; ++j) {
    all.scale[j] = packed[j] & 63;
    all.minimum[j] = packed[j + 4] & 63;
    all.scale[j + 4] = static_cast<uint8_t>((packed[j + 8] & 15) | packed[j] >> 6 << 4);
    all.minimum[j + 4] = static_cast<uint8_t>(packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4);
  }
  return all;
}

// d, the scale of the minima, the group scales, then 4 times 32 bytes: the low halves are one group
// of 32 values, the high ones the next.
void DecodeQ4_K(const uint8_t* block, float* out) {
  const float d = HalfAt(block);
  const float d_minimum = HalfAt(block + 2);
  const GroupScales scales = UnpackScales(block + 4);
  const uint8_t* quants = block + 16;
  for (size_t group = 0; group < 8; group += 2, quants += kBlock, out += 2 * kBlock) {
    const float low = d * scales.scale[group], low_m = d_minimum * scales.minimum[group];
    const float high = d * scales.scale[group + 1], high_m = d_minimum * scales.minimum[group + 1];
    for (size_t j = 0; j < kBlock; ++j) out[j] = low * static_cast<float>(quants[j] & 15) - low_m;
    for (size_t j = 0; j < kBlock; ++j) {
      out[j + kBlock] = high * static_cast<float>(quants[j] >> 4) - high_m;
    }
  }
}

// As Q4_K, with 32 bytes of fifth bits before the quants: bit g of byte j is that of value j of
// group g.
void DecodeQ5_K(const uint8_t* block, float* out) {
  const float d = HalfAt(block);
  const float d_minimum = HalfAt(block + 2);
  const GroupScales scales = UnpackScales(block + 4);
  const uint8_t* fifth = block + 16;
  const uint8_t* quants = block + 48;
  for (size_t group = 0; group < 8; group += 2, quants += kBlock, out += 2 * kBlock) {
    const float low = d * scales.scale[group], low_m = d_minimum * scales.minimum[group];
    const float high = d * scales.scale[group + 1], high_m = d_minimum * scales.minimum[group + 1];
    for (size_t j = 0; j < kBlock; ++j) {
      const int quant = (quants[j] & 15) | (fifth[j] >> group & 1) << 4;
      out[j] = low * static_cast<float>(quant) - low_m;
    }
    for (size_t j = 0; j < kBlock; ++j) {
      const int quant = (quants[j] >> 4) | (fifth[j] >> (group + 1) & 1) << 4;
      out[j + kBlock] = high * static_cast<float>(quant) - high_m;
    }
  }
}

// 128 bytes of the lower four bits, 64 of the upper two, 16 signed scales of groups of 16 values,
// d; 32 means zero. Each half of the block has four runs of 32 values, whose lower bits are the low
// and then the high halves of two runs of bytes, and whose upper bits share bytes, two bits each.
void DecodeQ6_K(const uint8_t* block, float* out) {
  const uint8_t* low = block;
  const uint8_t* high = block + 128;
  const uint8_t* scales = block + 192;
  const float d = HalfAt(block + 208);
  for (size_t half = 0; half < 2; ++half, low += 64, high += 32) {
    for (size_t run = 0; run < 4; ++run) {
      const uint8_t* bits = low + run % 2 * kBlock;
      const size_t low_shift = run / 2 * 4, high_shift = run * 2;
      for (size_t group = 0; group < 2; ++group, scales += 1, out += 16) {
        const float scale = d * static_cast<float>(int8_t(*scales));
        const size_t at = group * 16;
        for (size_t j = 0; j < 16; ++j) {
          const int quant = (bits[at + j] >> low_shift & 15) | (high[at + j] >> high_shift & 3)
                                                                   << 4;
          out[j] = scale * static_cast<float>(quant - 32);
        }
      }
    }
  }
}

struct Decoder {
  absl::string_view type;
  void (*decode)(const uint8_t* block, float* out);  // one block
};
constexpr Decoder kDecoders[] = {
    {"Q8_0", DecodeQ8_0}, {"Q4_0", DecodeQ4_0}, {"Q4_1", DecodeQ4_1}, {"Q5_0", DecodeQ5_0},
    {"Q5_1", DecodeQ5_1}, {"Q4_K", DecodeQ4_K}, {"Q5_K", DecodeQ5_K}, {"Q6_K", DecodeQ6_K},
};

}  // namespace

void GgmlDecode(const GgmlType& type, absl::string_view bytes, absl::Span<float> out) {
  SH_CHECK(out.size() % type.block == 0 && bytes.size() == out.size() / type.block * type.bytes);
  if (type.name == "F32") return DecodeF32(bytes, out);
  if (type.name == "F16") return DecodeF16(bytes, out);
  if (type.name == "BF16") return DecodeBf16(bytes, out);
  for (const Decoder& known : kDecoders) {
    if (known.type != type.name) continue;
    SH_CHECK(type.block == kBlock || type.block == kSuperBlock);
    const auto* block = reinterpret_cast<const uint8_t*>(bytes.data());
    for (size_t at = 0; at < out.size(); at += type.block, block += type.bytes) {
      known.decode(block, out.data() + at);
    }
    return;
  }
  SH_CHECK(false, "no decoder of ", type.name);
}

}  // namespace stillhouse
