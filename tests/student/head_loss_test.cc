#include "student/losses/head_loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ATen/ops/empty.h"
#include "ATen/ops/empty_like.h"
#include "ATen/ops/zeros.h"
#include "common/random.h"
#include "gtest/gtest.h"
#include "storage/codec/top_tokens.h"
#include "student/losses/row_loss.h"

namespace stillhouse {
namespace {

constexpr int64_t kRows = 37, kHidden = 16, kColumns = 61, kVocabulary = 53;
constexpr int64_t kTeacherHidden = 12, kTeacherColumns = 57;
constexpr uint32_t kDraws = 50;

at::Tensor Random(int64_t rows, int64_t columns, uint64_t stream, double scale,
                  at::ScalarType dtype) {
  at::Tensor tensor = at::empty({rows, columns}, at::TensorOptions().dtype(at::kFloat));
  RandomStream random(21, stream);
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    tensor.mutable_data_ptr<float>()[i] = static_cast<float>(random.NextNormal() * scale);
  }
  return tensor.to(dtype);
}

struct Problem {
  at::Tensor hidden, head, teacher_head;
  std::vector<int32_t> labels;
  std::vector<float> teacher_entropy;
  SampledRows sampled;
  TopTokenRows top;
  RowTargets targets;  // of the four above
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;
  explicit Problem(at::ScalarType dtype) {
    hidden = Random(kRows, kHidden, 1, 1.0, dtype);
    head = Random(kColumns, kHidden, 2, 0.8, dtype);
    teacher_head = Random(kTeacherColumns, kTeacherHidden, 3, 0.8, dtype);
    targets.teacher_hidden = Random(kRows, kTeacherHidden, 4, 1.0, dtype);
    RandomStream random(22);
    sampled.draws = kDraws;
    for (int64_t row = 0; row < kRows; ++row) {
      labels.push_back(static_cast<int32_t>(random.NextBelow(kVocabulary)));
      teacher_entropy.push_back(static_cast<float>(random.NextUniform() * 3));
      std::vector<uint16_t> counts(kVocabulary);
      for (uint32_t draw = 0; draw < kDraws; ++draw) ++counts[random.NextBelow(kVocabulary / 3)];
      for (int32_t id = 0; id < kVocabulary; ++id) {
        if (counts[id] == 0) continue;
        sampled.ids.push_back(id);
        sampled.counts.push_back(counts[id]);
      }
      sampled.offsets.push_back(static_cast<uint32_t>(sampled.ids.size()));
    }
    targets.labels = labels;
    targets.sampled = &sampled;
    for (int64_t row = 0; row < kRows; ++row) {
      // As many as reach nine tenths, so that rows differ; all of them in the last row.
      std::vector<float> logprobs(kVocabulary);
      double sum = 0;
      for (float& value : logprobs) value = static_cast<float>(random.NextNormal() * 2);
      for (const float value : logprobs) sum += std::exp(value);
      for (float& value : logprobs) value -= static_cast<float>(std::log(sum));
      TopRule rule{.k = kVocabulary};
      if (row + 1 < kRows) rule.p = 0.9;
      AppendTopRow(logprobs, rule, &top);
    }
    targets.top = &top;
    targets.teacher_entropy = teacher_entropy;
  }
};

using Row = std::vector<double>;

Row Logits(const at::Tensor& hidden, int64_t row, const at::Tensor& head) {
  const at::Tensor h = hidden.to(at::kDouble).contiguous(), w = head.to(at::kDouble).contiguous();
  Row logits(kVocabulary);
  for (int64_t j = 0; j < kVocabulary; ++j) {
    for (int64_t k = 0; k < h.size(1); ++k) {
      logits[j] += h.const_data_ptr<double>()[row * h.size(1) + k] *
                   w.const_data_ptr<double>()[j * h.size(1) + k];
    }
  }
  return logits;
}

double LogSumExp(const Row& logits) {
  double sum = 0;
  for (const double z : logits) sum += std::exp(z);
  return std::log(sum);
}

// Value of one term on one row, straight from its definition.
double TermValue(const LossTerm& term, const Row& z, const Row& t, const RowTargets& targets,
                 int64_t row) {
  if (term.kind == LossKind::kCrossEntropy) return LogSumExp(z) - z[targets.labels[row]];
  if (term.kind == LossKind::kSampledKl) {
    double value = -targets.teacher_entropy[row];
    for (uint32_t i = targets.sampled->offsets[row]; i < targets.sampled->offsets[row + 1]; ++i) {
      value +=
          targets.sampled->counts[i] / double{kDraws} * (LogSumExp(z) - z[targets.sampled->ids[i]]);
    }
    return value;
  }
  if (term.kind == LossKind::kTopKl) {
    const std::vector<float> p = LogProbabilities(*targets.top, static_cast<size_t>(row));
    Row outside = z;
    double value = 0;
    const uint32_t from = targets.top->offsets[row], to = targets.top->offsets[row + 1];
    for (uint32_t i = from; i < to; ++i) {
      const double logprob = p[i - from];
      const int32_t id = targets.top->ids[i];
      value += std::exp(logprob) * (logprob - (z[id] - LogSumExp(z)));
      outside[id] = -1e300;
    }
    if (to - from == kVocabulary) return value;
    return value + std::exp(p.back()) * (p.back() - (LogSumExp(outside) - LogSumExp(z)));
  }
  Row zt = z, tt = t;
  for (double& v : zt) v /= term.temperature;
  for (double& v : tt) v /= term.temperature;
  const double z_lse = LogSumExp(zt), t_lse = LogSumExp(tt);
  double value = 0;
  for (size_t j = 0; j < z.size(); ++j) {
    value += std::exp(tt[j] - t_lse) * ((tt[j] - t_lse) - (zt[j] - z_lse));
  }
  return term.temperature * term.temperature * value;
}

struct Reference {
  std::vector<Row> values;  // [term][row]
  std::vector<double> hidden_gradient, head_gradient;
};

// Gradients by central differences of the values, in double: knows nothing of softmax derivatives.
Reference Solve(const Problem& problem, const std::vector<LossTerm>& terms,
                const std::vector<double>& coefficients) {
  Reference reference;
  reference.values.assign(terms.size(), Row(kRows));
  reference.hidden_gradient.assign(kRows * kHidden, 0);
  reference.head_gradient.assign(kColumns * kHidden, 0);
  const at::Tensor h = problem.hidden.to(at::kDouble).contiguous();
  const at::Tensor w = problem.head.to(at::kDouble).contiguous();
  for (int64_t row = 0; row < kRows; ++row) {
    Row z = Logits(problem.hidden, row, problem.head);
    const Row t = Logits(problem.targets.teacher_hidden, row, problem.teacher_head);
    for (size_t k = 0; k < terms.size(); ++k) {
      reference.values[k][row] = TermValue(terms[k], z, t, problem.targets, row);
    }
    for (int64_t j = 0; j < kVocabulary; ++j) {
      const double at = z[j], step = 1e-5;
      double slope = 0;
      for (size_t k = 0; k < terms.size(); ++k) {
        z[j] = at + step;
        slope += coefficients[k] * TermValue(terms[k], z, t, problem.targets, row);
        z[j] = at - step;
        slope -= coefficients[k] * TermValue(terms[k], z, t, problem.targets, row);
      }
      z[j] = at;
      slope /= 2 * step;
      for (int64_t d = 0; d < kHidden; ++d) {
        reference.hidden_gradient[row * kHidden + d] +=
            slope * w.const_data_ptr<double>()[j * kHidden + d];
        reference.head_gradient[j * kHidden + d] +=
            slope * h.const_data_ptr<double>()[row * kHidden + d];
      }
    }
  }
  return reference;
}

double WorstShare(const at::Tensor& got, const std::vector<double>& wanted) {
  const at::Tensor values = got.to(at::kDouble).contiguous();
  double worst = 0, largest = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    worst = std::max(worst, std::abs(values.const_data_ptr<double>()[i] - wanted[i]));
    largest = std::max(largest, std::abs(wanted[i]));
  }
  return worst / largest;
}

