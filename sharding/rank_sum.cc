#include "sharding/rank_sum.h"

#include <algorithm>

#include "common/status.h"

namespace stillhouse {
namespace {

constexpr size_t kBlock = 1024;  // elements: the running sums stay in the first-level cache

void Add(const float* from, size_t count, float* sum) {
  for (size_t i = 0; i < count; ++i) sum[i] += from[i];
}
void Add(const uint16_t* from, size_t count, float* sum) {
  for (size_t i = 0; i < count; ++i) sum[i] += Bf16ToFloat(from[i]);
}
void Load(const float* from, size_t count, float* sum) {
  std::memcpy(sum, from, count * sizeof(float));
}
void Load(const uint16_t* from, size_t count, float* sum) {
  for (size_t i = 0; i < count; ++i) sum[i] = Bf16ToFloat(from[i]);
}

template <typename T>
void Sum(absl::Span<const void* const> parts, size_t count, float* out) {
  float sum[kBlock];
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t width = std::min(kBlock, count - begin);
    Load(static_cast<const T*>(parts[0]) + begin, width, sum);
    for (size_t part = 1; part < parts.size(); ++part) {
      Add(static_cast<const T*>(parts[part]) + begin, width, sum);
    }
    std::memcpy(out + begin, sum, width * sizeof(float));
  }
}

}  // namespace

void SumInRankOrder(absl::Span<const void* const> parts, DType dtype, size_t count, float* out) {
  SH_CHECK(!parts.empty());
  if (dtype == DType::kF32) return Sum<float>(parts, count, out);
  SH_CHECK(dtype == DType::kBF16);
  Sum<uint16_t>(parts, count, out);
}

}  // namespace stillhouse
