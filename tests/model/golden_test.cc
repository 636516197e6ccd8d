// Logits against those of `transformers`, written by tools/golden/*.py.
#include <cmath>
#include <string>

#include "ATen/ATen.h"
#include "absl/strings/str_cat.h"
#include "c10/core/GradMode.h"
#include "common/file.h"
#include "common/status.h"
#include "gtest/gtest.h"
#include "model/decoder.h"
#include "tests/model/golden_file.h"

namespace stillhouse {
namespace {

using ::stillhouse::testing::ReadFloats;
using ::stillhouse::testing::ReadInts;

// Largest difference over the largest logit, for every prompt of the golden file.
void ExpectGoldenLogits(const std::string& model, const std::string& golden, double tolerance) {
  const c10::NoGradGuard no_grad;
  const auto files = OpenModelFiles(model);
  ASSERT_TRUE(files.ok()) << files.status();
  const auto weights = LoadDecoder(*files, at::kFloat);
  ASSERT_TRUE(weights.ok()) << weights.status();
  const auto expected = SafetensorsFile::Open(golden);
  ASSERT_TRUE(expected.ok()) << expected.status();
  int prompts = 0;
  for (; (*expected)->Find(absl::StrCat("ids.", prompts)) != nullptr; ++prompts) {
    at::Tensor ids = ReadInts(**expected, absl::StrCat("ids.", prompts)).flatten();
    const auto hidden = ForwardHidden(*weights, {ids, {ids.size(0)}});
    ASSERT_TRUE(hidden.ok()) << hidden.status();
    at::Tensor states = *hidden;
    const std::string positions = absl::StrCat("positions.", prompts);
    if ((*expected)->Find(positions) != nullptr) {
      states = states.index({ReadInts(**expected, positions)});
    }
    const at::Tensor want = ReadFloats(**expected, absl::StrCat("logits.", prompts));
    const at::Tensor got = at::matmul(states, HeadWeight(*weights).t()).reshape(want.sizes());
    const double error = ((got - want).abs().max() / want.abs().max()).item<double>();
    EXPECT_LT(error, tolerance) << "prompt " << prompts;
  }
  EXPECT_GT(prompts, 0);
}

TEST(GoldenTest, TinyLlama) {
  const std::string folder = SH_TEST_SOURCE_DIR "/tests/model/golden/tiny_llama";
  ExpectGoldenLogits(folder, folder + "/logits.safetensors", 1e-5);
}

// Caches are keyed by these: they must outlive every change to what a config can say.
TEST(GoldenTest, FingerprintsStayAsTheyWere) {
  const auto fingerprint = [](const std::string& path) {
    const auto files = OpenModelFiles(path);
    SH_CHECK_OK(files.status());
    return TeacherFingerprint(*files, /*memo_folder=*/"")->Hex();
  };
  EXPECT_EQ(fingerprint(SH_TEST_SOURCE_DIR "/tests/model/golden/tiny_llama"),
            "6b9c8c5b29dbf38f343f4d5e482bca4435d36f7bf818331a5bb99946ca477c4d");
  const std::string smollm2 = SH_TEST_DEPS_DIR "/teacher/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!PathExists(smollm2)) GTEST_SKIP() << smollm2 << " is not there: run `make deps`";
  EXPECT_EQ(fingerprint(smollm2),
            "bb3fbfecec66c967805fb07fe50308c569b95ddbd1d9ea0bfb48cd76bb32f1cc");
}

TEST(GoldenTest, SmolLm2) {
  const std::string model = SH_TEST_DEPS_DIR "/teacher/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!PathExists(model)) GTEST_SKIP() << model << " is not there: run `make deps`";
  ExpectGoldenLogits(model, SH_TEST_SOURCE_DIR "/tests/model/golden/smollm2_logits.safetensors",
                     1e-5);
}

}  // namespace
}  // namespace stillhouse
