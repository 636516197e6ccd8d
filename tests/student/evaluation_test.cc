#include "student/evaluation.h"

#include <cmath>

#include "ATen/ops/empty.h"
#include "common/random.h"
#include "common/tensor_view.h"
#include "gtest/gtest.h"
#include "tests/student/fakes.h"
#include "tests/student/small_student.h"

namespace stillhouse {
namespace {

constexpr int64_t kVocabulary = 53;

at::Tensor Head() {
  at::Tensor head = at::empty({57, 12}, at::TensorOptions().dtype(at::kFloat));
  RandomStream random(5);
  for (int64_t i = 0; i < head.numel(); ++i) {
    head.mutable_data_ptr<float>()[i] = static_cast<float>(random.NextNormal());
  }
  return head;
}

using Row = std::vector<double>;

Row LogProbabilities(const double* hidden, int64_t width, const at::Tensor& head) {
  const at::Tensor w = head.to(at::kDouble).contiguous();
  Row z(kVocabulary);
  double sum = 0;
  for (int64_t j = 0; j < kVocabulary; ++j) {
    for (int64_t k = 0; k < width; ++k)
      z[j] += hidden[k] * w.const_data_ptr<double>()[j * width + k];
    sum += std::exp(z[j]);
  }
  for (double& value : z) value -= std::log(sum);
  return z;
}

struct Means {
  double rows = 0, nll = 0, teacher_nll = 0, kl = 0, jsd = 0, agreement = 0;
};

void AddRow(const Row& p, const Row& q, int32_t label, Means* means) {
  means->rows += 1;
  means->nll -= p[label];
  means->teacher_nll -= q[label];
  size_t p_best = 0, q_best = 0;
  for (size_t j = 0; j < p.size(); ++j) {
    means->kl += std::exp(q[j]) * (q[j] - p[j]);
    const double m = std::log(0.5 * (std::exp(p[j]) + std::exp(q[j])));
    means->jsd += 0.5 * (std::exp(q[j]) * (q[j] - m) + std::exp(p[j]) * (p[j] - m));
    if (p[j] > p[p_best]) p_best = j;
    if (q[j] > q[q_best]) q_best = j;
  }
  means->agreement += p_best == q_best ? 1 : 0;
}

TEST(EvaluatorTest, FollowsADoubleReference) {
  const auto plan = MakeTestPlan({.masked = true});
  const TestTeacher teacher;
  SmallStudent student({{LossKind::kCrossEntropy}}, SmallConfig(true), DType::kF32);
  const at::Tensor head = Head();
  Evaluator evaluator(*student.model, head, kVocabulary);
  Means means;
  for (const auto& group : {std::pair{24u, 26u}, std::pair{26u, 28u}}) {
    std::vector<DocumentTargets> documents;
    for (uint32_t d = group.first; d < group.second; ++d) {
      documents.push_back(teacher.Targets(*plan, d));
      const PlanDocument document = plan->document(d);
      MicroBatch alone;
      alone.ids.assign(document.tokens.begin(), document.tokens.end() - 1);
      alone.lengths = {document.rows()};
      const auto hidden = student.model->Hidden(alone);
      ASSERT_TRUE(hidden.ok());
      const at::Tensor states = hidden->to(at::kDouble).contiguous();
      for (uint32_t t = 0; t < document.rows(); ++t) {
        if (document.loss_mask[t + 1] == 0) continue;
        double teacher_hidden[12];
        for (int k = 0; k < 12; ++k) {
          teacher_hidden[k] = Bf16ToFloat(documents.back().hidden.values[t * 12 + k]);
        }
        AddRow(
            LogProbabilities(states.const_data_ptr<double>() + t * 16, 16, student.model->Head()),
            LogProbabilities(teacher_hidden, 12, head), document.tokens[t + 1], &means);
      }
    }
    ASSERT_TRUE(evaluator.Add(*plan, documents).ok());
  }
  const Evaluation got = evaluator.Finish(7);
  EXPECT_EQ(got.step, 7u);
  EXPECT_EQ(static_cast<double>(got.rows), means.rows);
  EXPECT_NEAR(std::log(got.perplexity), means.nll / means.rows, 1e-5);
  EXPECT_NEAR(std::log(got.teacher_perplexity), means.teacher_nll / means.rows, 1e-5);
  EXPECT_NEAR(got.kl, means.kl / means.rows, 1e-5);
  EXPECT_NEAR(got.jsd, means.jsd / means.rows, 1e-5);
  EXPECT_NEAR(got.agreement, means.agreement / means.rows, 1e-9);
  EXPECT_GT(got.kl_se, 0);
  EXPECT_GT(got.jsd, 0);
}

TEST(EvaluatorTest, RefusesStatesOfAnotherTeacher) {
  const auto plan = MakeTestPlan({});
  TestTeacher teacher;
  teacher.hidden_size = 10;
  SmallStudent student({{LossKind::kCrossEntropy}}, SmallConfig(true), DType::kF32);
  Evaluator evaluator(*student.model, Head(), kVocabulary);
  const std::vector<DocumentTargets> documents = {teacher.Targets(*plan, 24)};
  EXPECT_EQ(evaluator.Add(*plan, documents).code(), absl::StatusCode::kInvalidArgument);
}

TEST(RatioOverDocumentsTest, MatchesTheFormulaByHand) {
  // Rows 1, 2, 3 with sums 2, 2, 8: mean 2; residuals 0, -2, 2; sqrt(3/2 · 8) / 6.
  std::vector<EvaluationSums> documents(3);
  documents[0].rows = 1;
  documents[0].kl = 2;
  documents[1].rows = 2;
  documents[1].kl = 2;
  documents[2].rows = 3;
  documents[2].kl = 8;
  const Ratio ratio = RatioOverDocuments(documents, &EvaluationSums::kl);
  EXPECT_DOUBLE_EQ(ratio.mean, 2);
  EXPECT_DOUBLE_EQ(ratio.standard_error, std::sqrt(12.0) / 6);
  const Ratio of_one =
      RatioOverDocuments(absl::MakeConstSpan(documents).first(1), &EvaluationSums::kl);
  EXPECT_DOUBLE_EQ(of_one.mean, 2);
  EXPECT_TRUE(std::isnan(of_one.standard_error)) << "one document says nothing of the error";
}

}  // namespace
}  // namespace stillhouse