struct Case {
  const char* name;
  std::vector<LossTerm> terms;
};

std::vector<Case> Cases() {
  using enum LossKind;
  return {{"cross-entropy", {{kCrossEntropy, 1, 1}}},
          {"sampled", {{kSampledKl, 1, 1}}},
          {"top", {{kTopKl, 1, 1}}},
          {"top and cross-entropy", {{kTopKl, 1, 0.7}, {kCrossEntropy, 1, 0.3}}},
          {"exact", {{kExactKl, 1, 1}}},
          {"exact at 2", {{kExactKl, 2, 1}}},
          {"sampled and cross-entropy", {{kSampledKl, 1, 0.9}, {kCrossEntropy, 1, 0.1}}},
          {"all",
           {{kExactKl, 3, 0.5},
            {kCrossEntropy, 1, 0.2},
            {kTopKl, 1, 0.6},
            {kExactKl, 1, 0.3},
            {kSampledKl, 1, 0.4}}}};
}

void CheckCase(const Case& c, at::ScalarType dtype, int64_t chunk_rows, double value_tolerance,
               double gradient_tolerance) {
  const Problem problem(dtype);
  std::vector<double> coefficients;
  for (const LossTerm& term : c.terms) coefficients.push_back(term.weight / kRows);
  HeadLoss loss(c.terms, kVocabulary, problem.teacher_head, chunk_rows);
  const at::Tensor hidden_gradient = at::empty_like(problem.hidden);
  const at::Tensor head_gradient =
      at::empty({kColumns, kHidden}, at::TensorOptions().dtype(at::kFloat));
  std::vector<std::vector<float>> values;
  const Reference reference = Solve(problem, c.terms, coefficients);
  ASSERT_TRUE(loss.Run(problem.hidden, problem.head, problem.targets, coefficients,
                       {hidden_gradient, head_gradient, /*first=*/true}, &values)
                  .ok());
  for (size_t k = 0; k < c.terms.size(); ++k) {
    for (int64_t row = 0; row < kRows; ++row) {
      ASSERT_NEAR(values[k][row], reference.values[k][row], value_tolerance)
          << c.name << " term " << k << " row " << row;
    }
  }
  EXPECT_LT(WorstShare(hidden_gradient, reference.hidden_gradient), gradient_tolerance) << c.name;
  EXPECT_LT(WorstShare(head_gradient, reference.head_gradient), gradient_tolerance) << c.name;
  // A second pass adds.
  ASSERT_TRUE(loss.Run(problem.hidden, problem.head, problem.targets, coefficients,
                       {hidden_gradient, head_gradient, /*first=*/false}, &values)
                  .ok());
  std::vector<double> twice = reference.head_gradient;
  for (double& value : twice) value *= 2;
  EXPECT_LT(WorstShare(head_gradient, twice), gradient_tolerance) << c.name;
}

