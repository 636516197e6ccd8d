#include "teacher_pool/capture.h"

#include <cmath>
#include <limits>

#include "ATen/ATen.h"
#include "common/tensor_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/codec.h"
#include "storage/codec/top_tokens.h"
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

const SectionSpec kStats{SectionKind::kStats};
const SectionSpec kSampled{.kind = SectionKind::kLogitsSampled, .draws = 20};
const SectionSpec kTopK{.kind = SectionKind::kLogitsTopK, .k = 8};
const SectionSpec kTopP{.kind = SectionKind::kLogitsTopP, .k = 30, .p_millionths = 900'000};
const SectionSpec kHidden{.kind = SectionKind::kHiddenLast, .hidden_size = 48};
const SectionSpec kLayer0{.kind = SectionKind::kHiddenLayer, .hidden_size = 48, .layer = 0};
const SectionSpec kLayer1{
    .kind = SectionKind::kHiddenLayer, .hidden_size = 48, .layer = 1, .dtype = HiddenDtype::kInt8};

CaptureRequest Everything() { return {kStats, kSampled, kTopK, kTopP, kHidden, kLayer0, kLayer1}; }
// Of those in Everything().
const StatsRows& StatsOf(const CapturedDocument& document) {
  return std::get<StatsRows>(document.sections[0]);
}
const SampledRows& SampledOf(const CapturedDocument& document) {
  return std::get<SampledRows>(document.sections[1]);
}

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
  const CaptureRequest request = Everything();
  std::string bytes;
  for (size_t i = 0; i < request.size(); ++i) {
    const SectionRows& rows = document.sections[i];
    bytes += EncodeSection(request[i], rows, 0, static_cast<uint32_t>(RowCount(rows)));
  }
  return bytes;
}

at::Tensor HiddenOf(const CapturedDocument& document, size_t section) {
  const auto& states = std::get<HiddenRows>(document.sections[section]);
  at::Tensor hidden =
      at::empty({static_cast<int64_t>(states.rows()), states.hidden_size}, at::kDouble);
  for (size_t i = 0; i < states.values.size(); ++i) {
    hidden.mutable_data_ptr<double>()[i] = Bf16ToFloat(states.values[i]);
  }
  return hidden;
}

// Rows of top-k or top-p against the true log-probabilities: the most likely ids, as many as the
// rule asks for, each within half a step of its level.
void ExpectTop(const TopTokenRows& rows, const at::Tensor& log_p, const TopRule& rule) {
  ASSERT_EQ(static_cast<int64_t>(rows.rows()), log_p.size(0));
  for (size_t r = 0; r < rows.rows(); ++r) {
    const at::Tensor row = log_p[static_cast<int64_t>(r)].contiguous();
    const double* truth = row.const_data_ptr<double>();
    const uint32_t first = rows.offsets[r], last = rows.offsets[r + 1];
    std::vector<bool> taken(kReal, false);
    double mass = 0, least = 0, least_mass = 1;
    for (uint32_t i = first; i < last; ++i) {
      const double value = truth[rows.ids[i]];
      EXPECT_NEAR(-LevelNats(rows.levels[i]), std::max(value, -19.75), 0.126);
      taken[static_cast<size_t>(rows.ids[i])] = true;
      mass += std::exp(value);
      least = std::min(least, value);
      least_mass = std::min(least_mass, std::exp(value));
    }
    for (uint32_t id = 0; id < kReal; ++id) {
      if (taken[id]) continue;
      EXPECT_LE(truth[id], least + 0.26);  // of one level at most
    }
    EXPECT_LE(last - first, rule.k);
    if (last - first < rule.k) {
      EXPECT_GE(mass, rule.p - 1e-5);
    }
    if (std::isfinite(rule.p) && last - first > 1) {
      EXPECT_LT(mass - least_mass, rule.p + 1e-3);  // the last is nearly the least
    }
  }
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
      for (const SectionRows& section : captured.sections) {
        ASSERT_EQ(RowCount(section), document.rows());
      }
      // Alone and unpadded: what the batch must not have changed.
      at::Tensor ids = at::empty({rows + 1}, at::kLong);
      for (int64_t t = 0; t <= rows; ++t) ids[t] = document.tokens[static_cast<size_t>(t)];
      std::vector<at::Tensor> layers;
      const auto hidden = ForwardHidden(weights, {ids, {rows + 1}},
                                        [&](int64_t, const at::Tensor&, const at::Tensor& out) {
                                          layers.push_back(out.clone());
                                        });
      ASSERT_TRUE(hidden.ok());
      const at::Tensor log_p =
          at::log_softmax(at::matmul(hidden->to(at::kDouble), weights.head.to(at::kDouble).t())
                              .narrow(0, 0, rows)
                              .narrow(1, 0, kReal),
                          -1);
      const at::Tensor entropy = -(log_p.exp() * log_p).sum(-1);
      for (int64_t t = 0; t < rows; ++t) {
        const size_t r = static_cast<size_t>(t);
        EXPECT_NEAR(StatsOf(captured).entropy[r], entropy[t].item<double>(), 2e-5);
        EXPECT_EQ(StatsOf(captured).top1_id[r], log_p[t].argmax().item<int64_t>());
        EXPECT_NEAR(StatsOf(captured).top1_logprob[r], log_p[t].max().item<double>(), 2e-5);
        EXPECT_NEAR(StatsOf(captured).next_logprob[r],
                    log_p[t][document.tokens[r + 1]].item<double>(), 5e-5);
      }
      for (const int32_t id : SampledOf(captured).ids) EXPECT_LT(id, static_cast<int32_t>(kReal));
      ExpectTop(std::get<TopTokenRows>(captured.sections[2]), log_p, {.k = 8});
      ExpectTop(std::get<TopTokenRows>(captured.sections[3]), log_p, {.k = 30, .p = 0.9});
      const auto off = [&](size_t section, const at::Tensor& states) {
        return (HiddenOf(captured, section) - states.narrow(0, 0, rows)).abs().max().item<double>();
      };
      EXPECT_LT(off(4, *hidden), 0.02);
      EXPECT_LT(off(5, layers[0]), 0.02);
      EXPECT_LT(off(6, layers[1]), 0.02);
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
    CaptureChunk(*b, *plan, 1, {kStats});
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
  const CaptureRequest request = Everything();
  for (size_t s = 0; s < request.size(); ++s) {
    const auto alone = CaptureChunk(*capturer, *plan, 0, {request[s]});
    ASSERT_EQ(alone.size(), all.size());
    for (size_t i = 0; i < all.size(); ++i) {
      EXPECT_EQ(*CanonicalValues(all[i].sections[s]), *CanonicalValues(alone[i].sections[0]));
    }
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
       {CaptureRequest{kStats}, CaptureRequest{kHidden}, CaptureRequest{kLayer0}}) {
    const auto result = capturer->Run(*plan, plan->chunk(0).batches[0], request, nullptr, [] {});
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(result.status().message(), HasSubstr("not finite"));
    EXPECT_THAT(result.status().message(), HasSubstr("document "));
  }
}

