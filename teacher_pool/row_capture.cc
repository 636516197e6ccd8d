#include "teacher_pool/row_capture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/random.h"
#include "common/status.h"
#include "model/vector_math.h"

namespace stillhouse {
namespace {

using vector_math::Exp;
using vector_math::Load;

constexpr int64_t kBlock = RowCapture::kBlock;
constexpr int64_t kDoubles = 8;  // fp64 partial sums of a block
// Further below the maximum than Exp reaches: an id there has no mass.
constexpr float kNoMass = -1e4f;
// Keeps 0 · shifted a number where two finite logits lie further apart than floats reach.
constexpr float kShiftMin = -1e30f;

template <typename T>
SH_INLINE uint32_t IsNotFinite(T value) {
  const float wide = Load(value);
  uint32_t bits;
  std::memcpy(&bits, &wide, sizeof(bits));
  return (bits & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
}

// The largest logit of a row; false if one is not finite.
template <typename T>
SH_INLINE bool RowMaximum(const T* logits, int64_t count, float* maximum) {
  constexpr int64_t kLanes = vector_math::kLanes;
  float largest[kLanes];
  uint32_t bad[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) {
    largest[j] = -std::numeric_limits<float>::max();
    bad[j] = 0;
  }
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const float value = Load(logits[i + j]);
      largest[j] = value > largest[j] ? value : largest[j];
      bad[j] |= IsNotFinite(logits[i + j]);
    }
  }
  for (; i < count; ++i) {
    const float value = Load(logits[i]);
    largest[0] = value > largest[0] ? value : largest[0];
    bad[0] |= IsNotFinite(logits[i]);
  }
  for (int64_t j = 1; j < kLanes; ++j) {
    largest[0] = std::max(largest[0], largest[j]);
    bad[0] |= bad[j];
  }
  *maximum = largest[0];
  return bad[0] == 0;
}

template <typename T>
SH_INLINE void ShiftRow(const T* logits, int64_t count, float maximum, float* shifted) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = Load(logits[i]) - maximum;
    shifted[i] = value > kShiftMin ? value : kShiftMin;
  }
}

// mass = e^shifted, block sums, and Σ mass·shifted over all blocks.
SH_INLINE double MassOfBlocks(const float* shifted, int64_t blocks, float* mass,
                              double* block_mass) {
  double weighted[kDoubles] = {};
  for (int64_t b = 0; b < blocks; ++b) {
    const float* x = shifted + b * kBlock;
    float* m = mass + b * kBlock;
    for (int64_t i = 0; i < kBlock; ++i) m[i] = Exp(x[i]);
    double sum[kDoubles] = {};
    for (int64_t i = 0; i < kBlock; i += kDoubles) {
      for (int64_t j = 0; j < kDoubles; ++j) {
        sum[j] += static_cast<double>(m[i + j]);
        weighted[j] += static_cast<double>(m[i + j] * x[i + j]);
      }
    }
    block_mass[b] =
        ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
  }
  double total = 0;
  for (int64_t j = 0; j < kDoubles; ++j) total += weighted[j];
  return total;
}

SH_DISPATCHED bool MaximumOf(const float* logits, int64_t count, float* maximum) {
  return RowMaximum(logits, count, maximum);
}
SH_DISPATCHED bool MaximumOf(const uint16_t* logits, int64_t count, float* maximum) {
  return RowMaximum(logits, count, maximum);
}
SH_DISPATCHED void Shift(const float* logits, int64_t count, float maximum, float* shifted) {
  ShiftRow(logits, count, maximum, shifted);
}
SH_DISPATCHED void Shift(const uint16_t* logits, int64_t count, float maximum, float* shifted) {
  ShiftRow(logits, count, maximum, shifted);
}
SH_DISPATCHED double Masses(const float* shifted, int64_t blocks, float* mass, double* block_mass) {
  return MassOfBlocks(shifted, blocks, mass, block_mass);
}

uint64_t KeyWord(const Digest& digest, size_t word) {
  uint64_t value;
  std::memcpy(&value, digest.bytes.data() + word * sizeof(value), sizeof(value));
  return value;
}

