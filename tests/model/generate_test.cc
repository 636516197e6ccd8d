#include "model/generate.h"

#include <cmath>
#include <map>

#include "ATen/ATen.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/random_decoder.h"

namespace stillhouse {
namespace {

using ::stillhouse::testing::RandomBatch;
using ::stillhouse::testing::RandomDecoder;
using ::stillhouse::testing::SmallConfig;
using ::testing::HasSubstr;

TEST(DecodingTest, LogitsEqualThoseOfTheWholeText) {
  const DecoderWeights weights = RandomDecoder(SmallConfig(), at::kFloat, 1);
  const DecoderBatch batch = RandomBatch(weights.config, {30}, 2);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < 30; ++t) ids.push_back(batch.ids[t].item<int32_t>());
  const at::Tensor whole = at::matmul(*ForwardHidden(weights, batch), HeadWeight(weights).t());
  auto decoding = Decoding::Create(weights, 30);
  ASSERT_TRUE(decoding.ok());
  // A prompt of 9, then single tokens, then several at once.
  size_t done = 0;
  for (const size_t step : {9u, 1u, 1u, 7u, 12u}) {
    const auto logits = decoding->Extend(absl::MakeConstSpan(ids).subspan(done, step));
    ASSERT_TRUE(logits.ok()) << logits.status();
    done += step;
    for (int64_t id = 0; id < 97; ++id) {
      EXPECT_NEAR((*logits)[static_cast<size_t>(id)],
                  whole[static_cast<int64_t>(done) - 1][id].item<float>(), 2e-5);
    }
  }
  EXPECT_EQ(decoding->tokens(), 30);
  EXPECT_EQ(decoding->Extend({1}).status().code(), absl::StatusCode::kOutOfRange);
}

TEST(DecodingTest, RefusesBadSizesAndIds) {
  const DecoderWeights weights = RandomDecoder(SmallConfig(), at::kFloat, 1);
  EXPECT_THAT(Decoding::Create(weights, 65).status().message(), HasSubstr("takes 1 to 64"));
  auto decoding = Decoding::Create(weights, 8);
  EXPECT_FALSE(decoding->Extend({}).ok());
  EXPECT_THAT(decoding->Extend({97}).status().message(), HasSubstr("token id 97"));
  EXPECT_FALSE(decoding->Extend({-1}).ok());
}

TEST(PickTokenTest, GreedyTakesTheLowestOfTheLargest) {
  RandomStream random(1);
  EXPECT_EQ(*PickToken({0.5f, 2.0f, -1.0f, 2.0f}, {}, random), 1);
  EXPECT_EQ(*PickToken({0.5f, 2.0f, 3.0f}, {.temperature = 5, .top_k = 1}, random), 2);
  EXPECT_EQ(*PickToken({0.5f, 9.0f, 3.0f}, {.temperature = 1, .top_p = 0.5}, random), 1);
}

TEST(PickTokenTest, DrawsFollowTemperatureTopKAndTopP) {
  const std::vector<float> logits = {1.0f, 0.0f, 2.0f, -1.0f, 1.5f};
  const SamplingOptions options{.temperature = 0.7, .top_k = 4, .top_p = 0.9};
  // By hand: p at T = 0.7 in order 2, 4, 0, 1 is 0.566, 0.277, 0.136, 0.033 of four; 2, 4 and 0
  // reach 0.9 together.
  std::map<int32_t, double> expected;
  double total = 0;
  for (const int32_t id : {2, 4, 0}) {
    total += expected[id] = std::exp(logits[static_cast<size_t>(id)] / 0.7);
  }
  RandomStream random(5);
  std::map<int32_t, int> seen;
  constexpr int kDraws = 40000;
  for (int i = 0; i < kDraws; ++i) ++seen[*PickToken(logits, options, random)];
  EXPECT_EQ(seen.size(), 3u);
  for (const auto& [id, mass] : expected) {
    const double p = mass / total;
    EXPECT_NEAR(seen[id] / double(kDraws), p, 4 * std::sqrt(p * (1 - p) / kDraws)) << id;
  }
}

TEST(PickTokenTest, RefusesWhatIsNoDistribution) {
  RandomStream random(1);
  EXPECT_FALSE(PickToken({1.0f, NAN}, {}, random).ok());
  EXPECT_FALSE(PickToken({1.0f, INFINITY}, {.temperature = 1}, random).ok());
  EXPECT_FALSE(ValidateSampling({.temperature = -1}).ok());
  EXPECT_FALSE(ValidateSampling({.temperature = NAN}).ok());
  EXPECT_FALSE(ValidateSampling({.top_k = -1}).ok());
  EXPECT_FALSE(ValidateSampling({.top_p = 0}).ok());
  EXPECT_FALSE(ValidateSampling({.top_p = 1.5}).ok());
  EXPECT_TRUE(ValidateSampling({.temperature = 1, .top_k = 5, .top_p = 1}).ok());
}

}  // namespace
}  // namespace stillhouse
