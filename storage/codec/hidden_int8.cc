// Hidden states in 8 bits, one scale per 64 channels: a scale for a whole row would follow its one
// outlier and flatten all others.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/status.h"
#include "common/tensor_view.h"
#include "storage/codec.h"
#include "storage/codec/payload.h"

namespace stillhouse {
namespace {

constexpr char kSection[] = "hidden states in 8 bits";
constexpr uint32_t kGroup = 64;
constexpr int kMost = 127;
const uint16_t kScaleMax = FloatToBf16(2 * kHiddenInt8Max / kMost);

uint32_t GroupsOf(uint32_t hidden_size) { return (hidden_size + kGroup - 1) / kGroup; }

// The least bfloat16 whose 127-fold is not below `magnitude`.
uint16_t ScaleFor(float magnitude) {
  uint16_t scale = FloatToBf16(magnitude / kMost);
  // At most one step off, and positive numbers of this format ascend with their bits.
  while (scale > 0 && Bf16ToFloat(scale - 1) * kMost >= magnitude) --scale;
  while (Bf16ToFloat(scale) * kMost < magnitude) ++scale;
  return scale;
}

// `count` values of one group. The full group's count is a constant to the compiler, which makes
// vector instructions of it.
inline __attribute__((always_inline)) void Expand(const int8_t* __restrict bytes, float scale,
                                                  uint32_t count, uint16_t* __restrict out) {
  for (uint32_t i = 0; i < count; ++i) {
    // Never a NaN: rounding is adding.
    const float value = static_cast<float>(bytes[i]) * scale;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    out[i] = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
  }
}

using ExpandGroup = void (*)(const int8_t*, float, uint16_t*);
void ExpandPortable(const int8_t* bytes, float scale, uint16_t* out) {
  Expand(bytes, scale, kGroup, out);
}
#if defined(__x86_64__)
__attribute__((target("avx2"))) void ExpandAvx2(const int8_t* bytes, float scale, uint16_t* out) {
  Expand(bytes, scale, kGroup, out);
}
#endif

ExpandGroup BestFor(Instructions instructions) {
#if defined(__x86_64__)
  if (instructions == Instructions::kBest && __builtin_cpu_supports("avx2")) return ExpandAvx2;
#endif
  return ExpandPortable;
}

}  // namespace

std::string EncodeHiddenInt8(const HiddenRows& rows, uint32_t begin, uint32_t end) {
  SH_CHECK(begin < end && end <= rows.rows(), "rows ", begin, " to ", end);
  const uint32_t width = rows.hidden_size;
  std::string scales, bytes;
  bytes.reserve(static_cast<size_t>(end - begin) * width);
  for (uint32_t row = begin; row < end; ++row) {
    const uint16_t* values = rows.values.data() + static_cast<size_t>(row) * width;
    for (uint32_t first = 0; first < width; first += kGroup) {
      const uint32_t last = std::min(first + kGroup, width);
      float magnitude = 0;
      for (uint32_t i = first; i < last; ++i) {
        const float value = std::abs(Bf16ToFloat(values[i]));
        SH_CHECK(value <= kHiddenInt8Max, "value ", value);
        magnitude = std::max(magnitude, value);
      }
      const uint16_t scale = ScaleFor(magnitude);
      scales.append(reinterpret_cast<const char*>(&scale), sizeof(scale));
      const float unit = scale == 0 ? 1 : Bf16ToFloat(scale);
      for (uint32_t i = first; i < last; ++i) {
        const auto step = std::lround(Bf16ToFloat(values[i]) / unit);
        bytes.push_back(static_cast<char>(std::clamp<long>(step, -kMost, kMost)));
      }
    }
  }
  return std::string(1, static_cast<char>(CodecId::kHiddenInt8)) + scales + bytes;
}

absl::Status DecodeHiddenInt8(absl::string_view payload, uint32_t row_count, HiddenRows* rows,
                              Instructions instructions) {
  SH_CHECK(rows->hidden_size > 0);
  SH_RETURN_IF_ERROR(TakeCodec(kSection, CodecId::kHiddenInt8, &payload));
  const uint32_t width = rows->hidden_size, groups = GroupsOf(width);
  const uint64_t row_bytes = uint64_t{groups} * sizeof(uint16_t) + width;
  if (payload.size() != row_count * row_bytes) {
    return MalformedPayload(
        kSection, absl::StrCat(payload.size(), " bytes for ", row_count, " rows of ", width));
  }
  const char* scales = payload.data();
  const char* bytes = scales + uint64_t{row_count} * groups * sizeof(uint16_t);
  const uint64_t values = uint64_t{row_count} * width;
  if (absl::string_view(bytes, values).find('\x80') != absl::string_view::npos) {
    return MalformedPayload(kSection, "a byte of -128");
  }
  const uint64_t all_groups = uint64_t{row_count} * groups;
  const auto scale_of = [scales](uint64_t group) {
    uint16_t scale;
    std::memcpy(&scale, scales + group * sizeof(scale), sizeof(scale));
    return scale;
  };
  for (uint64_t group = 0; group < all_groups; ++group) {
    if (scale_of(group) > kScaleMax) {
      return MalformedPayload(kSection, "a scale that is negative, too large or no number");
    }
  }
  const ExpandGroup expand = BestFor(instructions);
  const size_t before = rows->values.size();
  rows->values.resize(before + values);
  uint16_t* out = rows->values.data() + before;
  const auto* from = reinterpret_cast<const int8_t*>(bytes);
  for (uint64_t group = 0; group < all_groups; ++group) {
    const float scale = Bf16ToFloat(scale_of(group));
    const auto count =
        static_cast<uint32_t>(std::min<uint64_t>(kGroup, width - group % groups * kGroup));
    if (count == kGroup) {
      expand(from, scale, out);
    } else {
      Expand(from, scale, count, out);
    }
    from += count;
    out += count;
  }
  return absl::OkStatus();
}

}  // namespace stillhouse