// Uniform number `draw` of a position: counter (position, draw) and half a key from the document.
double DrawUniform(uint64_t key, uint64_t salt, uint32_t position, uint32_t draw) {
  const std::array<uint32_t, 4> words =
      Philox4x32({position, draw, static_cast<uint32_t>(salt), static_cast<uint32_t>(salt >> 32)},
                 {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)});
  return UniformFromBits(words[0], words[1]);
}

}  // namespace

RowCapture::RowCapture(int64_t vocabulary)
    : vocabulary_(vocabulary),
      blocks_((vocabulary + kBlock - 1) / kBlock),
      shifted_(static_cast<size_t>(blocks_ * kBlock), kNoMass),
      mass_(static_cast<size_t>(blocks_ * kBlock)),
      block_mass_(static_cast<size_t>(blocks_)),
      cumulative_(static_cast<size_t>(blocks_) + 1) {
  SH_CHECK(vocabulary > 0);
}

bool RowCapture::Read(const float* logits) { return ReadRow(logits); }
bool RowCapture::Read(const uint16_t* logits) { return ReadRow(logits); }

template <typename T>
bool RowCapture::ReadRow(const T* logits) {
  if (!MaximumOf(logits, vocabulary_, &max_)) return false;
  Shift(logits, vocabulary_, max_, shifted_.data());
  weighted_ = Masses(shifted_.data(), blocks_, mass_.data(), block_mass_.data());
  cumulative_[0] = 0;
  for (size_t b = 0; b < block_mass_.size(); ++b) {
    cumulative_[b + 1] = cumulative_[b] + block_mass_[b];
  }
  top1_ = static_cast<int32_t>(std::find(shifted_.begin(), shifted_.begin() + vocabulary_, 0.0f) -
                               shifted_.begin());
  return true;
}

RowSummary RowCapture::Summary() const {
  const double log_total = std::log(cumulative_.back());
  RowSummary summary;
  summary.entropy = static_cast<float>(log_total - weighted_ / cumulative_.back());
  summary.logsumexp = static_cast<float>(static_cast<double>(max_) + log_total);
  summary.top1_id = top1_;
  summary.top1_logprob = static_cast<float>(-log_total);
  return summary;
}

float RowCapture::LogProbability(int32_t id) const {
  return static_cast<float>(static_cast<double>(shifted_[static_cast<size_t>(id)]) -
                            std::log(cumulative_.back()));
}

absl::Span<const float> RowCapture::LogProbabilities() {
  logprobs_.resize(static_cast<size_t>(vocabulary_));
  Shift(shifted_.data(), vocabulary_, static_cast<float>(std::log(cumulative_.back())),
        logprobs_.data());
  return logprobs_;
}

// The id at which the running sum from the block's start first exceeds `target`; the block's last
// id with mass where rounding leaves the sum just short.
int32_t RowCapture::IdInBlock(int64_t block, double target) const {
  double sum = cumulative_[static_cast<size_t>(block)];
  int64_t last = block * kBlock;
  for (int64_t id = block * kBlock; id < std::min(vocabulary_, (block + 1) * kBlock); ++id) {
    const float mass = mass_[static_cast<size_t>(id)];
    if (mass <= 0) continue;
    last = id;
    sum += static_cast<double>(mass);
    if (sum > target) break;
  }
  return static_cast<int32_t>(last);
}

uint32_t RowCapture::Draw(const Digest& document, uint32_t position, uint32_t draws,
                          std::vector<int32_t>* ids, std::vector<uint16_t>* counts) {
  const uint64_t key = KeyWord(document, 0), salt = KeyWord(document, 1);
  uniforms_.resize(draws);
  for (uint32_t d = 0; d < draws; ++d) uniforms_[d] = DrawUniform(key, salt, position, d);
  std::sort(uniforms_.begin(), uniforms_.end());
  const double total = cumulative_.back();
  uint32_t unique = 0;
  int64_t block = 0;
  for (const double uniform : uniforms_) {
    const double target = uniform * total;
    while (block + 1 < blocks_ && cumulative_[static_cast<size_t>(block) + 1] <= target) ++block;
    // Only rounding of the product can leave the last block without mass.
    while (block_mass_[static_cast<size_t>(block)] <= 0) --block;
    const int32_t id = IdInBlock(block, target);
    if (unique > 0 && ids->back() == id) {
      ++counts->back();
    } else {
      ids->push_back(id);
      counts->push_back(1);
      ++unique;
    }
  }
  return unique;
}

}  // namespace stillhouse
