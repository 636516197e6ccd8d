#include "storage/codec/range_coder.h"

#include <utility>

#include "common/status.h"

namespace stillhouse {

SymbolModel::Weights SymbolModel::WeightsOf(absl::string_view digits) {
  SH_CHECK(digits.size() == kSymbols, "prior '", std::string(digits), "'");
  Weights weights;
  for (int i = 0; i < kSymbols; ++i) {
    const char digit = digits[i];
    const int d = digit <= '9' ? digit - '0' : digit - 'a' + 10;
    // 181 / 128 is the root of 2.
    weights[i] = static_cast<uint16_t>(((d % 2 == 0 ? 128u : 181u) << (d / 2)) >> 7);
  }
  return weights;
}

void SymbolModel::Rebuild() {
  uint32_t sum = 0;
  for (const uint16_t weight : weights_) sum += weight;
  if (sum > kWeightsMax) {
    sum = 0;
    for (uint16_t& weight : weights_) sum += weight = static_cast<uint16_t>((weight + 1) / 2);
  }
  // Every symbol keeps at least one part of 2^15.
  const uint64_t scale = (static_cast<uint64_t>((1u << kProbabilityBits) - kSymbols) << 32) / sum;
  uint32_t below = 0;
  for (uint32_t i = 0; i < kSymbols; ++i) {
    below_[i] = static_cast<int16_t>(((below * scale) >> 32) + i);
    below += weights_[i];
  }
  below_[kSymbols] = static_cast<int16_t>(1u << kProbabilityBits);
  until_rebuild_ = interval_;
}

std::string RangeEncoder::Finish() {
  // The range is at least 2^24 wide: a number in it ends in 24 zeros.
  constexpr uint64_t kUnit = 1u << 24;
  const uint64_t number = (low_ + kUnit - 1) & ~(kUnit - 1);
  if (number >> 32 != 0) Carry();
  out_.push_back(static_cast<char>(number >> 24));
  return std::move(out_);
}

}  // namespace stillhouse
