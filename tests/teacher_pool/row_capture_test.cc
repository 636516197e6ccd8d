#include "teacher_pool/row_capture.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "common/random.h"
#include "common/tensor_view.h"
#include "gtest/gtest.h"
#include "storage/codec.h"

namespace stillhouse {
namespace {

std::vector<float> RandomLogits(int64_t vocabulary, double spread, uint64_t seed) {
  RandomStream random(seed);
  std::vector<float> logits(static_cast<size_t>(vocabulary));
  for (float& logit : logits) logit = static_cast<float>(spread * random.NextNormal() - 7.0);
  return logits;
}

// log p in float64.
std::vector<double> LogSoftmax(const std::vector<float>& logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  std::vector<double> out;
  for (const float logit : logits) out.push_back(logit - max - std::log(sum));
  return out;
}

TEST(RowCaptureTest, SummaryEqualsFloat64) {
  for (const int64_t vocabulary : {1, 63, 64, 65, 1000, 49152, 151936}) {
    for (const double spread : {0.1, 3.0, 12.0}) {
      const std::vector<float> logits =
          RandomLogits(vocabulary, spread, static_cast<uint64_t>(vocabulary));
      RowCapture row(vocabulary);
      ASSERT_TRUE(row.Read(logits.data()));
      const std::vector<double> log_p = LogSoftmax(logits);
      double entropy = 0;
      for (const double lp : log_p) entropy -= std::exp(lp) * lp;
      const auto top = std::max_element(logits.begin(), logits.end()) - logits.begin();
      const RowSummary summary = row.Summary();
      EXPECT_NEAR(summary.entropy, entropy, 2e-6 * (1 + entropy)) << vocabulary << " " << spread;
      EXPECT_NEAR(summary.logsumexp, logits[0] - log_p[0], 4e-6) << vocabulary << " " << spread;
      EXPECT_EQ(summary.top1_id, top);
      EXPECT_NEAR(summary.top1_logprob, log_p[static_cast<size_t>(top)], 2e-6);
      for (const int64_t id : {int64_t{0}, vocabulary / 2, vocabulary - 1}) {
        EXPECT_NEAR(row.LogProbability(static_cast<int32_t>(id)), log_p[static_cast<size_t>(id)],
                    1e-5);
      }
      const absl::Span<const float> all = row.LogProbabilities();
      ASSERT_EQ(all.size(), logits.size());
      for (size_t id = 0; id < all.size(); ++id) ASSERT_NEAR(all[id], log_p[id], 2e-5);
    }
  }
}

TEST(RowCaptureTest, Bf16RowsAreTheirExactValues) {
  const std::vector<float> logits = RandomLogits(500, 4.0, 5);
  std::vector<uint16_t> bits;
  std::vector<float> rounded;
  for (const float logit : logits) {
    bits.push_back(FloatToBf16(logit));
    rounded.push_back(Bf16ToFloat(bits.back()));
  }
  RowCapture a(500), b(500);
  ASSERT_TRUE(a.Read(bits.data()));
  ASSERT_TRUE(b.Read(rounded.data()));
  EXPECT_EQ(a.Summary().entropy, b.Summary().entropy);
  EXPECT_EQ(a.Summary().logsumexp, b.Summary().logsumexp);
}

TEST(RowCaptureTest, TheLowestOfEqualLogitsIsTop1) {
  std::vector<float> logits(300, -1.0f);
  logits[257] = logits[130] = logits[131] = 2.0f;
  RowCapture row(300);
  ASSERT_TRUE(row.Read(logits.data()));
  EXPECT_EQ(row.Summary().top1_id, 130);
}

TEST(RowCaptureTest, RefusesLogitsThatAreNotFinite) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    for (const size_t place : {0u, 31u, 64u, 99u}) {
      std::vector<float> logits(100, 0.5f);
      RowCapture row(100);
      ASSERT_TRUE(row.Read(logits.data()));
      logits[place] = bad;
      EXPECT_FALSE(row.Read(logits.data())) << bad << " at " << place;
      std::vector<uint16_t> bits;
      for (const float logit : logits) bits.push_back(FloatToBf16(logit));
      EXPECT_FALSE(row.Read(bits.data())) << bad << " at " << place;
    }
  }
}

TEST(RowCaptureTest, ExtremeButFiniteLogitsGiveNumbers) {
  std::vector<float> logits(70, -3e38f);
  logits[3] = 3e38f;
  RowCapture row(70);
  ASSERT_TRUE(row.Read(logits.data()));
  EXPECT_EQ(row.Summary().entropy, 0.0f);
  std::vector<int32_t> ids;
  std::vector<uint16_t> counts;
  EXPECT_EQ(row.Draw(Sha256Of("d"), 0, 50, &ids, &counts), 1u);
  EXPECT_EQ(ids[0], 3);
  EXPECT_EQ(counts[0], 50);
}

