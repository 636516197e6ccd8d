#include "student/losses/head_loss.h"

#include <utility>

#include "ATen/Parallel.h"
#include "ATen/ops/empty.h"
#include "common/status.h"
#include "model/matmul.h"
#include "model/parallel.h"
#include "model/torch_status.h"
#include "student/losses/row_kernels.h"
#include "student/losses/row_loss.h"

namespace stillhouse {
namespace {

constexpr int64_t kRowsPerTask = 4;
constexpr int64_t kGradientsPerTask = 1 << 16;

bool HasExactTerm(const std::vector<LossTerm>& terms) {
  for (const LossTerm& term : terms) {
    if (term.kind == LossKind::kExactKl) return true;
  }
  return false;
}

// `buffer` where it already is [rows, columns] of that type, else a new one.
void Prepare(at::Tensor& buffer, int64_t rows, int64_t columns, const at::TensorOptions& options) {
  if (buffer.defined() && buffer.size(0) == rows && buffer.size(1) == columns &&
      buffer.scalar_type() == c10::typeMetaToScalarType(options.dtype())) {
    return;
  }
  buffer = at::empty({rows, columns}, options);
}

template <typename T>
T* Data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <typename T>
void AddToHead(const at::Tensor& gradient, bool first, const at::Tensor& out) {
  ParallelFor(0, gradient.numel(), kGradientsPerTask, [&](int64_t begin, int64_t end) {
    AccumulateGradient(Data<T>(gradient) + begin, end - begin, first, Data<float>(out) + begin);
  });
}

}  // namespace

struct HeadLoss::Chunk {
  int64_t begin, rows;
  const at::Tensor& hidden;
  const at::Tensor& head;
  const RowTargets& targets;
  absl::Span<const double> coefficients;
  const HeadGradients& gradients;
  std::vector<std::vector<float>>& values;
  at::Tensor logits, teacher_logits;  // of this chunk
};

HeadLoss::HeadLoss(std::vector<LossTerm> terms, int64_t vocabulary, at::Tensor teacher_head,
                   int64_t chunk_rows)
    : terms_(std::move(terms)),
      vocabulary_(vocabulary),
      teacher_head_(std::move(teacher_head)),
      chunk_rows_(chunk_rows) {
  SH_CHECK(vocabulary_ > 0 && chunk_rows_ > 0);
  for (const LossTerm& term : terms_) {
    SH_CHECK(term.kind == LossKind::kExactKl || term.temperature == 1.0);
  }
  SH_CHECK(!HasExactTerm(terms_) ||
           (teacher_head_.defined() && teacher_head_.size(0) >= vocabulary_));
}

template <typename T>
void HeadLoss::RunRows(const Chunk& chunk) {
  const auto n = static_cast<size_t>(vocabulary_);
  const auto columns = static_cast<size_t>(chunk.head.size(0));
  const bool exact = chunk.teacher_logits.defined();
  const SampledRows& sampled = chunk.targets.sampled;
  const bool has_sampled = sampled.draws > 0;
  ParallelFor(0, chunk.rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    internal::RowScratch scratch(scratch_[at::get_thread_num()], n);
    std::vector<double> row_values(terms_.size());
    for (int64_t r = begin; r < end; ++r) {
      const int64_t row = chunk.begin + r;
      T* logits = Data<T>(chunk.logits) + r * columns;
      const float student_max = LoadRow(logits, n, scratch.student);
      float teacher_max = 0;
      if (exact) {
        const T* teacher = Data<T>(chunk.teacher_logits) + r * chunk.teacher_logits.size(1);
        teacher_max = LoadRow(teacher, n, scratch.teacher);
      }
      internal::RowInput input;
      input.label = chunk.targets.labels[row];
      if (has_sampled) {
        const uint32_t from = sampled.offsets[row], to = sampled.offsets[row + 1];
        input.ids = absl::MakeConstSpan(sampled.ids).subspan(from, to - from);
        input.counts = absl::MakeConstSpan(sampled.counts).subspan(from, to - from);
        input.draws = sampled.draws;
        input.teacher_entropy = chunk.targets.teacher_entropy[row];
      }
      internal::ComputeRow(terms_, chunk.coefficients, input, n, student_max, teacher_max, scratch,
                           absl::MakeSpan(row_values));
      for (size_t k = 0; k < terms_.size(); ++k) {
        chunk.values[k][row] = static_cast<float>(row_values[k]);
      }
      StoreRow(scratch.gradient, n, logits);
      for (size_t j = n; j < columns; ++j) logits[j] = 0;
    }
  });
}

