// The most likely ids of a row with their log-probabilities: top-k, or top-p with its own number of
// ids in every row.
//
// Pure functions, integers only: every machine quantises and decodes to the same bits. A
// log-probability is kept as one of 256 levels whatever k is, and what the ids leave over is kept
// as a level of its own, so that fewer ids can be served from more.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "storage/codec.h"

namespace stillhouse {

// Level l stands for the log-probability -LevelNats(l): steps of 1/32 nat to 4, of 1/16 to 8, of
// 1/8 to 12, of 1/4 to 19.75. A quantised value is off by at most half a step, anything below
// -19.75 counts as that.
double LevelNats(uint8_t level);
// The nearest level, the greater of two equally near. REQUIRES: logprob is no NaN.
uint8_t LevelOf(double logprob);

// Row r has ids[offsets[r]..offsets[r+1]), at least one, ascending, with their levels.
struct TopTokenRows {
  std::vector<uint32_t> offsets = {0};
  std::vector<int32_t> ids;
  std::vector<uint8_t> levels;
  std::vector<uint8_t> residual_levels;  // per row: of all other ids together
  size_t rows() const { return offsets.size() - 1; }
};

// Log-probabilities of a row's ids and, last, of all others together, all moved alike so that they
// sum to 1 (to 1e-6): by no more than the largest error of the row's levels.
std::vector<float> LogProbabilities(const TopTokenRows& rows, size_t row);

// The `k` most likely ids of every row; of equal levels, the lower ids. What is left out joins the
// residual.
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
