#include "model/generate.h"

#include <algorithm>
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

// Past max_positions every length has angles of its own.
TEST(DecodingTest, DynamicRopeGivesThePassOverTheTextSoFar) {
  ModelConfig config = SmallConfig();
  config.max_positions = 8;
  config.rope = {.kind = RopeScaling::Kind::kDynamic, .factor = 3};
  const DecoderWeights weights = RandomDecoder(config, at::kFloat, 3);
  const DecoderBatch batch = RandomBatch(config, {14}, 4);
  auto decoding = Decoding::Create(weights, 14);
  ASSERT_TRUE(decoding.ok()) << decoding.status();
  for (const int64_t tokens : {5, 8, 9, 10, 14}) {
    std::vector<int32_t> next;
    for (int64_t t = decoding->tokens(); t < tokens; ++t) {
      next.push_back(batch.ids[t].item<int32_t>());
    }
    const auto logits = decoding->Extend(next);
    ASSERT_TRUE(logits.ok()) << logits.status();
    const auto hidden = ForwardHidden(weights, {batch.ids.narrow(0, 0, tokens), {tokens}});
    const at::Tensor want = at::matmul((*hidden)[tokens - 1], HeadWeight(weights).t());
    EXPECT_LT((at::tensor(*logits) - want).abs().max().item<double>(), 2e-5) << tokens;
  }
}

TEST(GenerateTokensTest, EndsAtAnyStopIdAndDrawsNoPadding) {
  const DecoderWeights weights = RandomDecoder(SmallConfig(), at::kFloat, 1);
  GenerateOptions options{.tokens_max = 20, .vocabulary = 90};
  options.sampling.temperature = 3;
  const auto free = GenerateTokens(weights, {1, 2, 3}, options);
  ASSERT_TRUE(free.ok()) << free.status();
  ASSERT_EQ(free->size(), 20u);
  for (const int32_t id : *free) EXPECT_LT(id, 90);
  EXPECT_EQ(*GenerateTokens(weights, {1, 2, 3}, options), *free);
  const int32_t stop = (*free)[7];
  const auto first = std::find(free->begin(), free->end(), stop);
  options.stop_ids = {95, stop};
  EXPECT_EQ(*GenerateTokens(weights, {1, 2, 3}, options),
            std::vector<int32_t>(free->begin(), first));
  options.seed = 1;
  options.stop_ids.clear();
  EXPECT_NE(*GenerateTokens(weights, {1, 2, 3}, options), *free);
  EXPECT_FALSE(GenerateTokens(weights, {}, options).ok());
  options.tokens_max = 62;
  EXPECT_THAT(GenerateTokens(weights, {1, 2, 3}, options).status().message(),
              HasSubstr("takes 1 to 64"));
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
