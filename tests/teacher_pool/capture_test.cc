#include "teacher_pool/capture.h"

#include <cmath>
#include <limits>

#include "ATen/ATen.h"
#include "common/tensor_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/codec.h"
#include "tests/model/random_decoder.h"
#include "tests/teacher_pool/test_plan.h"

namespace stillhouse {
namespace {

using ::stillhouse::testing::MakeTestPlan;
using ::stillhouse::testing::RandomDecoder;
using ::stillhouse::testing::SmallConfig;
using ::testing::HasSubstr;

constexpr uint32_t kReal = 90;  // ids of the tokenizer; the model has 97

// A model that is loud about its padding ids: unmasked, they would take most of the mass.
DecoderWeights LoudDecoder(at::ScalarType dtype, uint64_t seed = 1) {
  ModelConfig config = SmallConfig();
  config.tie_embeddings = false;
  DecoderWeights weights = RandomDecoder(config, dtype, seed);
  weights.head.mul_(3.0);
  weights.head.narrow(0, kReal, 97 - kReal).mul_(20.0);
  return weights;
}

CaptureRequest Everything() { return {.stats = true, .draws = 20, .hidden = true}; }

std::vector<CapturedDocument> CaptureChunk(Capturer& capturer, const Plan& plan, uint32_t chunk,
                                           const CaptureRequest& request) {
  std::vector<CapturedDocument> all;
  for (const PlanBatch& batch : plan.chunk(chunk).batches) {
    auto documents = capturer.Run(plan, batch, request, nullptr, [] {});
    EXPECT_TRUE(documents.ok()) << documents.status();
    if (!documents.ok()) return all;
    for (CapturedDocument& document : *documents) all.push_back(std::move(document));
  }
  return all;
}

std::string Bytes(const CapturedDocument& document) {
  const uint32_t rows = static_cast<uint32_t>(document.stats.rows());
  return EncodeStats(document.stats, 0, rows) + EncodeSampled(document.sampled, 0, rows) +
         EncodeHidden(document.hidden, 0, rows);
}

at::Tensor HiddenOf(const CapturedDocument& document) {
  const int64_t rows = static_cast<int64_t>(document.hidden.rows());
  at::Tensor hidden = at::empty({rows, document.hidden.hidden_size}, at::kDouble);
  for (size_t i = 0; i < document.hidden.values.size(); ++i) {
    hidden.mutable_data_ptr<double>()[i] = Bf16ToFloat(document.hidden.values[i]);
  }
  return hidden;
}

TEST(CaptureTest, StatsEqualFloat64OverTheRealVocabulary) {
  const auto plan = MakeTestPlan({.lengths = {9, 30, 31, 2, 64, 17, 40}});
  const DecoderWeights weights = LoudDecoder(at::kFloat);
  const auto backend = MakeLocalBackend(weights);
  auto capturer = Capturer::Create(*backend, kReal);
  ASSERT_TRUE(capturer.ok());
  size_t documents = 0;
  for (uint32_t chunk = 0; chunk < plan->chunk_count(); ++chunk) {
    for (const CapturedDocument& captured : CaptureChunk(*capturer, *plan, chunk, Everything())) {
      const PlanDocument document = plan->document(captured.document);
      const int64_t rows = document.rows();
      ASSERT_EQ(captured.stats.rows(), document.rows());
      ASSERT_EQ(captured.sampled.rows(), document.rows());
      ASSERT_EQ(captured.hidden.rows(), document.rows());
      // Alone and unpadded: what the batch must not have changed.
      at::Tensor ids = at::empty({rows + 1}, at::kLong);
      for (int64_t t = 0; t <= rows; ++t) ids[t] = document.tokens[static_cast<size_t>(t)];
      const auto hidden = ForwardHidden(weights, {ids, {rows + 1}});
      ASSERT_TRUE(hidden.ok());
      const at::Tensor log_p =
          at::log_softmax(at::matmul(hidden->to(at::kDouble), weights.head.to(at::kDouble).t())
                              .narrow(0, 0, rows)
                              .narrow(1, 0, kReal),
                          -1);
      const at::Tensor entropy = -(log_p.exp() * log_p).sum(-1);
      for (int64_t t = 0; t < rows; ++t) {
        const size_t r = static_cast<size_t>(t);
        EXPECT_NEAR(captured.stats.entropy[r], entropy[t].item<double>(), 2e-5);
        EXPECT_EQ(captured.stats.top1_id[r], log_p[t].argmax().item<int64_t>());
        EXPECT_NEAR(captured.stats.top1_logprob[r], log_p[t].max().item<double>(), 2e-5);
        EXPECT_NEAR(captured.stats.next_logprob[r], log_p[t][document.tokens[r + 1]].item<double>(),
                    5e-5);
      }
      EXPECT_LT((HiddenOf(captured) - hidden->narrow(0, 0, rows)).abs().max().item<double>(), 0.02);
      for (const int32_t id : captured.sampled.ids) EXPECT_LT(id, static_cast<int32_t>(kReal));
      ++documents;
    }
  }
  EXPECT_EQ(documents, 7u);
}

TEST(CaptureTest, TheSameChunkTwiceGivesTheSameBytes) {
  const auto plan = MakeTestPlan({.lengths = {9, 30, 31, 2, 64, 17, 40}});
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const auto backend = MakeLocalBackend(LoudDecoder(dtype)),
               again = MakeLocalBackend(LoudDecoder(dtype));
    auto a = Capturer::Create(*backend, kReal), b = Capturer::Create(*again, kReal);
    // The second has run something else before.
    CaptureChunk(*b, *plan, 1, {.stats = true});
    const auto first = CaptureChunk(*a, *plan, 0, Everything());
    const auto second = CaptureChunk(*b, *plan, 0, Everything());
    ASSERT_EQ(first.size(), second.size());
    for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(Bytes(first[i]), Bytes(second[i]));
  }
}

TEST(CaptureTest, ASectionDoesNotDependOnWhichOthersAreAsked) {
  const auto plan = MakeTestPlan({.lengths = {9, 30, 31, 2}, .chunk_tokens = 1000});
  const auto backend = MakeLocalBackend(LoudDecoder(at::kBFloat16));
  auto capturer = Capturer::Create(*backend, kReal);
  const auto all = CaptureChunk(*capturer, *plan, 0, Everything());
  const auto stats = CaptureChunk(*capturer, *plan, 0, {.stats = true});
  const auto draws = CaptureChunk(*capturer, *plan, 0, {.draws = 20});
  const auto hidden = CaptureChunk(*capturer, *plan, 0, {.hidden = true});
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].stats.entropy, stats[i].stats.entropy);
    EXPECT_EQ(stats[i].sampled.rows(), 0u);
    EXPECT_EQ(all[i].sampled.ids, draws[i].sampled.ids);
    EXPECT_EQ(all[i].sampled.counts, draws[i].sampled.counts);
    EXPECT_EQ(all[i].hidden.values, hidden[i].hidden.values);
  }
}

