#include "storage/codec/top_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/escaping.h"
#include "common/random.h"
#include "common/status.h"

namespace stillhouse {
namespace {

using testing::HasSubstr;

constexpr uint32_t kVocabulary = 5000;

// Row by row a distribution over kVocabulary ids, from flat to nearly certain.
std::vector<double> LogProbabilitiesOfRow(uint64_t seed, int row) {
  RandomStream random(seed, row);
  const double sharpness = 0.5 + 4.0 * random.NextUniform();
  std::vector<double> logits(kVocabulary);
  double sum = 0;
  for (uint32_t id = 0; id < kVocabulary; ++id) {
    logits[id] = sharpness * random.NextNormal() - std::log1p(id) * 0.3;
    sum += std::exp(logits[id]);
  }
  for (double& logit : logits) logit -= std::log(sum);
  return logits;
}

void Append(const std::vector<double>& logprobs, size_t k, TopTokenRows* rows) {
  std::vector<int32_t> order(logprobs.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(k), order.end(),
                    [&](int32_t a, int32_t b) { return logprobs[a] > logprobs[b]; });
  std::sort(order.begin(), order.begin() + static_cast<int64_t>(k));
  double rest = 1;
  for (size_t i = 0; i < k; ++i) {
    rows->ids.push_back(order[i]);
    rows->levels.push_back(LevelOf(logprobs[order[i]]));
    rest -= std::exp(logprobs[order[i]]);
  }
  rows->offsets.push_back(static_cast<uint32_t>(rows->ids.size()));
  rows->residual_levels.push_back(LevelOf(std::log(std::max(rest, 1e-12))));
}

TopTokenRows MakeTop(int count, size_t k, uint64_t seed) {
  TopTokenRows rows;
  for (int row = 0; row < count; ++row) Append(LogProbabilitiesOfRow(seed, row), k, &rows);
  return rows;
}

void ExpectSame(const TopTokenRows& a, const TopTokenRows& b) {
  EXPECT_EQ(a.offsets, b.offsets);
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_EQ(a.levels, b.levels);
  EXPECT_EQ(a.residual_levels, b.residual_levels);
}

TEST(LevelTest, TheNearestIsTaken) {
  for (int level = 0; level < 256; ++level) {
    EXPECT_EQ(LevelOf(-LevelNats(static_cast<uint8_t>(level))), level);
  }
  for (double nats = 0; nats < 19.75; nats += 0.0007) {
    const double step = nats < 4 ? 1.0 / 32 : nats < 8 ? 1.0 / 16 : nats < 12 ? 0.125 : 0.25;
    ASSERT_LE(std::abs(LevelNats(LevelOf(-nats)) - nats), step / 2 + 1e-9) << nats;
  }
  EXPECT_EQ(LevelOf(0.1), 0);
  EXPECT_EQ(LevelOf(-100), 255);
  EXPECT_EQ(LevelOf(-HUGE_VAL), 255);
  EXPECT_EQ(LevelOf(-1.0 / 64), 1);  // of two equally near
  EXPECT_EQ(LevelOf(-1.0 / 64 + 1e-9), 0);
}

TEST(TopTokensTest, GoldenBytes) {
  TopTokenRows rows;
  rows.ids = {3, 10, 49151, 0, 3};
  rows.levels = {20, 33, 150, 0, 255};
  rows.residual_levels = {130, 255};
  rows.offsets = {0, 3, 5};
  EXPECT_EQ(absl::BytesToHexString(EncodeTopTokens(rows, 0, 2)),
            "05040702b5c6dedba6d87ff53f0a13f807");
  const std::vector<float> values = LogProbabilities(rows, 0);
  EXPECT_EQ(absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(values.data()),
                                                     values.size() * sizeof(float))),
            "719708bf719770bfee12a9c0ee1281c0");
}

TEST(TopTokensTest, RoundTripsTopKAndTopP) {
  TopTokenRows rows;
  for (int row = 0; row < 12; ++row) {
    Append(LogProbabilitiesOfRow(1, row), row % 4 == 0 ? 1 : 7 * static_cast<size_t>(row), &rows);
  }
  const std::string whole = EncodeTopTokens(rows, 0, 12);
  for (const Instructions instructions : {Instructions::kBest, Instructions::kPortable}) {
    TopTokenRows decoded;
    SH_CHECK_OK(DecodeTopTokens(whole, 12, kVocabulary, 77, &decoded, instructions));
    ExpectSame(decoded, rows);
  }
  TopTokenRows decoded;
  SH_CHECK_OK(DecodeTopTokens(EncodeTopTokens(rows, 0, 5), 5, kVocabulary, 77, &decoded));
  SH_CHECK_OK(DecodeTopTokens(EncodeTopTokens(rows, 5, 12), 7, kVocabulary, 77, &decoded));
  ExpectSame(decoded, rows);
  EXPECT_FALSE(DecodeTopTokens(whole, 12, kVocabulary, 76, &decoded).ok());
  EXPECT_FALSE(DecodeTopTokens(whole, 11, kVocabulary, 77, &decoded).ok());
  EXPECT_FALSE(DecodeTopTokens(whole, 0xffffffffu, kVocabulary, 77, &decoded).ok());
  ExpectSame(decoded, rows);
}