TEST(CaptureTest, RefusesWhatItCannotCapture) {
  const auto backend = MakeLocalBackend(LoudDecoder(at::kFloat));
  EXPECT_THAT(Capturer::Create(*backend, 98).status().message(), HasSubstr("head only 97"));
  SectionSpec wide = kHidden, deep = kLayer0;
  wide.hidden_size = 49;
  deep.layer = 2;
  EXPECT_THAT(MakeCaptureRequest({wide}, backend->config()).status().message(),
              HasSubstr("hidden size is 48"));
  EXPECT_THAT(MakeCaptureRequest({kStats, deep}, backend->config()).status().message(),
              HasSubstr("hidden/2?hidden_size=48&dtype=bf16: this teacher has 2 layers"));
  EXPECT_THAT(MakeCaptureRequest({kStats, kHidden, kStats}, backend->config()).status().message(),
              HasSubstr("stats is asked for twice"));
  EXPECT_TRUE(MakeCaptureRequest(Everything(), backend->config()).ok());
  auto capturer = Capturer::Create(*backend, 80);
  const auto plan = MakeTestPlan({.lengths = {12}});
  EXPECT_THAT(capturer->Run(*plan, plan->chunk(0).batches[0], Everything(), nullptr, [] {})
                  .status()
                  .message(),
              HasSubstr("the plan counts 90"));
}

TEST(CaptureTest, StatesTooLargeForInt8BlameTheDocument) {
  const auto plan = MakeTestPlan({.lengths = {12, 12}});
  DecoderWeights weights = LoudDecoder(at::kFloat);
  weights.embedding.mul_(1e37);  // the residual stream carries it past the limit
  const auto backend = MakeLocalBackend(weights);
  auto capturer = Capturer::Create(*backend, kReal);
  SectionSpec int8 = kLayer0;
  int8.dtype = HiddenDtype::kInt8;
  const auto batch = plan->chunk(0).batches[0];
  EXPECT_TRUE(capturer->Run(*plan, batch, {kLayer0}, nullptr, [] {}).ok());
  const auto refused = capturer->Run(*plan, batch, {int8}, nullptr, [] {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(refused.status().message(), HasSubstr("too large to store"));
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
      ASSERT_TRUE(capturer->Run(*plan, batch, {kStats}, &influence, [] {}).ok());
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
