// How a student makes gradients: packed as unpacked, document by document, and against differences.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "gtest/gtest.h"
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
  size_t next = 0;
  student.zero2->BeginStep();
  for (const size_t size : GroupDocuments(rows, micro_rows, packed)) {
    const MicroBatch batch =
        MakeMicroBatch(plan, absl::MakeConstSpan(documents).subspan(next, size), packed);
    next += size;
    std::vector<std::vector<float>> values;
    student.zero2->BeginMicroBatch();
    const absl::Status status =
        student.model->AddGradients(batch, coefficients, *student.zero2, &values);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(student.zero2->EndMicroBatch().ok());
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

// Passes everything on, and notes in which order parameters are begun and ready.
class Recorder final : public GradientSink {
 public:
  explicit Recorder(Zero2& below) : below_(below) {}
  absl::StatusOr<GradientPlace> Begin(size_t parameter) override {
    begun.push_back(parameter);
    return below_.Begin(parameter);
  }
  absl::Status Ready(size_t parameter) override {
    ready.push_back(parameter);
    begun_before_ready.push_back(begun.size());
    return below_.Ready(parameter);
  }
  absl::Status AwaitWeights(size_t parameter) override {
    EXPECT_TRUE(begun.empty());
    awaited.push_back(parameter);
    return below_.AwaitWeights(parameter);
  }
  std::vector<size_t> begun, ready, begun_before_ready, awaited;

 private:
  Zero2& below_;
};

TEST_P(GradientTest, EachGradientIsReadyAsSoonAsItIsMade) {
  const auto plan = MakeTestPlan({});
  const std::vector<LossTerm> terms = AllTerms();
  SmallStudent student(terms, ConfigOf(GetParam()), DType::kF32);
  const MicroBatch batch = MakeMicroBatch(*plan, SomeDocuments(*plan, 3), true);
  student.zero2->BeginStep();
  student.zero2->BeginMicroBatch();
  Recorder recorder(*student.zero2);
  std::vector<std::vector<float>> values;
  ASSERT_TRUE(student.model->AddGradients(batch, {0.1, 0.1, 0.1}, recorder, &values).ok());
  ASSERT_TRUE(student.zero2->EndMicroBatch().ok());
  const std::vector<FlatParameter>& parameters = student.state->layout.parameters();
  EXPECT_EQ(recorder.awaited.size(), parameters.size());
  std::vector<size_t> sorted = recorder.ready;
  std::sort(sorted.begin(), sorted.end());
  std::vector<size_t> all(parameters.size());
  std::iota(all.begin(), all.end(), size_t{0});
  EXPECT_EQ(sorted, all);
  EXPECT_EQ(recorder.ready.back(), parameters.size() - 1);  // the embedding, tied or not
  // While the first layer's gradients are not begun yet, the second layer's are ready.
  for (size_t i = 0; i < recorder.ready.size(); ++i) {
    const bool second = parameters[recorder.ready[i]].name.find("layers.1.") != std::string::npos;
    for (size_t j = 0; second && j < recorder.begun_before_ready[i]; ++j) {
      EXPECT_EQ(parameters[recorder.begun[j]].name.find("layers.0."), std::string::npos);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, GradientTest,
                         testing::Values("tied", "untied", "llama", "qwen2", "qwen3", "mistral"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace stillhouse