TEST(HeadLossTest, ValuesAndGradientsFollowADoubleReferenceInFp32) {
  for (const Case& c : Cases()) {
    CheckCase(c, at::kFloat, /*chunk_rows=*/8, 1e-5, 1e-5);
    CheckCase(c, at::kFloat, kHeadChunkRows, 1e-5, 1e-5);
  }
}

TEST(HeadLossTest, FollowsTheReferenceInBf16) {
  // Logits of up to about 12 are rounded to 8 bits: half a unit in the last place is 0.03.
  for (const Case& c : Cases()) CheckCase(c, at::kBFloat16, /*chunk_rows=*/16, 0.2, 0.03);
}

// A student that is all but certain of the top ids: the mass outside them is below what fp32 holds,
// and its gradient must neither vanish nor be infinite.
TEST(HeadLossTest, TopTermsBearAStudentWithNoMassOutside) {
  constexpr size_t kCount = 40, kTop = 5;
  const std::vector<LossTerm> terms = {{LossKind::kTopKl, 1, 1}};
  const std::vector<double> coefficients = {1};
  for (const float gap : {20.0f, 60.0f, 200.0f}) {
    std::vector<float> room;
    internal::RowScratch scratch(room, kCount);
    Row z(kCount);
    RandomStream random(31);
    for (size_t j = 0; j < kCount; ++j) {
      scratch.student[j] = static_cast<float>(random.NextNormal()) + (j < kTop ? gap : 0);
      z[j] = scratch.student[j];
    }
    const float largest = *std::max_element(scratch.student, scratch.student + kCount);
    const std::vector<int32_t> ids = {0, 1, 2, 3, 4};
    const std::vector<float> logprobs(kTop + 1, static_cast<float>(std::log(1.0 / (kTop + 1))));
    internal::RowInput input;
    input.top_ids = ids;
    input.top_logprobs = logprobs;
    double value = 0;
    internal::ComputeRow(terms, coefficients, input, kCount, largest, 0, scratch,
                         absl::MakeSpan(&value, 1));
    double inside_sum = 0, outside_sum = 0;
    for (size_t j = 0; j < kCount; ++j) (j < kTop ? inside_sum : outside_sum) += std::exp(z[j]);
    const double share = 1.0 / (kTop + 1), sum = inside_sum + outside_sum;
    double wanted = share * (std::log(share) - std::log(outside_sum / sum));
    for (size_t j = 0; j < kTop; ++j) {
      wanted += share * (std::log(share) - (z[j] - std::log(sum)));
      EXPECT_NEAR(scratch.gradient[j], std::exp(z[j]) / sum - share, 1e-6);
    }
    EXPECT_NEAR(value, wanted, 1e-4 * wanted);
    for (size_t j = kTop; j < kCount; ++j) {
      const double q = std::exp(z[j]) / sum;
      EXPECT_NEAR(scratch.gradient[j], q - share * std::exp(z[j]) / outside_sum, 1e-6) << gap;
      EXPECT_EQ(scratch.student[j], static_cast<float>(z[j])) << "the logits stay";
    }
  }
}

