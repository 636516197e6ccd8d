// How a student makes gradients: packed as unpacked, document by document, and against differences.

#include <cmath>
#include <numeric>

#include "gtest/gtest.h"
#include "student/data_cursor.h"
#include "student/run_stop.h"
#include "tests/student/fakes.h"
#include "tests/student/small_student.h"

namespace stillhouse {
namespace {

std::vector<LossTerm> AllTerms() {
  return {{LossKind::kSampledKl, 1, 0.6},
          {LossKind::kCrossEntropy, 1, 0.1},
          {LossKind::kExactKl, 2, 0.3}};
}

struct Gradient {
  double loss = 0;
  std::vector<float> values;
  std::vector<std::vector<float>> rows;  // [term][row], document by document
};

// The gradient of the weighted mean over all counted rows, made in the micro-batches that a step
// makes.
Gradient Solve(SmallStudent& student, const std::vector<LossTerm>& terms, const Plan& plan,
               const std::vector<DocumentTargets>& documents, uint64_t micro_rows, bool packed) {
  std::vector<uint32_t> rows;
  double counted = 0;
  for (const DocumentTargets& document : documents) {
    rows.push_back(plan.document(document.document).rows());
    counted += static_cast<double>(CountedRows(plan.document(document.document)));
  }
  std::vector<double> coefficients;
  for (const LossTerm& term : terms) coefficients.push_back(term.weight / counted);
  Gradient gradient;
  gradient.rows.resize(terms.size());
  bool first = true;
  size_t next = 0;
  for (const size_t size : GroupDocuments(rows, micro_rows, packed)) {
    const MicroBatch batch =
        MakeMicroBatch(plan, absl::MakeConstSpan(documents).subspan(next, size), packed);
    next += size;
    std::vector<std::vector<float>> values;
    const absl::Status status = student.model->AddGradients(
        batch, coefficients, first, student.state->gradients.span(), &values);
    EXPECT_TRUE(status.ok()) << status;
    first = false;
    for (size_t k = 0; k < terms.size(); ++k) {
      for (const float value : values[k]) {
        gradient.loss += coefficients[k] * value;
        gradient.rows[k].push_back(value);
      }
    }
  }
  gradient.values.assign(student.state->gradients.span().begin(),
                         student.state->gradients.span().end());
  return gradient;
}

std::vector<DocumentTargets> SomeDocuments(const Plan& plan, uint32_t count) {
  const TestTeacher teacher;
  std::vector<DocumentTargets> documents;
  for (uint32_t d = 0; d < count; ++d) documents.push_back(teacher.Targets(plan, d));
  return documents;
}

double WorstShare(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0, largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - b[i]));
    largest = std::max(largest, std::abs(static_cast<double>(b[i])));
  }
  return worst / largest;
}

ModelConfig ConfigOf(const std::string& kind) {
  return kind == "tied" || kind == "untied" ? SmallConfig(kind == "tied") : SmallVariant(kind);
}

class GradientTest : public testing::TestWithParam<std::string> {};

TEST_P(GradientTest, PackedEqualsUnpackedEqualsOneByOne) {
  for (const bool masked : {false, true}) {
    const auto plan = MakeTestPlan({.masked = masked});
    const std::vector<DocumentTargets> documents = SomeDocuments(*plan, 9);
    const std::vector<LossTerm> terms = AllTerms();
    SmallStudent student(terms, ConfigOf(GetParam()), DType::kF32);
    const Gradient single = Solve(student, terms, *plan, documents, 20, true);
    for (const bool packed : {true, false}) {
      for (const uint64_t micro_rows : {40u, 1000u}) {
        const Gradient other = Solve(student, terms, *plan, documents, micro_rows, packed);
        EXPECT_NEAR(other.loss, single.loss, 1e-6) << packed << " " << micro_rows;
        EXPECT_LT(WorstShare(other.values, single.values), 1e-5) << packed << " " << micro_rows;
      }
    }
  }
}

TEST_P(GradientTest, ANeighbourChangesNothingOfADocumentsLoss) {
  const auto plan = MakeTestPlan({.documents = 12, .rows_min = 15, .rows_max = 15});
  const TestTeacher teacher;
  const std::vector<LossTerm> terms = AllTerms();
  SmallStudent student(terms, ConfigOf(GetParam()), DType::kF32);
  const auto rows_with = [&](uint32_t middle) {
    const std::vector<DocumentTargets> documents = {
        teacher.Targets(*plan, 0), teacher.Targets(*plan, middle), teacher.Targets(*plan, 2)};
    return Solve(student, terms, *plan, documents, 1000, true).rows;
  };
  const auto before = rows_with(1), after = rows_with(7);
  for (size_t k = 0; k < terms.size(); ++k) {
    for (size_t row = 0; row < 45; ++row) {
      if (row >= 15 && row < 30) continue;
      EXPECT_EQ(before[k][row], after[k][row]) << k << " " << row;
    }
    EXPECT_NE(before[k][20], after[k][20]);
  }
}

