// The most likely ids of a row with their log-probabilities: top-k, or top-p with its own number of
// ids in every row.
//
// Pure functions, integers only: every machine quantises and decodes to the same bits. A
// log-probability is kept as one of 256 levels whatever k is, and what the ids leave over is kept
// as a level of its own, so that fewer ids can be served from more.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "storage/codec.h"

namespace stillhouse {

// Level l stands for the log-probability -LevelNats(l): steps of 1/32 nat to 4, of 1/16 to 8, of
// 1/8 to 12, of 1/4 to 19.75. A quantised value is off by at most half a step, anything below
// -19.75 counts as that.
double LevelNats(uint8_t level);
// The nearest level, the greater of two equally near. REQUIRES: logprob is no NaN.
uint8_t LevelOf(double logprob);

// The order in which ids of a row are more likely: by level, of equal levels the lower id first. So
// the first 32 are the same, whether they are taken from a whole vocabulary or from its first 64.
struct TopRule {
  uint32_t k = 0;  // the most ids of a row
  // logits/topp: no id more once those before it together have this probability. Not 1 where there
  // is no such end: a sum may round to that.
  double p = std::numeric_limits<double>::infinity();
};
// Appends a row of those that the rule takes, of a whole vocabulary. REQUIRES: k > 0, `logprobs`
// are of ids 0, 1, … and no NaN, their exponentials sum to 1.
void AppendTopRow(absl::Span<const float> logprobs, const TopRule& rule, TopTokenRows* rows);

// Log-probabilities of a row's ids and, last, of all others together, all moved alike so that they
// sum to 1 (to 1e-6): by no more than the largest error of the row's levels, at most 1/8 nat.
std::vector<float> LogProbabilities(const TopTokenRows& rows, size_t row);
// The same into `values`; returns the logarithm of what the row summed to before.
double LogProbabilities(const TopTokenRows& rows, size_t row, std::vector<float>* values);
// Twice what levels can do to the logarithm of that sum: beyond it, a row was never a distribution.
inline constexpr double kTopSumErrorMax = 0.25;

// The `k` most likely ids of every row. What is left out joins the residual, which is then off by
// the largest error of a level left out (at most 1/8 nat, or 3e-9 an id in probability) and half a
// step of its own.
TopTokenRows KeepTop(const TopTokenRows& rows, uint32_t k);

// Rows [begin, end) of the section. REQUIRES: begin < end <= rows, ids of a row ascend and are
// below kVocabularyMax, at most kTopIdsMax of all these rows together.
inline constexpr uint32_t kTopIdsMax = 1u << 20;
std::string EncodeTopTokens(const TopTokenRows& rows, uint32_t begin, uint32_t end);

// Appends the `row_count` rows of a payload to `rows`. DataLoss if it is malformed, if an id is not
// below `vocabulary` or a row has more than `ids_max` ids; `rows` is then as it was.
absl::Status DecodeTopTokens(absl::string_view payload, uint32_t row_count, uint32_t vocabulary,
                             uint32_t ids_max, TopTokenRows* rows,
                             Instructions instructions = Instructions::kBest);

}  // namespace stillhouse
