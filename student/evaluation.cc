#include "student/evaluation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "ATen/Parallel.h"
#include "ATen/ops/empty.h"
#include "ATen/ops/from_blob.h"
#include "ATen/ops/index_select.h"
#include "ATen/ops/mm.h"
#include "common/status.h"
#include "model/parallel.h"
#include "model/torch_status.h"
#include "student/losses/row_kernels.h"

namespace stillhouse {
namespace {

// fp32 logits of both sides: 2 · 256 · 49,152 · 4 bytes are 96 MiB.
constexpr int64_t kChunkRows = 256;

// `room` holds two rows of `n`.
EvaluationSums EvaluateRow(const float* student, const float* teacher, size_t n, int32_t label,
                           std::vector<float>& room) {
  room.resize(2 * n);
  float *p = room.data(), *q = p + n;
  const float student_max = LoadRow(student, n, p), teacher_max = LoadRow(teacher, n, q);
  const double p_sum = ExpRow(student, n, student_max, 1.0f, p);
  const double q_sum = ExpRow(teacher, n, teacher_max, 1.0f, q);
  const double p_lse = student_max + std::log(p_sum), q_lse = teacher_max + std::log(q_sum);
  EvaluationSums sums;
  sums.rows = 1;
  sums.student_nll = p_lse - student[label];
  sums.teacher_nll = q_lse - teacher[label];
  sums.kl = WeightedDifference(q, teacher, student, n) / q_sum - q_lse + p_lse;
  sums.jsd =
      JensenShannonRow(p, static_cast<float>(1 / p_sum), q, static_cast<float>(1 / q_sum), n);
  sums.agreement = ArgMaxRow(student, n) == ArgMaxRow(teacher, n) ? 1 : 0;
  return sums;
}

}  // namespace

Ratio RatioOverDocuments(absl::Span<const EvaluationSums> documents,
                         double EvaluationSums::*value) {
  double total = 0, rows = 0;
  for (const EvaluationSums& document : documents) {
    total += document.*value;
    rows += static_cast<double>(document.rows);
  }
  Ratio ratio;
  ratio.standard_error = std::numeric_limits<double>::quiet_NaN();
  if (rows == 0) return ratio;
  ratio.mean = total / rows;
  const auto n = static_cast<double>(documents.size());
  if (n < 2) return ratio;
  double squares = 0;
  for (const EvaluationSums& document : documents) {
    const double residual = document.*value - ratio.mean * static_cast<double>(document.rows);
    squares += residual * residual;
  }
  ratio.standard_error = std::sqrt(n / (n - 1) * squares) / rows;
  return ratio;
}

double QualityOf(absl::Span<const LossTerm> terms, const Evaluation& evaluation) {
  const bool distils = std::any_of(terms.begin(), terms.end(), [](const LossTerm& term) {
    return term.kind != LossKind::kCrossEntropy;
  });
  return distils ? evaluation.kl : evaluation.perplexity;
}

Evaluator::Evaluator(StudentModel& model, at::Tensor teacher_head, int64_t vocabulary)
    : model_(model),
      teacher_head_(std::move(teacher_head)),
      student_head_(model.Head().to(at::kFloat)),
      vocabulary_(vocabulary) {
  SH_CHECK(teacher_head_.scalar_type() == at::kFloat && teacher_head_.size(0) >= vocabulary_);
}

absl::Status Evaluator::Add(const Plan& plan, absl::Span<const DocumentTargets> documents) {
  for (const DocumentTargets& document : documents) {
    if (document.hidden.hidden_size != teacher_head_.size(1) ||
        document.hidden.rows() != plan.document(document.document).rows()) {
      return absl::InvalidArgumentError(
          absl::StrCat("held-out document ", document.document, ": its hidden/last has ",
                       document.hidden.rows(), " rows of ", document.hidden.hidden_size,
                       " values, the teacher's head takes ", teacher_head_.size(1)));
    }
  }
  const MicroBatch batch = MakeMicroBatch(plan, documents, /*packed=*/true);
  std::vector<EvaluationSums> rows(batch.loss_rows.size());
  if (!rows.empty()) {
    SH_ASSIGN_OR_RETURN(const at::Tensor hidden, model_.Hidden(batch));
    SH_RETURN_IF_ERROR(AddRows(hidden, batch, &rows));
  }
  size_t next = 0;
  for (const DocumentTargets& document : documents) {
    EvaluationSums sums;
    const uint64_t counted = CountedRows(plan.document(document.document));
    for (uint64_t i = 0; i < counted; ++i, ++next) {
      const EvaluationSums& row = rows[next];
      sums.rows += 1;
      sums.student_nll += row.student_nll;
      sums.teacher_nll += row.teacher_nll;
      sums.kl += row.kl;
      sums.jsd += row.jsd;
      sums.agreement += row.agreement;
    }
    if (!std::isfinite(sums.kl + sums.student_nll)) {
      return absl::InternalError(
          absl::StrCat("held-out document ", document.document, ": logits are not finite"));
    }
    if (sums.rows > 0) documents_[document.document] = sums;
  }
  return absl::OkStatus();
}

absl::Status Evaluator::AddInBatches(const Plan& plan, absl::Span<const DocumentTargets> documents,
                                     uint64_t micro_rows) {
  std::vector<uint32_t> rows;
  for (const DocumentTargets& document : documents) {
    rows.push_back(plan.document(document.document).rows());
    micro_rows = std::max<uint64_t>(micro_rows, rows.back());
  }
  size_t next = 0;
  for (const size_t size : GroupDocuments(rows, micro_rows, /*packed=*/true)) {
    SH_RETURN_IF_ERROR(Add(plan, documents.subspan(next, size)));
    next += size;
  }
  return absl::OkStatus();
}

absl::Status Evaluator::AddRows(const at::Tensor& hidden, const MicroBatch& batch,
                                std::vector<EvaluationSums>* rows) {
  return CallTorch([&] {
    const auto count = static_cast<int64_t>(rows->size());
    const at::Tensor loss_rows = at::from_blob(const_cast<int64_t*>(batch.loss_rows.data()),
                                               {count}, at::TensorOptions().dtype(at::kLong));
    const at::Tensor student = at::index_select(hidden, 0, loss_rows).to(at::kFloat);
    const at::Tensor teacher =
        at::from_blob(const_cast<uint16_t*>(batch.teacher_hidden.values.data()),
                      {count, teacher_head_.size(1)}, at::TensorOptions().dtype(at::kBFloat16))
            .to(at::kFloat);
    std::vector<std::vector<float>> rooms(at::get_num_threads());
    for (int64_t begin = 0; begin < count; begin += kChunkRows) {
      const int64_t chunk = std::min(kChunkRows, count - begin);
      const at::Tensor p = at::mm(student.narrow(0, begin, chunk), student_head_.t());
      const at::Tensor q = at::mm(teacher.narrow(0, begin, chunk), teacher_head_.t());
      const float* p_data = p.const_data_ptr<float>();
      const float* q_data = q.const_data_ptr<float>();
      ParallelFor(0, chunk, 1, [&](int64_t from, int64_t to) {
        std::vector<float>& room = rooms[at::get_thread_num()];
        for (int64_t r = from; r < to; ++r) {
          (*rows)[begin + r] =
              EvaluateRow(p_data + r * p.size(1), q_data + r * q.size(1),
                          static_cast<size_t>(vocabulary_), batch.labels[begin + r], room);
        }
      });
    }
  });
}

std::vector<double> Evaluator::ValuesOf(absl::Span<const uint32_t> documents) const {
  std::vector<double> values;
  for (const uint32_t document : documents) {
    const auto found = documents_.find(document);
    const EvaluationSums sums = found == documents_.end() ? EvaluationSums() : found->second;
    for (const double value : {static_cast<double>(sums.rows), sums.student_nll, sums.teacher_nll,
                               sums.kl, sums.jsd, sums.agreement}) {
      values.push_back(value);
    }
  }
  return values;
}

void Evaluator::SetValues(absl::Span<const uint32_t> documents, absl::Span<const double> values) {
  SH_CHECK(values.size() == documents.size() * kValuesPerDocument);
  documents_.clear();
  for (size_t i = 0; i < documents.size(); ++i) {
    const double* of = values.data() + i * kValuesPerDocument;
    if (of[0] == 0) continue;
    documents_[documents[i]] = {static_cast<uint64_t>(of[0]), of[1], of[2], of[3], of[4], of[5]};
  }
}

Evaluation Evaluator::Finish(uint64_t step) const {
  Evaluation evaluation;
  evaluation.step = step;
  std::vector<EvaluationSums> documents;
  for (const auto& [document, sums] : documents_) {
    evaluation.rows += sums.rows;
    documents.push_back(sums);
  }
  const auto ratio = [&](double EvaluationSums::*value) {
    return RatioOverDocuments(documents, value);
  };
  evaluation.perplexity = std::exp(ratio(&EvaluationSums::student_nll).mean);
  evaluation.teacher_perplexity = std::exp(ratio(&EvaluationSums::teacher_nll).mean);
  const Ratio kl = ratio(&EvaluationSums::kl), jsd = ratio(&EvaluationSums::jsd);
  const Ratio agreement = ratio(&EvaluationSums::agreement);
  evaluation.kl = kl.mean;
  evaluation.kl_se = kl.standard_error;
  evaluation.jsd = jsd.mean;
  evaluation.jsd_se = jsd.standard_error;
  evaluation.agreement = agreement.mean;
  evaluation.agreement_se = agreement.standard_error;
  return evaluation;
}

}  // namespace stillhouse