TEST_P(GradientTest, PointsWhereTheLossGrows) {
  const auto plan = MakeTestPlan({.masked = true});
  const std::vector<DocumentTargets> documents = SomeDocuments(*plan, 5);
  const std::vector<LossTerm> terms = AllTerms();
  SmallStudent student(terms, ConfigOf(GetParam()), DType::kF32);
  const Gradient gradient = Solve(student, terms, *plan, documents, 1000, true);
  // Along each parameter's own gradient, the loss changes by its squared length.
  for (const FlatParameter& parameter : student.state->layout.parameters()) {
    float* values = student.state->masters.data() + parameter.offset;
    const std::vector<float> before(values, values + parameter.count);
    double squares = 0;
    for (size_t i = 0; i < parameter.count; ++i) {
      const double g = gradient.values[parameter.offset + i];
      squares += g * g;
    }
    ASSERT_GT(squares, 0) << parameter.name;
    const double step = 2e-3 / std::sqrt(squares);
    double losses[2];
    for (const int side : {0, 1}) {
      for (size_t i = 0; i < parameter.count; ++i) {
        const double g = gradient.values[parameter.offset + i];
        values[i] = static_cast<float>(before[i] + (side == 0 ? step : -step) * g);
      }
      losses[side] = Solve(student, terms, *plan, documents, 1000, true).loss;
    }
    std::copy(before.begin(), before.end(), values);
    const double slope = (losses[0] - losses[1]) / (2 * step);
    EXPECT_NEAR(slope, squares, squares * 0.01) << parameter.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, GradientTest,
                         testing::Values("tied", "untied", "llama", "qwen2", "qwen3", "mistral"),
                         [](const auto& test) { return test.param; });

TEST(StepperTest, LowersTheLossAndRepeatsBitForBit) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    const auto plan = MakeTestPlan({});
    StudentRecipe recipe = SmallRecipe();
    recipe.steps = 30;
    const std::vector<LossTerm> terms = {{LossKind::kCrossEntropy, 1, 1}};
    const TestTeacher teacher;
    std::vector<float> masters[2];
    for (std::vector<float>& result : masters) {
      SmallStudent student(terms, SmallConfig(true), compute);
      Stepper stepper(recipe, terms, *student.model, *student.state);
      DataCursor cursor(plan, 1);
      double first = 0, last = 0;
      for (uint64_t step = 1; step <= 30; ++step) {
        std::vector<DocumentTargets> documents;
        for (const uint32_t d : TakeStep(*plan, cursor, 60)) {
          documents.push_back(teacher.Targets(*plan, d));
        }
        auto metrics = stepper.Step(*plan, documents, step, [] { return absl::OkStatus(); });
        ASSERT_TRUE(metrics.ok()) << metrics.status();
        if (step == 1) first = metrics->loss;
        last = metrics->loss;
      }
      EXPECT_LT(last, first - 0.5);
      result.assign(student.state->masters.span().begin(), student.state->masters.span().end());
    }
    EXPECT_EQ(masters[0], masters[1]);
  }
}

TEST(StepperTest, ANonFiniteLossStopsTheRunAndChangesNothing) {
  const auto plan = MakeTestPlan({});
  const std::vector<LossTerm> terms = {{LossKind::kCrossEntropy, 1, 1}};
  SmallStudent student(terms, SmallConfig(true), DType::kF32);
  const FlatParameter* norm = student.state->layout.Find("model.norm.weight");
  student.state->masters.data()[norm->offset] = std::nanf("");
  const std::vector<float> before(student.state->first.span().begin(),
                                  student.state->first.span().end());
  Stepper stepper(SmallRecipe(), terms, *student.model, *student.state);
  const auto metrics =
      stepper.Step(*plan, SomeDocuments(*plan, 3), 1, [] { return absl::OkStatus(); });
  EXPECT_EQ(StopOf(metrics.status()), RunStop::kDiverged);
  EXPECT_EQ(before, std::vector<float>(student.state->first.span().begin(),
                                       student.state->first.span().end()));
}

}  // namespace
}  // namespace stillhouse
