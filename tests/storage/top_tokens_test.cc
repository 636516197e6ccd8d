#include "storage/codec/top_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/escaping.h"
#include "common/random.h"
#include "common/status.h"
#include "tests/storage/section_fixtures.h"

namespace stillhouse {
namespace {

using testing::HasSubstr;

constexpr uint32_t kVocabulary = 5000;

TopTokenRows Tops(int count, uint32_t k, uint64_t seed) {
  return MakeTop(count, {.k = k}, kVocabulary, seed);
}

// Of the levels there.
double StepAt(double nats) {
  return nats < 4 ? 1.0 / 32 : nats < 8 ? 1.0 / 16 : nats < 12 ? 0.125 : 0.25;
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
    ASSERT_LE(std::abs(LevelNats(LevelOf(-nats)) - nats), StepAt(nats) / 2 + 1e-9) << nats;
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
    const uint32_t k = row % 4 == 0 ? 1 : 7 * static_cast<uint32_t>(row);
    AppendTopRow(MakeLogprobs(kVocabulary, 1, row), {.k = k}, &rows);
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

// All levels sorted and everything else summed. The residual may be a level off: it is also what is
// left of 1, to fp32.
TEST(TopTokensTest, TakesTheMostLikelyAsSortingAllOfThemDoes) {
  for (const uint32_t vocabulary : {1u, 63u, 64u, 65u, 700u, 5000u}) {
    for (int row = 0; row < 8; ++row) {
      std::vector<float> logprobs = MakeLogprobs(vocabulary, 5, row);
      if (row % 2 == 1) {  // many ties
        for (float& logprob : logprobs) logprob = std::round(logprob);
      }
      std::vector<std::pair<uint8_t, int32_t>> sorted;
      for (uint32_t id = 0; id < vocabulary; ++id) {
        sorted.emplace_back(LevelOf(logprobs[id]), static_cast<int32_t>(id));
      }
      std::sort(sorted.begin(), sorted.end());
      for (const uint32_t k : {1u, 2u, 10u, 64u, 79u, 6000u}) {
        TopTokenRows rows;
        AppendTopRow(logprobs, {.k = k}, &rows);
        const size_t count = std::min(k, vocabulary);
        std::vector<int32_t> ids;
        for (size_t i = 0; i < count; ++i) ids.push_back(sorted[i].second);
        std::sort(ids.begin(), ids.end());
        ASSERT_EQ(rows.ids, ids) << vocabulary << " " << k;
        double rest = 0;
        for (size_t i = count; i < sorted.size(); ++i) {
          rest += std::exp(static_cast<double>(logprobs[sorted[i].second]));
        }
        if (row % 2 == 0) {  // they sum to 1
          EXPECT_NEAR(LevelOf(std::log(rest)), rows.residual_levels[0], 1);
        }
      }
    }
  }
}

// The divergence over the ids and the residual as one bucket.
TEST(TopTokensTest, SumsToOneAndStaysNearTheTruth) {
  double mean = 0;
  constexpr int kRows = 60;
  for (int row = 0; row < kRows; ++row) {
    const std::vector<float> truth = MakeLogprobs(kVocabulary, 2, row);
    TopTokenRows rows;
    AppendTopRow(truth, {.k = 64}, &rows);
    const std::vector<float> values = LogProbabilities(rows, 0);
    ASSERT_EQ(values.size(), 65u);
    double sum = 0, divergence = 0, rest = 1;
    for (int i = 0; i < 64; ++i) {
      const double p = std::exp(static_cast<double>(truth[rows.ids[i]]));
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

// Level by level the same, whatever k is; what is left out moves the residual by no more than its
// levels' errors.
TEST(TopTokensTest, FewerAreServedFromMore) {
  for (const uint32_t vocabulary : {70u, 5000u}) {
    const TopTokenRows most = MakeTop(40, {.k = 64}, vocabulary, 3);
    for (const uint32_t k : {1u, 2u, 32u, 63u}) {
      const TopTokenRows fewer = MakeTop(40, {.k = k}, vocabulary, 3), kept = KeepTop(most, k);
      EXPECT_EQ(kept.offsets, fewer.offsets);
      EXPECT_EQ(kept.ids, fewer.ids);
      EXPECT_EQ(kept.levels, fewer.levels);
      for (size_t row = 0; row < 40; ++row) {
        const double there = -LevelNats(kept.residual_levels[row]),
                     direct = -LevelNats(fewer.residual_levels[row]);
        EXPECT_LE(std::abs(there - direct), 0.125 + StepAt(-there) / 2 + StepAt(-direct) / 2)
            << row;
        double sum = 0;
        for (const float value : LogProbabilities(kept, row)) sum += std::exp(value);
        EXPECT_NEAR(sum, 1, 1e-6);
      }
    }
    ExpectSame(KeepTop(most, 64), most);
    ExpectSame(KeepTop(most, 100), most);
  }
}

TEST(TopTokensTest, AnotherCodecAndAStrangeIdAreNamed) {
  std::string payload = EncodeTopTokens(Tops(3, 8, 4), 0, 3);
  TopTokenRows decoded;
  EXPECT_THAT(std::string(DecodeTopTokens(payload, 3, 10, 8, &decoded).message()),
              HasSubstr("of a vocabulary of 10"));
  payload[0] = 9;
  EXPECT_THAT(std::string(DecodeTopTokens(payload, 3, kVocabulary, 8, &decoded).message()),
              HasSubstr("codec 9 is not known"));
  EXPECT_EQ(decoded.rows(), 0u);
}

TEST(TopTokensTest, DamagedPayloadsAreAnsweredAlike) {
  const std::string whole = EncodeTopTokens(Tops(30, 16, 5), 0, 30);
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
