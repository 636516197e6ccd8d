// Every kind of decoder against `transformers`: logits, gradients, bfloat16 and generation, from
// the files that tools/golden/decoders.py writes.
#include <cstdlib>
#include <string>

#include "ATen/ATen.h"
#include "absl/strings/match.h"
#include "c10/core/GradMode.h"
#include "common/file.h"
#include "formats/json.h"
#include "gtest/gtest.h"
#include "model/decoder.h"
#include "model/generate.h"
#include "tests/model/golden_file.h"

namespace stillhouse {
namespace {

using ::stillhouse::testing::ReadFloats;
using ::stillhouse::testing::ReadInts;

constexpr double kErrorMax = 1e-5;  // of logits and gradients in fp32, of the largest value
// A bfloat16 pass may be off by so many times what that of `transformers` is: both round in the
// same places, but sum in another order.
constexpr double kBf16Times = 2;

// `make parity` lets the test read files that it has just written.
std::string Folder() {
  const char* other = std::getenv("STILLHOUSE_GOLDEN_DECODERS");
  return other != nullptr ? other : SH_TEST_SOURCE_DIR "/tests/model/golden/decoders";
}

const Json& Golden() {
  static const Json* const kGolden = [] {
    const auto json = ReadJsonFile(JoinPath(Folder(), "configs.json"), 1 << 20);
    SH_CHECK_OK(json.status());
    return new Json(*json);
  }();
  return *kGolden;
}

std::vector<std::string> Cases() {
  std::vector<std::string> names;
  for (const auto& [name, ignored] : Golden()["cases"].items()) names.push_back(name);
  return names;
}

double Relative(const at::Tensor& value, const at::Tensor& expected) {
  return ((value - expected).abs().max() / expected.abs().max()).item<double>();
}

class DecodersGoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    case_ = Golden()["cases"][GetParam()];
    const auto config = ParseConfigJson(case_["transformers5"].dump(), "transformers5");
    ASSERT_TRUE(config.ok()) << config.status();
    config_ = *config;
    const auto file = SafetensorsFile::Open(
        JoinPath(Folder(), case_["weights"].get<std::string>() + ".safetensors"));
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *file;
    ids_ = ReadInts(*file_, "ids");
    positions_ = ReadInts(*file_, "positions");
    logits_ = ReadFloats(*file_, GetParam() + "/logits");
  }

  DecoderWeights Load(at::ScalarType dtype, bool trains) const {
    auto weights = BindDecoder(
        config_, [&](const ModelConfig::Parameter& parameter) -> absl::StatusOr<at::Tensor> {
          at::Tensor tensor = ReadFloats(*file_, parameter.name).to(dtype);
          tensor.requires_grad_(trains);
          return tensor;
        });
    SH_CHECK_OK(weights.status());
    return *std::move(weights);
  }
  at::Tensor Hidden(const DecoderWeights& weights) const {
    auto hidden = ForwardHidden(weights, {ids_, {ids_.size(0)}});
    SH_CHECK_OK(hidden.status());
    return *std::move(hidden);
  }

  Json case_;
  ModelConfig config_;
  std::shared_ptr<const SafetensorsFile> file_;
  at::Tensor ids_, positions_, logits_;
};

TEST_P(DecodersGoldenTest, BothDialectsAndOurOwnMeanTheSame) {
  if (case_.contains("transformers4")) {  // `make parity` has no transformers 4
    const auto four = ParseConfigJson(case_["transformers4"].dump(), "transformers4");
    ASSERT_TRUE(four.ok()) << four.status();
    EXPECT_EQ(*four, config_);
  }
  const auto ours = ParseConfigJson(ConfigToJson(config_), "ours");
  ASSERT_TRUE(ours.ok()) << ours.status();
  EXPECT_EQ(*ours, config_);
}

// Each dialect's reader finds in ours the value that its own writer wrote, but for a key that the
// reader derives.
TEST_P(DecodersGoldenTest, OurConfigHasWhatTransformersWrites) {
  const Json ours = *ParseJson(ConfigToJson(config_), "ours");
  for (const char* dialect : {"transformers5", "transformers4"}) {
    if (!case_.contains(dialect)) continue;
    for (const auto& [key, value] : case_[dialect].items()) {
      if (absl::StartsWith(key, "rope_") || key == "max_window_layers") continue;
      EXPECT_EQ(ours.contains(key) ? ours[key] : Json("missing"), value) << dialect << " " << key;
    }
  }
}

