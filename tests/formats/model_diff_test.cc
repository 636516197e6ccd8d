#include "formats/model_diff.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "absl/strings/str_replace.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"
#include "tests/formats/model_folder_test.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

class ModelDiffTest : public ModelFolderTest {
 protected:
  ModelDifference Diff(const ModelFiles& a, const ModelFiles& b) {
    auto difference = DiffModels(a, b);
    SH_CHECK_OK(difference);
    return *std::move(difference);
  }
  static const TensorDifference& Of(const ModelDifference& difference, const std::string& name) {
    for (const TensorDifference& tensor : difference.tensors) {
      if (tensor.name == name) return tensor;
    }
    SH_CHECK(false, name);
    return difference.tensors.front();
  }
  // The model with other values in one tensor.
  ModelFiles With(const std::string& name, const ModelFiles& model, const std::string& tensor,
                  const std::function<void(absl::Span<float>)>& change) {
    auto tensors = *TensorsToWrite(model.weights, "F32");
    for (TensorToWrite& one : tensors) {
      if (one.name != tensor) continue;
      one.read_rows = nullptr;
      one.read = [&](absl::Span<float> out) {
        SH_CHECK_OK(model.weights->ReadF32(tensor, out));
        change(out);
        return absl::OkStatus();
      };
    }
    SH_CHECK_OK(WriteHuggingFaceFolder(Path(name), model.config, *model.tokenizer, tensors));
    return Open(Path(name));
  }
};

TEST_F(ModelDiffTest, AModelIsItselfInEveryForm) {
  const ModelFiles a = Tiny("a");
  ASSERT_TRUE(WriteTinyGguf(Path("a.gguf")).ok());
  for (const ModelFiles& b : {Open(Path("a")), Open(Path("a.gguf"))}) {
    const ModelDifference same = Diff(a, b);
    EXPECT_TRUE(same.Same(0));
    EXPECT_EQ(same.tensors.size(), a.config.Parameters().size());
    EXPECT_EQ(same.Overall().count, a.config.ParameterCount());
    EXPECT_EQ(same.Overall().max, 0);
  }
}

TEST_F(ModelDiffTest, MeasuresEachTensorAndAll) {
  const ModelFiles a = Tiny("a");
  const std::string name = "model.layers.1.mlp.down_proj.weight";
  const ModelFiles b = With("b", a, name, [](absl::Span<float> values) {
    values[5] += 0.5f;
    values[values.size() - 1] -= 0.25f;
  });
  const ModelDifference difference = Diff(a, b);
  const TensorDifference& tensor = Of(difference, name);
  EXPECT_EQ(tensor.count, 64 * 128);
  EXPECT_NEAR(tensor.max, 0.5, 1e-6);
  EXPECT_NEAR(tensor.Rms(), std::sqrt((0.25 + 0.0625) / (64 * 128)), 1e-7);
  EXPECT_NEAR(difference.Overall().max, 0.5, 1e-6);
  EXPECT_NEAR(difference.Overall().Rms(), std::sqrt(0.3125 / a.config.ParameterCount()), 1e-7);
  EXPECT_EQ(Of(difference, "model.norm.weight").max, 0);
  EXPECT_FALSE(difference.Same(0));
  EXPECT_FALSE(difference.Same(0.4));
  EXPECT_TRUE(difference.Same(0.6));
}

TEST_F(ModelDiffTest, ValuesThatAreNoNumbersAreCounted) {
  const ModelFiles a = Tiny("a");
  const auto spoil = [](absl::Span<float> values) {
    values[0] = std::numeric_limits<float>::quiet_NaN();
    values[1] = std::numeric_limits<float>::infinity();
  };
  const ModelFiles b = With("b", a, "model.norm.weight", spoil);
  const ModelDifference difference = Diff(a, b);
  EXPECT_EQ(Of(difference, "model.norm.weight").not_finite, 2);
  EXPECT_EQ(Of(difference, "model.norm.weight").max, 0);
  EXPECT_FALSE(difference.Same(1e9));
  EXPECT_TRUE(Diff(b, With("c", a, "model.norm.weight", spoil)).Same(0));
}

TEST_F(ModelDiffTest, NamesMissingExtraAndOtherShapes) {
  TinyModelOptions options;
  const ModelFiles a = Tiny("a", options);
  options.layers = 1;
  options.intermediate = 96;
  options.tie_embeddings = false;
  const ModelFiles b = Tiny("b", options);
  const ModelDifference difference = Diff(a, b);
  EXPECT_FALSE(difference.Same(1e9));
  EXPECT_EQ(Of(difference, "model.layers.1.input_layernorm.weight").dtype_b, "");
  EXPECT_EQ(Of(difference, "lm_head.weight").dtype_a, "");
  const TensorDifference& other = Of(difference, "model.layers.0.mlp.up_proj.weight");
  EXPECT_TRUE(other.InBoth() && !other.Comparable());
  EXPECT_EQ(other.count, 0);
  std::vector<std::string> fields;
  for (const FieldDifference& field : difference.architecture) fields.push_back(field.field);
  EXPECT_THAT(fields, ::testing::ElementsAre("intermediate_size", "num_hidden_layers",
                                             "tie_word_embeddings"));
}

TEST_F(ModelDiffTest, NamesTheFirstTokenThatDiffers) {
  const ModelFiles a = Tiny("a");
  const auto with = [&](const std::string& name, const std::string& from, const std::string& to) {
    Tiny(name);
    std::string json = TinyTokenizerJson();
    SH_CHECK(absl::StrReplaceAll({{from, to}}, &json) > 0, from);
    SH_CHECK_OK(WriteFileAtomically(Path(name + "/tokenizer.json"), json));
    return Diff(a, Open(Path(name))).tokenizer;
  };
  EXPECT_EQ(with("b", "<|im_start|>", "<|im_begin|>"),
            "id 297 is \"<|im_start|>\" in A and \"<|im_begin|>\" in B");
  EXPECT_THAT(with("c", "\"individual_digits\": true", "\"individual_digits\": false"),
              HasSubstr("cut or merged in another way"));
}

}  // namespace
}  // namespace stillhouse