// Draws of `positions` rows with the same logits, through the codec.
SampledRows DrawRows(const std::vector<float>& logits, uint32_t draws, uint32_t positions,
                     const Digest& document) {
  RowCapture row(static_cast<int64_t>(logits.size()));
  EXPECT_TRUE(row.Read(logits.data()));
  SampledRows rows;
  rows.draws = draws;
  for (uint32_t t = 0; t < positions; ++t) {
    row.Draw(document, t, draws, &rows.ids, &rows.counts);
    rows.offsets.push_back(static_cast<uint32_t>(rows.ids.size()));
  }
  SampledRows decoded;
  decoded.draws = draws;
  EXPECT_TRUE(DecodeSampled(EncodeSampled(rows, 0, positions), positions,
                            static_cast<uint32_t>(logits.size()), &decoded)
                  .ok());
  return decoded;
}

TEST(DrawTest, DrawsFollowTheDistributionByChiSquare) {
  for (const double spread : {0.5, 3.0}) {
    const std::vector<float> logits = RandomLogits(333, spread, 11);
    const SampledRows rows = DrawRows(logits, 50, 8000, Sha256Of("document"));
    std::vector<double> seen(logits.size());
    for (size_t i = 0; i < rows.ids.size(); ++i) {
      seen[static_cast<size_t>(rows.ids[i])] += rows.counts[i];
    }
    const std::vector<double> log_p = LogSoftmax(logits);
    const double total = 50.0 * 8000;
    double chi_square = 0, rest_expected = 0, rest_seen = 0;
    int cells = 0;
    for (size_t id = 0; id < logits.size(); ++id) {
      const double expected = total * std::exp(log_p[id]);
      if (expected < 10) {  // pooled: the approximation needs some in each cell
        rest_expected += expected;
        rest_seen += seen[id];
        continue;
      }
      chi_square += (seen[id] - expected) * (seen[id] - expected) / expected;
      ++cells;
    }
    if (rest_expected > 0) {
      chi_square += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected;
      ++cells;
    }
    const double freedom = cells - 1;
    EXPECT_LT(chi_square, freedom + 4 * std::sqrt(2 * freedom)) << spread;
    EXPECT_GT(chi_square, freedom - 4 * std::sqrt(2 * freedom)) << spread;
  }
}

// Ids of tiny probability keep their share: a running fp32 sum would lose most of them.
TEST(DrawTest, TheTailKeepsItsMass) {
  std::vector<float> logits = RandomLogits(151936, 1.0, 13);
  for (size_t id = 0; id < 32; ++id) logits[id * 4001] += 12.0f;
  std::vector<double> log_p = LogSoftmax(logits);
  const SampledRows rows = DrawRows(logits, 50, 600, Sha256Of("tail"));
  const double total = 50.0 * 600;
  double tail = 0, tail_seen = 0, second_half = 0, second_half_seen = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (log_p[id] < -9) tail += std::exp(log_p[id]);
    if (id >= logits.size() / 2) second_half += std::exp(log_p[id]);
  }
  for (size_t i = 0; i < rows.ids.size(); ++i) {
    const size_t id = static_cast<size_t>(rows.ids[i]);
    if (log_p[id] < -9) tail_seen += rows.counts[i];
    if (id >= logits.size() / 2) second_half_seen += rows.counts[i];
  }
  ASSERT_GT(tail, 0.02);
  EXPECT_NEAR(tail_seen / total, tail, 4 * std::sqrt(tail * (1 - tail) / total));
  EXPECT_NEAR(second_half_seen / total, second_half,
              4 * std::sqrt(second_half * (1 - second_half) / total));
}

TEST(DrawTest, DependsOnDocumentPositionAndLogitsOnly) {
  const std::vector<float> a = RandomLogits(400, 2.0, 17), b = RandomLogits(400, 2.0, 18);
  const auto draw = [](RowCapture& row, const std::vector<float>& logits,
                       absl::string_view document, uint32_t position) {
    EXPECT_TRUE(row.Read(logits.data()));
    std::vector<int32_t> ids;
    std::vector<uint16_t> counts;
    row.Draw(Sha256Of(document), position, 50, &ids, &counts);
    std::map<int32_t, uint16_t> drawn;
    uint32_t sum = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (i > 0) {
        EXPECT_LT(ids[i - 1], ids[i]);
      }
      drawn[ids[i]] = counts[i];
      sum += counts[i];
    }
    EXPECT_EQ(sum, 50u);
    return drawn;
  };
  RowCapture one(400), other(400);
  const auto first = draw(one, a, "x", 5);
  draw(one, b, "y", 9);
  EXPECT_EQ(draw(one, a, "x", 5), first);
  EXPECT_EQ(draw(other, a, "x", 5), first);
  EXPECT_NE(draw(other, a, "x", 6), first);
  EXPECT_NE(draw(other, a, "z", 5), first);
}

}  // namespace
}  // namespace stillhouse
