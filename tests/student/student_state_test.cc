#include "student/student_state.h"

#include <cmath>

#include "common/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/student/small_student.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(BlockInfluenceTest, KeepsTheHighestInOrderAndTheLowerIndexOfEquals) {
  EXPECT_THAT(LayersOfHighestInfluence({0.5, 0.1, 0.3, 0.3, 0.9}, 3), ElementsAre(0, 2, 4));
  EXPECT_THAT(LayersOfHighestInfluence({1, 1, 1}, 2), ElementsAre(0, 1));
}

TEST(BlockInfluenceTest, RefusesWhatIsNotOneNumberPerLayer) {
  const auto good = ParseInfluence(R"({"influence": [0.5, 1e-3], "rows": 7})", 2);
  ASSERT_TRUE(good.ok());
  EXPECT_THAT(*good, ElementsAre(0.5, 1e-3));
  for (const absl::string_view bad :
       {"", "[]", "{}", R"({"influence": 3})", R"({"influence": [1]})",
        R"({"influence": [1, "a"]})", R"({"influence": [1, null]})"}) {
    EXPECT_EQ(ParseInfluence(bad, 2).status().code(), absl::StatusCode::kDataLoss) << bad;
  }
}

TEST(ResolveShapeTest, ListsKeepsAndCounts) {
  ModelConfig teacher = SmallConfig(true);
  teacher.layers = 5;
  StudentRecipe student;
  student.name = "s";
  student.init.layers = {0, 3, 4};
  auto shape = ResolveShape(student, teacher, {});
  ASSERT_TRUE(shape.ok());
  EXPECT_EQ(shape->config.layers, 3);
  EXPECT_EQ(shape->config.dtype, "bfloat16");
  EXPECT_THAT(shape->teacher_layers, ElementsAre(0, 3, 4));

  student.init.layers.clear();
  student.init.keep = 2;
  EXPECT_TRUE(NeedsInfluence(student.init));
  shape = ResolveShape(student, teacher, {1, 5, 2, 3, 4});
  ASSERT_TRUE(shape.ok());
  EXPECT_THAT(shape->teacher_layers, ElementsAre(1, 4));

  student.init.from = InitRecipe::From::kScratch;
  EXPECT_FALSE(NeedsInfluence(student.init));
  shape = ResolveShape(student, teacher, {});
  ASSERT_TRUE(shape.ok());
  EXPECT_EQ(shape->config.layers, 2);
  EXPECT_TRUE(shape->teacher_layers.empty());
}

TEST(ResolveShapeTest, KeptLayersKeepTheirWindows) {
  StudentRecipe student;
  student.init.layers = {1};
  const auto shape = ResolveShape(student, SmallVariant("qwen2"), {});
  ASSERT_TRUE(shape.ok()) << shape.status();
  EXPECT_EQ(shape->config.WindowOf(0), 5);
  student.init.layers = {0};
  EXPECT_EQ(ResolveShape(student, SmallVariant("qwen2"), {})->config.sliding_window, 0);
}