TEST_P(DecodersGoldenTest, LogitsAndGradients) {
  const DecoderWeights weights = Load(at::kFloat, /*trains=*/true);
  const at::Tensor logits = at::matmul(Hidden(weights), HeadWeight(weights).t());
  const at::Tensor got = logits.detach().index({positions_});
  EXPECT_LT(Relative(got, logits_), kErrorMax);
  const int64_t real = Golden()["real"].get<int64_t>(), last = ids_.size(0) - 1;
  at::cross_entropy_loss(logits.narrow(0, 0, last).narrow(1, 0, real), ids_.narrow(0, 1, last))
      .backward();
  int compared = 0;
  double worst = 0;
  for (const NamedTensor& named : weights.Named()) {
    ASSERT_TRUE(named.tensor.grad().defined()) << named.name;
    const std::string name = GetParam() + "/grad/" + named.name;
    if (file_->Find(name) == nullptr) continue;
    const double error = Relative(named.tensor.grad(), ReadFloats(*file_, name));
    EXPECT_LT(error, kErrorMax) << named.name;
    worst = std::max(worst, error);
    ++compared;
  }
  EXPECT_GE(compared, 4);
  std::printf("[ measured ] %s: logits %.1e, worst of %d gradients %.1e\n", GetParam().c_str(),
              Relative(got, logits_), compared, worst);
}

TEST_P(DecodersGoldenTest, Bf16IsAsCloseAsThatOfTransformers) {
  const c10::NoGradGuard no_grad;
  const DecoderWeights weights = Load(at::kBFloat16, /*trains=*/false);
  const at::Tensor logits = at::matmul(Hidden(weights), HeadWeight(weights).t());
  const double error = Relative(logits.index({positions_}).to(at::kFloat), logits_);
  const double theirs = case_["bf16_error"].get<double>();
  EXPECT_LT(error, kBf16Times * theirs);
  std::printf("[ measured ] %s: bf16 %.1e, transformers %.1e\n", GetParam().c_str(), error, theirs);
}

// Token by token, and packed between other documents: the same as one pass.
TEST_P(DecodersGoldenTest, GenerationAndPackingSeeTheSameLogits) {
  const c10::NoGradGuard no_grad;
  const DecoderWeights weights = Load(at::kFloat, /*trains=*/false);
  auto decoding = Decoding::Create(weights, ids_.size(0));
  ASSERT_TRUE(decoding.ok()) << decoding.status();
  for (int64_t row = 0; row < positions_.size(0); ++row) {
    std::vector<int32_t> next;
    for (int64_t t = decoding->tokens(); t <= positions_[row].item<int64_t>(); ++t) {
      next.push_back(ids_[t].item<int32_t>());
    }
    const auto logits = decoding->Extend(next);
    ASSERT_TRUE(logits.ok()) << logits.status();
    // Dynamic RoPE turns a shorter text otherwise; only the whole one is in the file.
    const bool whole = row + 1 == positions_.size(0);
    if (config_.rope.kind == RopeScaling::Kind::kDynamic && !whole) continue;
    EXPECT_LT(Relative(at::tensor(*logits), logits_[row]), 2 * kErrorMax) << row;
  }
  const DecoderBatch packed{at::cat({ids_.narrow(0, 3, 21), ids_, ids_, ids_.narrow(0, 1, 5)}),
                            {21, ids_.size(0), ids_.size(0), 5}};
  const auto hidden = ForwardHidden(weights, packed);
  ASSERT_TRUE(hidden.ok()) << hidden.status();
  const at::Tensor second = hidden->narrow(0, 21 + ids_.size(0), ids_.size(0)).index({positions_});
  EXPECT_LT(Relative(at::matmul(second, HeadWeight(weights).t()), logits_), kErrorMax);
}

INSTANTIATE_TEST_SUITE_P(Decoders, DecodersGoldenTest, ::testing::ValuesIn(Cases()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace stillhouse