void HeadLoss::RunChunk(const Chunk& chunk) {
  const at::Tensor hidden = chunk.hidden.narrow(0, chunk.begin, chunk.rows);
  at::Tensor logits = chunk.logits;
  ops::MatMulInto(logits, hidden, chunk.head.t());
  if (chunk.teacher_logits.defined()) {
    at::Tensor teacher_logits = chunk.teacher_logits;
    ops::MatMulInto(teacher_logits, chunk.targets.teacher_hidden.narrow(0, chunk.begin, chunk.rows),
                    teacher_head_.t());
  }
  const bool is_bf16 = chunk.hidden.scalar_type() == at::kBFloat16;
  if (is_bf16) {
    RunRows<uint16_t>(chunk);
  } else {
    RunRows<float>(chunk);
  }
  at::Tensor hidden_gradient = chunk.gradients.hidden.narrow(0, chunk.begin, chunk.rows);
  ops::MatMulInto(hidden_gradient, logits, chunk.head);
  ops::MatMulInto(head_gradient_, logits.t(), hidden);
  const bool first = chunk.gradients.first && chunk.begin == 0;
  if (is_bf16) {
    AddToHead<uint16_t>(head_gradient_, first, chunk.gradients.head);
  } else {
    AddToHead<float>(head_gradient_, first, chunk.gradients.head);
  }
}

absl::Status HeadLoss::Run(const at::Tensor& hidden, const at::Tensor& head,
                           const RowTargets& targets, absl::Span<const double> coefficients,
                           HeadGradients gradients, std::vector<std::vector<float>>* values) {
  const int64_t rows = hidden.size(0);
  SH_CHECK(rows > 0 && static_cast<int64_t>(targets.labels.size()) == rows);
  SH_CHECK(coefficients.size() == terms_.size() && head.size(0) >= vocabulary_);
  const bool exact = HasExactTerm(terms_);
  for (const LossTerm& term : terms_) {
    if (term.kind != LossKind::kSampledKl) continue;
    SH_CHECK(static_cast<int64_t>(targets.sampled.rows()) == rows && targets.sampled.draws > 0);
    SH_CHECK(static_cast<int64_t>(targets.teacher_entropy.size()) == rows);
  }
  SH_CHECK(!exact || targets.teacher_hidden.size(0) == rows);
  return CallTorch([&] {
    const int64_t buffered = std::min(rows, chunk_rows_);
    if (!logits_.defined() || logits_.size(0) < buffered) {
      Prepare(logits_, buffered, head.size(0), head.options());
    }
    Prepare(head_gradient_, head.size(0), head.size(1), head.options());
    if (exact && (!teacher_logits_.defined() || teacher_logits_.size(0) < buffered)) {
      Prepare(teacher_logits_, buffered, teacher_head_.size(0), teacher_head_.options());
    }
    scratch_.resize(at::get_num_threads());
    values->assign(terms_.size(), std::vector<float>(rows));
    for (int64_t begin = 0; begin < rows; begin += chunk_rows_) {
      const int64_t count = std::min(chunk_rows_, rows - begin);
      RunChunk({begin, count, hidden, head, targets, coefficients, gradients, *values,
                logits_.narrow(0, 0, count),
                exact ? teacher_logits_.narrow(0, 0, count) : at::Tensor()});
    }
  });
}

}  // namespace stillhouse