// The divergence over the ids and the residual as one bucket.
TEST(TopTokensTest, SumsToOneAndStaysNearTheTruth) {
  double mean = 0;
  constexpr int kRows = 60;
  for (int row = 0; row < kRows; ++row) {
    const std::vector<double> truth = LogProbabilitiesOfRow(2, row);
    TopTokenRows rows;
    Append(truth, 64, &rows);
    const std::vector<float> values = LogProbabilities(rows, 0);
    ASSERT_EQ(values.size(), 65u);
    double sum = 0, divergence = 0, rest = 1;
    for (int i = 0; i < 64; ++i) {
      const double p = std::exp(truth[rows.ids[i]]);
      sum += std::exp(values[i]);
      rest -= p;
      divergence += p * (truth[rows.ids[i]] - values[i]);
    }
    sum += std::exp(values[64]);
    if (rest > 1e-12) divergence += rest * (std::log(rest) - values[64]);
    EXPECT_NEAR(sum, 1, 1e-6);
    EXPECT_LT(divergence, 2e-4) << row;
    mean += divergence / kRows;
  }
  EXPECT_LT(mean, 1e-4);
}

// Fewer ids from more are those that would have been captured, but for ties between levels.
TEST(TopTokensTest, FewerAreServedFromMore) {
  const TopTokenRows most = MakeTop(40, 64, 3), fewer = MakeTop(40, 32, 3);
  const TopTokenRows kept = KeepTop(most, 32);
  ASSERT_EQ(kept.offsets, fewer.offsets);
  for (size_t row = 0; row < 40; ++row) {
    std::vector<uint8_t> a(kept.levels.begin() + 32 * row, kept.levels.begin() + 32 * (row + 1));
    std::vector<uint8_t> b(fewer.levels.begin() + 32 * row, fewer.levels.begin() + 32 * (row + 1));
    std::sort(a.begin(), a.end());
    std::sort(b.begin(), b.end());
    EXPECT_EQ(a, b) << row;
    EXPECT_LE(std::abs(kept.residual_levels[row] - fewer.residual_levels[row]), 1) << row;
    double sum = 0;
    for (const float value : LogProbabilities(kept, row)) sum += std::exp(value);
    EXPECT_NEAR(sum, 1, 1e-6);
  }
  ExpectSame(KeepTop(most, 100), most);
}

TEST(TopTokensTest, AnotherCodecAndAStrangeIdAreNamed) {
  std::string payload = EncodeTopTokens(MakeTop(3, 8, 4), 0, 3);
  TopTokenRows decoded;
  EXPECT_THAT(std::string(DecodeTopTokens(payload, 3, 10, 8, &decoded).message()),
              HasSubstr("of a vocabulary of 10"));
  payload[0] = 9;
  EXPECT_THAT(std::string(DecodeTopTokens(payload, 3, kVocabulary, 8, &decoded).message()),
              HasSubstr("codec 9 is not known"));
  EXPECT_EQ(decoded.rows(), 0u);
}

TEST(TopTokensTest, DamagedPayloadsAreAnsweredAlike) {
  const std::string whole = EncodeTopTokens(MakeTop(30, 16, 5), 0, 30);
  RandomStream random(9);
  int refused = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string payload = whole;
    for (uint64_t flips = 1 + random.NextBelow(4); flips > 0; --flips) {
      payload[1 + random.NextBelow(payload.size() - 1)] ^=
          static_cast<char>(1 << random.NextBelow(8));
    }
    if (random.NextBelow(3) == 0) payload.resize(random.NextBelow(payload.size() + 1));
    TopTokenRows best, portable;
    const absl::Status a = DecodeTopTokens(payload, 30, kVocabulary, 16, &best);
    const absl::Status b =
        DecodeTopTokens(payload, 30, kVocabulary, 16, &portable, Instructions::kPortable);
    ASSERT_EQ(a, b);
    ExpectSame(best, portable);
    ASSERT_EQ(best.rows(), a.ok() ? 30u : 0u);
    refused += !a.ok();
  }
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace stillhouse