TEST(CaptureTest, HiddenStatesThatAreNotFiniteBlameTheDocument) {
  const auto plan = MakeTestPlan({.lengths = {12, 12}});
  DecoderWeights weights = LoudDecoder(at::kFloat);
  const int32_t poisoned = plan->document(1).tokens[5];
  weights.embedding[poisoned].fill_(std::numeric_limits<float>::quiet_NaN());
  const auto backend = MakeLocalBackend(weights);
  auto capturer = Capturer::Create(*backend, kReal);
  for (const CaptureRequest& request :
       {CaptureRequest{.stats = true}, CaptureRequest{.hidden = true}}) {
    const auto result = capturer->Run(*plan, plan->chunk(0).batches[0], request, nullptr, [] {});
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(result.status().message(), HasSubstr("not finite"));
    EXPECT_THAT(result.status().message(), HasSubstr("document "));
  }
}

TEST(CaptureTest, RefusesWhatItCannotCapture) {
  const auto backend = MakeLocalBackend(LoudDecoder(at::kFloat));
  EXPECT_THAT(Capturer::Create(*backend, 98).status().message(), HasSubstr("head only 97"));
  const SectionSpec hidden{SectionKind::kHiddenLast, 0, 49}, stats{};
  EXPECT_THAT(MakeCaptureRequest({hidden}, backend->config()).status().message(),
              HasSubstr("hidden size is 48"));
  EXPECT_FALSE(MakeCaptureRequest({stats, stats}, backend->config()).ok());
  auto capturer = Capturer::Create(*backend, 80);
  const auto plan = MakeTestPlan({.lengths = {12}});
  EXPECT_THAT(capturer->Run(*plan, plan->chunk(0).batches[0], Everything(), nullptr, [] {})
                  .status()
                  .message(),
              HasSubstr("the plan counts 90"));
}

TEST(InfluenceTest, EqualsTheFormulaOverRowsWithoutPadding) {
  const auto plan = MakeTestPlan({.lengths = {12, 20, 20, 7}, .chunk_tokens = 1000});
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const DecoderWeights weights = LoudDecoder(dtype);
    const auto backend = MakeLocalBackend(weights);
    auto capturer = Capturer::Create(*backend, kReal);
    BlockInfluence influence(2);
    std::vector<double> expected(2, 0.0);
    uint64_t rows = 0;
    for (const PlanBatch& batch : plan->chunk(0).batches) {
      ASSERT_TRUE(capturer->Run(*plan, batch, {.stats = true}, &influence, [] {}).ok());
      for (uint32_t d = batch.begin; d < batch.end; ++d) {
        const PlanDocument document = plan->document(d);
        at::Tensor ids = at::empty({document.rows() + 1}, at::kLong);
        for (uint32_t t = 0; t <= document.rows(); ++t) ids[t] = document.tokens[t];
        ASSERT_TRUE(
            ForwardHidden(weights, {ids, {document.rows() + 1}},
                          [&](int64_t layer, const at::Tensor& in, const at::Tensor& out) {
                            const at::Tensor cosine =
                                at::cosine_similarity(in.to(at::kDouble), out.to(at::kDouble), 1);
                            expected[static_cast<size_t>(layer)] +=
                                (1 - cosine.narrow(0, 0, document.rows())).sum().item<double>();
                          })
                .ok());
        rows += document.rows();
      }
    }
    EXPECT_EQ(influence.rows(), rows);
    const std::vector<double> mean = influence.Mean();
    const double tolerance = dtype == at::kFloat ? 1e-6 : 2e-3;
    for (size_t layer = 0; layer < 2; ++layer) {
      EXPECT_NEAR(mean[layer], expected[layer] / static_cast<double>(rows), tolerance);
      EXPECT_GT(mean[layer], 0.01);
    }
    EXPECT_THAT(influence.ToJson(), HasSubstr("\"rows\":55"));
  }
}

}  // namespace
}  // namespace stillhouse
