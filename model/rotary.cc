#include "model/rotary.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <numeric>

#include "ATen/ops/arange.h"
#include "ATen/ops/cat.h"
#include "ATen/ops/clamp.h"
#include "ATen/ops/empty.h"
#include "ATen/ops/outer.h"
#include "ATen/ops/pow.h"
#include "ATen/ops/rsub.h"
#include "ATen/ops/scalar_tensor.h"
#include "ATen/ops/where.h"

namespace stillhouse {
namespace {

using Kind = RopeScaling::Kind;

at::TensorOptions Fp32() { return at::TensorOptions().dtype(at::kFloat); }

// 0, 2/size, 4/size, …: [size/2]
at::Tensor Exponents(int64_t size) {
  return at::arange(0, size, 2, Fp32()).div(static_cast<double>(size));
}

// The base grows so that the slowest frequency turns as far over `length` as it did before.
at::Tensor DynamicFrequencies(const ModelConfig& config, int64_t length) {
  const auto size = static_cast<double>(config.head_dim);
  const double factor = config.rope.factor;
  const at::Tensor stretch = at::scalar_tensor(static_cast<double>(length), Fp32())
                                 .mul(factor)
                                 .div(static_cast<double>(config.max_positions))
                                 .sub(factor - 1);
  const at::Tensor base = stretch.pow(size / (size - 2)).mul(config.rope_theta);
  return at::pow(base, Exponents(config.head_dim)).reciprocal();
}

// The dimension whose frequency turns `turns` times over the first training's positions.
double DimensionOf(const ModelConfig& config, double turns) {
  const auto positions = static_cast<double>(config.rope.original_positions);
  return static_cast<double>(config.head_dim) *
         std::log(positions / (turns * 2 * std::numbers::pi)) / (2 * std::log(config.rope_theta));
}

// Fast frequencies stay, slow ones are divided by the factor, a ramp lies between.
at::Tensor YarnFrequencies(const ModelConfig& config) {
  const RopeScaling& rope = config.rope;
  double low = DimensionOf(config, rope.beta_fast), high = DimensionOf(config, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.head_dim - 1));
  if (low == high) high += 0.001;
  const at::Tensor ramp =
      at::clamp(at::arange(config.head_dim / 2, Fp32()).sub(low).div(high - low), 0, 1);
  const at::Tensor kept = at::rsub(ramp, 1);
  const at::Tensor wavelength = at::pow(config.rope_theta, Exponents(config.head_dim));
  const at::Tensor slowed = wavelength.mul(rope.factor).reciprocal();
  return slowed.mul(at::rsub(kept, 1)).add(wavelength.reciprocal().mul(kept));
}

at::Tensor Llama3Frequencies(const ModelConfig& config, const at::Tensor& frequency) {
  const RopeScaling& rope = config.rope;
  const auto original = static_cast<double>(rope.original_positions);
  const double longest = original / rope.low_freq_factor;
  const double shortest = original / rope.high_freq_factor;
  const at::Tensor wavelength = frequency.reciprocal().mul(2 * std::numbers::pi);
  const at::Tensor scaled =
      at::where(wavelength.gt(longest), frequency.div(rope.factor), frequency);
  const at::Tensor smooth = wavelength.reciprocal()
                                .mul(original)
                                .sub(rope.low_freq_factor)
                                .div(rope.high_freq_factor - rope.low_freq_factor);
  const at::Tensor between =
      at::rsub(smooth, 1).mul(scaled).div(rope.factor).add(smooth.mul(scaled));
  const at::Tensor outside = wavelength.lt(shortest).logical_or(wavelength.gt(longest));
  return at::where(outside, scaled, between);
}

// Turns per position, [size/2].
at::Tensor Frequencies(const ModelConfig& config, int64_t length) {
  if (AnglesDependOnLength(config, length)) return DynamicFrequencies(config, length);
  if (config.rope.kind == Kind::kYarn) return YarnFrequencies(config);
  const at::Tensor frequency = at::pow(config.rope_theta, Exponents(config.head_dim)).reciprocal();
  if (config.rope.kind == Kind::kLinear) return frequency.div(config.rope.factor);
  if (config.rope.kind == Kind::kLlama3) return Llama3Frequencies(config, frequency);
  return frequency;
}

}  // namespace

bool AnglesDependOnLength(const ModelConfig& config, int64_t tokens) {
  return config.rope.kind == Kind::kDynamic && tokens > config.max_positions;
}

ops::RotaryTable MakeRotaryTable(const ModelConfig& config, int64_t positions, int64_t length,
                                 at::ScalarType dtype) {
  const at::Tensor angle = at::outer(at::arange(positions, Fp32()), Frequencies(config, length));
  const auto rounded = [&](const at::Tensor& x) {
    return x.mul(config.rope.attention_factor).to(dtype).to(at::kFloat).contiguous();
  };
  return {rounded(angle.cos()), rounded(angle.sin())};
}

RotaryAngles AnglesOf(const ModelConfig& config, const std::vector<int64_t>& lengths,
                      const std::vector<int64_t>& whole_lengths, at::ScalarType dtype) {
  // One table for all whose angles do not depend on their length, under 0; one for each other
  // length.
  struct Part {
    int64_t positions = 0, first_row = 0;
  };
  std::map<int64_t, Part> parts;
  const auto part_of = [&](size_t document) -> Part& {
    const int64_t length = whole_lengths[document];
    return parts[AnglesDependOnLength(config, length) ? length : 0];
  };
  for (size_t i = 0; i < lengths.size(); ++i) {
    Part& part = part_of(i);
    part.positions = std::max(part.positions, lengths[i]);
  }
  std::vector<at::Tensor> cos, sin;
  int64_t rows = 0;
  for (auto& [length, part] : parts) {
    ops::RotaryTable table = MakeRotaryTable(config, part.positions, length, dtype);
    cos.push_back(std::move(table.cos));
    sin.push_back(std::move(table.sin));
    part.first_row = rows;
    rows += part.positions;
  }
  RotaryAngles angles;
  angles.table = {cos.size() == 1 ? cos[0] : at::cat(cos), sin.size() == 1 ? sin[0] : at::cat(sin)};
  const int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  angles.row = at::empty({tokens}, at::TensorOptions().dtype(at::kInt));
  int32_t* next = angles.row.mutable_data_ptr<int32_t>();
  for (size_t i = 0; i < lengths.size(); ++i) {
    std::iota(next, next + lengths[i], static_cast<int32_t>(part_of(i).first_row));
    next += lengths[i];
  }
  return angles;
}

}  // namespace stillhouse
