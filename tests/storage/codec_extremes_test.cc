// What a broken or strange teacher could hand to a codec: the stated error bounds hold there too.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/random.h"
#include "common/status.h"
#include "common/tensor_view.h"
#include "tests/storage/section_fixtures.h"

namespace stillhouse {
namespace {

constexpr Instructions kBoth[] = {Instructions::kBest, Instructions::kPortable};
constexpr uint32_t kLargestVocabulary = 1u << 20;

TEST(CodecExtremesTest, StatsKeepTheirBoundToTheLargestMagnitude) {
  StatsRows rows;
  const auto add = [&rows](float value) {
    rows.entropy.push_back(value);
    rows.logsumexp.push_back(-value);
    rows.top1_id.push_back(
        static_cast<int32_t>(rows.top1_id.size() % 2 == 0 ? kVocabularyMax - 1 : 0));
    rows.top1_logprob.push_back(value / 3);
    rows.next_logprob.push_back(-value / 7);
  };
  const float largest = static_cast<float>(kStatsMagnitudeMax);
  for (const float value :
       {0.0f, -0.0f, std::numeric_limits<float>::denorm_min(), 1.0f / 8192, 2047.9999f, 2048.0f,
        2048.0002f, 65535.99f, largest, std::nextafter(largest, 0.0f)}) {
    add(value);
    add(-value);
  }
  const auto count = static_cast<uint32_t>(rows.rows());
  StatsRows decoded;
  SH_CHECK_OK(DecodeStats(EncodeStats(rows, 0, count), count, &decoded));
  EXPECT_EQ(decoded.top1_id, rows.top1_id);
  for (uint32_t i = 0; i < count; ++i) {
    EXPECT_LE(std::abs(decoded.entropy[i] - rows.entropy[i]), kStatsErrorMax) << rows.entropy[i];
    EXPECT_LE(std::abs(decoded.logsumexp[i] - rows.logsumexp[i]), kStatsErrorMax);
    EXPECT_LE(std::abs(decoded.top1_logprob[i] - rows.top1_logprob[i]), kStatsErrorMax);
    EXPECT_LE(std::abs(decoded.next_logprob[i] - rows.next_logprob[i]), kStatsErrorMax);
  }
}

// Every magnitude from the least denormal to the most that is allowed, alone and beside others.
TEST(CodecExtremesTest, HiddenInt8KeepsItsBoundAtEveryMagnitude) {
  constexpr uint32_t kWidth = 130;  // two groups and a piece of one
  RandomStream random(3);
  HiddenRows rows;
  rows.hidden_size = kWidth;
  const uint16_t most = FloatToBf16(kHiddenInt8Max);
  for (uint32_t scale = 0; scale <= most; scale += 64) {
    for (uint32_t i = 0; i < kWidth; ++i) {
      const auto magnitude =
          static_cast<uint16_t>(i % 64 == 3 ? scale : random.NextBelow(scale + 1));
      rows.values.push_back(magnitude | (random.NextBelow(2) == 0 ? 0x8000 : 0));
    }
  }
  const auto count = static_cast<uint32_t>(rows.rows());
  const std::string payload = EncodeHiddenInt8(rows, 0, count);
  for (const Instructions instructions : kBoth) {
    HiddenRows decoded;
    decoded.hidden_size = kWidth;
    SH_CHECK_OK(DecodeHiddenInt8(payload, count, &decoded, instructions));
    for (uint32_t row = 0; row < count; ++row) {
      for (uint32_t first = 0; first < kWidth; first += 64) {
        const uint32_t begin = row * kWidth + first,
                       end = row * kWidth + std::min(first + 64, kWidth);
        double largest = 0;
        for (uint32_t i = begin; i < end; ++i) {
          largest = std::max<double>(largest, std::abs(Bf16ToFloat(rows.values[i])));
        }
        // Below 2^-118 steps of bfloat16 itself are what is left: a scale is off by one of them.
        const double bound = largest >= 0x1p-118 ? 0.008 * largest : largest + 0x1p-126;
        for (uint32_t i = begin; i < end; ++i) {
          ASSERT_LE(std::abs(Bf16ToFloat(decoded.values[i]) - Bf16ToFloat(rows.values[i])), bound)
              << "largest " << largest;
        }
      }
    }
  }
}

void ExpectRoundTrip(const TopTokenRows& rows, uint32_t vocabulary, uint32_t ids_max) {
  const auto count = static_cast<uint32_t>(rows.rows());
  const std::string payload = EncodeTopTokens(rows, 0, count);
  EXPECT_LE(payload.size(), kPartBytesMax);
  for (const Instructions instructions : kBoth) {
    TopTokenRows decoded;
    SH_CHECK_OK(DecodeTopTokens(payload, count, vocabulary, ids_max, &decoded, instructions));
    EXPECT_EQ(decoded.offsets, rows.offsets);
    EXPECT_EQ(decoded.ids, rows.ids);
    EXPECT_EQ(decoded.levels, rows.levels);
    EXPECT_EQ(decoded.residual_levels, rows.residual_levels);
  }
}

// The largest error of a decoded log-probability, and whether all of them sum to 1.
void ExpectNear(const std::vector<float>& truth, const TopTokenRows& rows, size_t row) {
  const std::vector<float> values = LogProbabilities(rows, row);
  double sum = 0;
  for (const float value : values) sum += std::exp(static_cast<double>(value));
  EXPECT_NEAR(sum, 1, 1e-6);
  for (uint32_t i = rows.offsets[row]; i < rows.offsets[row + 1]; ++i) {
    // Half a step, and the shift that is no more than the largest half step; what lies below the
    // last level counts as that.
    const double nats = std::min(-static_cast<double>(truth[rows.ids[i]]), LevelNats(255));
    EXPECT_LE(std::abs(-values[i - rows.offsets[row]] - nats), 0.25 + 1e-4) << nats;
  }
}

TEST(CodecExtremesTest, AUniformRowOfTheLargestVocabulary) {
  const std::vector<float> flat(kLargestVocabulary,
                                -std::log(static_cast<float>(kLargestVocabulary)));
  TopTokenRows rows;
  AppendTopRow(flat, {.k = 64}, &rows);
  AppendTopRow(flat, {.k = kTopMax}, &rows);
  AppendTopRow(flat, {.k = kTopMax, .p = 0.01}, &rows);
  EXPECT_EQ(rows.offsets[1], 64u);
  EXPECT_EQ(rows.ids[63], 63);  // of equals the lower
  EXPECT_EQ(rows.offsets[2] - rows.offsets[1], kTopMax);
  EXPECT_NEAR(rows.offsets[3] - rows.offsets[2], 0.01 * kLargestVocabulary, 100);
  for (size_t row = 0; row < 3; ++row) ExpectNear(flat, rows, row);
  ExpectRoundTrip(rows, kLargestVocabulary, kTopMax);
  SectionSpec spec{.kind = SectionKind::kLogitsTopK, .k = kTopMax};
  SH_CHECK_OK(CanonicalValues(spec, EncodeTopTokens(rows, 0, 3), 3));
}

TEST(CodecExtremesTest, ACertainRowAndVocabulariesSmallerThanK) {
  TopTokenRows rows;
  std::vector<float> certain(1000, -std::numeric_limits<float>::infinity());
  certain[999] = 0;
  AppendTopRow(certain, {.k = 64}, &rows);
  EXPECT_EQ(rows.ids.back(), 999);
  EXPECT_EQ(rows.levels.back(), 0);
  ExpectNear(certain, rows, 0);
  const std::vector<float> alone = {0.0f};
  AppendTopRow(alone, {.k = 64}, &rows);
  EXPECT_EQ(rows.offsets[2] - rows.offsets[1], 1u);
  ExpectNear(alone, rows, 1);
  const std::vector<float> pair = {std::log(0.25f), std::log(0.75f)};
  AppendTopRow(pair, {.k = 64}, &rows);
  AppendTopRow(pair, {.k = 64, .p = 0.74}, &rows);
  AppendTopRow(pair, {.k = 64, .p = 0.76}, &rows);
  AppendTopRow(pair, {.k = 64, .p = 0.000001}, &rows);
  EXPECT_THAT(rows.offsets, testing::ElementsAre(0, 64, 65, 67, 68, 70, 71));
  for (size_t row = 2; row < 6; ++row) ExpectNear(pair, rows, row);
  ExpectRoundTrip(rows, 1000, 64);
  const SectionSpec spec{.kind = SectionKind::kLogitsTopK, .k = 64};
  SH_CHECK_OK(CanonicalValues(spec, EncodeTopTokens(rows, 0, 6), 6));
}

// Ids all over the largest vocabulary, no two rows alike: nothing to learn from.
TEST(CodecExtremesTest, RowsThatShareNothing) {
  RandomStream random(11);
  TopTokenRows top;
  SampledRows sampled;
  sampled.draws = 64;
  for (int row = 0; row < 300; ++row) {
    std::vector<int32_t> ids;
    while (ids.size() < 64) {
      const auto id = static_cast<int32_t>(random.NextBelow(kLargestVocabulary));
      if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
    }
    std::sort(ids.begin(), ids.end());
    for (const int32_t id : ids) {
      top.ids.push_back(id);
      top.levels.push_back(static_cast<uint8_t>(random.NextBelow(256)));
      sampled.ids.push_back(id);
      sampled.counts.push_back(1);
    }
    top.offsets.push_back(static_cast<uint32_t>(top.ids.size()));
    top.residual_levels.push_back(static_cast<uint8_t>(random.NextBelow(256)));
    sampled.offsets = top.offsets;
  }
  ExpectRoundTrip(top, kLargestVocabulary, 64);
  const std::string payload = EncodeSampled(sampled, 0, 300);
  EXPECT_LE(payload.size(), 300u * 64 * 4);
  for (const Instructions instructions : kBoth) {
    SampledRows decoded;
    decoded.draws = 64;
    SH_CHECK_OK(DecodeSampled(payload, 300, kLargestVocabulary, &decoded, instructions));
    EXPECT_EQ(decoded.ids, sampled.ids);
    EXPECT_EQ(decoded.counts, sampled.counts);
  }
}

}  // namespace
}  // namespace stillhouse