TEST(ResolveShapeTest, RefusesLayersThatTheTeacherLacks) {
  StudentRecipe student;
  student.name = "s";
  student.init.layers = {0, 2};
  const auto shape = ResolveShape(student, SmallConfig(true), {});
  EXPECT_EQ(shape.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(shape.status().message()), HasSubstr("names layer 2"));
  student.init.layers.clear();
  student.init.keep = 3;
  EXPECT_EQ(ResolveShape(student, SmallConfig(true), {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// A teacher whose tensors hold a constant that tells the layer.
class ConstantWeights final : public Weights {
 public:
  explicit ConstantWeights(const ModelConfig& config) {
    for (const ModelConfig::Parameter& parameter : config.Parameters()) {
      infos_.push_back({parameter.name, "F32", parameter.shape});
    }
  }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  const TensorInfo* Find(absl::string_view name) const override {
    for (const TensorInfo& info : infos_) {
      if (info.name == name) return &info;
    }
    return nullptr;
  }
  absl::Status ReadRowsF32(absl::string_view name, int64_t, absl::Span<float> out) const override {
    float value = -1;
    for (int layer = 0; layer < 9; ++layer) {
      const std::string prefix = absl::StrCat("model.layers.", layer, ".");
      if (name.substr(0, prefix.size()) == prefix) value = static_cast<float>(layer);
    }
    std::fill(out.begin(), out.end(), value);
    return absl::OkStatus();
  }
  absl::Status CopyRows(absl::string_view, int64_t, absl::Span<char>) const override {
    return absl::UnimplementedError("not read");
  }
  absl::StatusOr<absl::string_view> RawBytes(absl::string_view) const override {
    return absl::UnimplementedError("not read");
  }

 private:
  std::vector<TensorInfo> infos_;
};

TEST(InitialiseMastersTest, TakesTheKeptLayersOfTheTeacher) {
  ModelConfig teacher = SmallConfig(true);
  teacher.layers = 5;
  StudentRecipe student;
  student.init.layers = {1, 4};
  const auto shape = ResolveShape(student, teacher, {});
  ASSERT_TRUE(shape.ok());
  StudentState state(shape->config, DType::kBF16);
  ASSERT_TRUE(InitialiseMasters(*shape, ConstantWeights(teacher), 0, &state).ok());
  for (const FlatParameter& parameter : state.layout.parameters()) {
    float wanted = -1;
    if (parameter.name.find("layers.0.") != std::string::npos) wanted = 1;
    if (parameter.name.find("layers.1.") != std::string::npos) wanted = 4;
    for (size_t i = 0; i < parameter.count; ++i) {
      ASSERT_EQ(state.masters.data()[parameter.offset + i], wanted) << parameter.name;
      ASSERT_EQ(Bf16ToFloat(state.weights.data()[parameter.offset + i]), wanted);
    }
  }
}

TEST(InitialiseMastersTest, FromScratchIsAFunctionOfTheSeed) {
  StudentShape shape;
  shape.config = SmallConfig(true);
  const ConstantWeights unused(shape.config);
  StudentState a(shape.config, DType::kF32), b(shape.config, DType::kF32),
      c(shape.config, DType::kF32);
  ASSERT_TRUE(InitialiseMasters(shape, unused, 1, &a).ok());
  ASSERT_TRUE(InitialiseMasters(shape, unused, 1, &b).ok());
  ASSERT_TRUE(InitialiseMasters(shape, unused, 2, &c).ok());
  EXPECT_TRUE(
      std::equal(a.masters.span().begin(), a.masters.span().end(), b.masters.span().begin()));
  EXPECT_FALSE(
      std::equal(a.masters.span().begin(), a.masters.span().end(), c.masters.span().begin()));
  const FlatParameter* norm = a.layout.Find("model.norm.weight");
  EXPECT_EQ(a.masters.data()[norm->offset], 1.0f);
  const FlatParameter* embedding = a.layout.Find("model.embed_tokens.weight");
  double squares = 0;
  for (size_t i = 0; i < embedding->count; ++i) {
    squares += std::pow(a.masters.data()[embedding->offset + i], 2);
  }
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(embedding->count)), 0.02, 0.002);
}

TEST(InitialiseMastersTest, FromScratchBiasesAreZeroAndNormsOne) {
  StudentShape shape;
  shape.config = SmallVariant("qwen3");
  StudentState state(shape.config, DType::kF32);
  ASSERT_TRUE(InitialiseMasters(shape, ConstantWeights(shape.config), 1, &state).ok());
  const auto first = [&](const std::string& name) {
    return state.masters.data()[state.layout.Find("model.layers.1.self_attn." + name)->offset];
  };
  EXPECT_EQ(first("k_proj.bias"), 0.0f);
  EXPECT_EQ(first("o_proj.bias"), 0.0f);
  EXPECT_EQ(first("k_norm.weight"), 1.0f);
}

}  // namespace
}  // namespace stillhouse
