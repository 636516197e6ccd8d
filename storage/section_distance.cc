#include "storage/section_distance.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "common/status.h"
#include "common/tensor_view.h"
#include "storage/codec/top_tokens.h"

namespace stillhouse {
namespace {

// By id; what no id of a row has is under -1.
using Difference = std::map<int32_t, double>;

double HalfOfAll(const Difference& difference) {
  double sum = 0;
  for (const auto& [id, value] : difference) sum += std::abs(value);
  return sum / 2;
}

void Add(const TopTokenRows& rows, size_t row, double sign, Difference* difference) {
  const std::vector<float> values = LogProbabilities(rows, row);
  const uint32_t first = rows.offsets[row], last = rows.offsets[row + 1];
  for (uint32_t i = first; i < last; ++i) {
    (*difference)[rows.ids[i]] += sign * std::exp(static_cast<double>(values[i - first]));
  }
  (*difference)[-1] += sign * std::exp(static_cast<double>(values.back()));
}

double RowDistance(const TopTokenRows& a, const TopTokenRows& b, size_t row) {
  Difference difference;
  Add(a, row, 1, &difference);
  Add(b, row, -1, &difference);
  return HalfOfAll(difference);
}

// The same uniforms inverted both cumulative distributions: where these differ by x, a share x of
// the draws at the most came to lie on the other side of an id, however many ids they hit instead.
double RowDistance(const SampledRows& a, const SampledRows& b, size_t row) {
  std::map<int32_t, double> steps;
  const auto add = [row, &steps](const SampledRows& rows, double sign) {
    for (uint32_t i = rows.offsets[row]; i < rows.offsets[row + 1]; ++i) {
      steps[rows.ids[i]] += sign * rows.counts[i] / rows.draws;
    }
  };
  add(a, 1);
  add(b, -1);
  double sum = 0, largest = 0;
  for (const auto& [id, step] : steps) {
    sum += step;
    largest = std::max(largest, std::abs(sum));
  }
  return largest;
}

double RowDistance(const StatsRows& a, const StatsRows& b, size_t row) {
  const auto of_probability = [row](const std::vector<float>& x, const std::vector<float>& y) {
    return std::abs(std::exp(static_cast<double>(x[row])) - std::exp(static_cast<double>(y[row])));
  };
  const auto relative = [row](const std::vector<float>& x, const std::vector<float>& y) {
    const double p = x[row], q = y[row];
    return std::abs(p - q) / (1 + std::max(std::abs(p), std::abs(q)));
  };
  return std::max({of_probability(a.top1_logprob, b.top1_logprob),
                   of_probability(a.next_logprob, b.next_logprob), relative(a.entropy, b.entropy),
                   relative(a.logsumexp, b.logsumexp)});
}

double RowDistance(const HiddenRows& a, const HiddenRows& b, size_t row) {
  double of_a = 0, of_b = 0, apart = 0;
  for (size_t i = row * a.hidden_size; i < (row + 1) * a.hidden_size; ++i) {
    const double x = Bf16ToFloat(a.values[i]), y = Bf16ToFloat(b.values[i]);
    of_a += x * x;
    of_b += y * y;
    apart += (x - y) * (x - y);
  }
  const double larger = std::max(of_a, of_b);
  return larger == 0 ? 0 : std::sqrt(apart / larger);
}

template <typename Rows>
SectionDistance Distance(const Rows& a, const Rows& b) {
  SectionDistance distance;
  for (size_t row = 0; row < a.rows(); ++row) {
    const double apart = RowDistance(a, b, row);
    ++distance.rows;
    distance.equal += apart == 0;
    distance.sum += apart;
    if (apart <= distance.worst) continue;
    distance.worst = apart;
    distance.worst_row = row;
  }
  return distance;
}

}  // namespace

absl::StatusOr<SectionDistance> DistanceOf(const SectionRows& a, const SectionRows& b) {
  SH_CHECK(a.index() == b.index(), "rows of two kinds");
  if (RowCount(a) != RowCount(b)) {
    return absl::DataLossError(absl::StrCat(RowCount(a), " rows, not ", RowCount(b)));
  }
  return std::visit(
      [&](const auto& rows) { return Distance(rows, std::get<std::decay_t<decltype(rows)>>(b)); },
      a);
}

SectionTolerance ToleranceOf(SectionKind kind) {
  switch (kind) {
    case SectionKind::kLogitsSampled:
      return {0.08, 0.4};
    case SectionKind::kStats:
    case SectionKind::kLogitsTopK:
    case SectionKind::kLogitsTopP:
      return {0.05, 0.4};
    case SectionKind::kHiddenLast:
    case SectionKind::kHiddenLayer:
      return {0.05, 0.4};
  }
  SH_CHECK(false, "section kind ", static_cast<int>(kind));
}

}  // namespace stillhouse