TEST(HeadLossTest, PaddingColumnsChangeNothingAndGetNoGradient) {
  Problem problem(at::kFloat);
  const std::vector<LossTerm> terms = {{LossKind::kSampledKl, 1, 1}, {LossKind::kExactKl, 2, 1}};
  const std::vector<double> coefficients = {0.1, 0.2};
  std::vector<std::vector<float>> values[2];
  at::Tensor hidden_gradients[2];
  for (int pass = 0; pass < 2; ++pass) {
    // Padding that would swallow all the mass, were it read.
    if (pass == 1) {
      problem.head.narrow(0, kVocabulary, kColumns - kVocabulary).fill_(50);
      problem.teacher_head.narrow(0, kVocabulary, kTeacherColumns - kVocabulary).fill_(50);
    }
    HeadLoss loss(terms, kVocabulary, problem.teacher_head);
    hidden_gradients[pass] = at::empty_like(problem.hidden);
    const at::Tensor head_gradient = at::empty_like(problem.head);
    ASSERT_TRUE(loss.Run(problem.hidden, problem.head, problem.targets, coefficients,
                         {hidden_gradients[pass], head_gradient, true}, &values[pass])
                    .ok());
    for (int64_t j = kVocabulary; j < kColumns; ++j) {
      EXPECT_EQ(head_gradient.select(0, j).abs().sum().item<float>(), 0.0f);
    }
  }
  EXPECT_EQ(values[0], values[1]);
  EXPECT_TRUE(hidden_gradients[0].equal(hidden_gradients[1]));
}

}  // namespace
}  // namespace stillhouse
