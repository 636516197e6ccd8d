#include "student/losses/head_loss.h"

#include <algorithm>
#include <utility>

#include "ATen/Parallel.h"
#include "ATen/ops/empty.h"
#include "common/status.h"
#include "model/parallel.h"
#include "model/torch_status.h"
#include "storage/codec/top_tokens.h"
#include "student/losses/row_kernels.h"
#include "student/losses/row_loss.h"

namespace stillhouse {
namespace {

constexpr int64_t kRowsPerTask = 4;
constexpr int64_t kGradientsPerTask = 1 << 14;

bool HasExactTerm(const std::vector<LossTerm>& terms) {
  for (const LossTerm& term : terms) {
    if (term.kind == LossKind::kExactKl) return true;
  }
  return false;
}

template <typename T>
T* Data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Rows [begin, begin + rows) of a contiguous tensor.
Matrix RowsOf(const at::Tensor& tensor, int64_t begin, int64_t rows) {
  const int64_t columns = tensor.size(1);
  char* data = static_cast<char*>(tensor.data_ptr());
  return {data + begin * columns * static_cast<int64_t>(tensor.element_size()), rows, columns,
          columns};
}
Matrix WholeOf(const at::Tensor& tensor) { return RowsOf(tensor, 0, tensor.size(0)); }

}  // namespace

struct HeadLoss::Chunk {
  int64_t begin, rows;
  const at::Tensor& hidden;
  const at::Tensor& head;
  const RowTargets& targets;
  absl::Span<const double> coefficients;
  const HeadGradients& gradients;
  std::vector<std::vector<float>>& values;
};

HeadLoss::HeadLoss(std::vector<LossTerm> terms, int64_t vocabulary, at::Tensor teacher_head,
                   int64_t chunk_rows)
    : terms_(std::move(terms)),
      vocabulary_(vocabulary),
      teacher_head_(std::move(teacher_head)),
      chunk_rows_(chunk_rows),
      exact_(HasExactTerm(terms_)) {
  SH_CHECK(vocabulary_ > 0 && chunk_rows_ > 0);
  for (const LossTerm& term : terms_) {
    SH_CHECK(term.kind == LossKind::kExactKl || term.temperature == 1.0);
  }
  SH_CHECK(!exact_ || (teacher_head_.defined() && teacher_head_.size(0) >= vocabulary_ &&
                       teacher_head_.is_contiguous()));
}

template <typename T>
void HeadLoss::RunRows(const Chunk& chunk) {
  const auto n = static_cast<size_t>(vocabulary_);
  const auto columns = static_cast<size_t>(chunk.head.size(0));
  const int64_t teacher_columns = exact_ ? teacher_head_.size(0) : 0;
  const SampledRows* sampled = chunk.targets.sampled;
  const TopTokenRows* top =
      chunk.targets.top != nullptr && chunk.targets.top->rows() > 0 ? chunk.targets.top : nullptr;
  ParallelFor(0, chunk.rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    ThreadScratch& own = scratch_[static_cast<size_t>(at::get_thread_num())];
    internal::RowScratch scratch(own.rows, n);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t row = chunk.begin + r;
      T* logits = Data<T>(logits_) + r * columns;
      const float student_max = LoadRow(logits, n, scratch.student);
      float teacher_max = 0;
      if (exact_) {
        teacher_max = LoadRow(Data<T>(teacher_logits_) + r * teacher_columns, n, scratch.teacher);
      }
      internal::RowInput input;
      input.label = chunk.targets.labels[row];
      if (sampled != nullptr && sampled->draws > 0) {
        const uint32_t from = sampled->offsets[row], to = sampled->offsets[row + 1];
        input.ids = absl::MakeConstSpan(sampled->ids).subspan(from, to - from);
        input.counts = absl::MakeConstSpan(sampled->counts).subspan(from, to - from);
        input.draws = sampled->draws;
        input.teacher_entropy = chunk.targets.teacher_entropy[row];
      }
      if (top != nullptr) {
        const uint32_t from = top->offsets[row], to = top->offsets[row + 1];
        input.top_ids = absl::MakeConstSpan(top->ids).subspan(from, to - from);
        LogProbabilities(*top, static_cast<size_t>(row), &own.top_logprobs);
        input.top_logprobs = own.top_logprobs;
      }
      internal::ComputeRow(terms_, chunk.coefficients, input, n, student_max, teacher_max, scratch,
                           absl::MakeSpan(own.values));
      for (size_t k = 0; k < terms_.size(); ++k) {
        chunk.values[k][row] = static_cast<float>(own.values[k]);
      }
      StoreRow(scratch.gradient, n, logits);
      for (size_t j = n; j < columns; ++j) logits[j] = 0;
    }
  });
}

void HeadLoss::RunChunk(const Chunk& chunk) {
  const bool is_bf16 = chunk.hidden.scalar_type() == at::kBFloat16;
  const Matrix head = WholeOf(chunk.head), logits = RowsOf(logits_, 0, chunk.rows);
  const Matrix hidden = RowsOf(chunk.hidden, chunk.begin, chunk.rows);
  products_->TimesTransposed(hidden, head, /*add=*/false, logits);
  if (exact_) {
    products_->TimesTransposed(RowsOf(chunk.targets.teacher_hidden, chunk.begin, chunk.rows),
                               WholeOf(teacher_head_), /*add=*/false,
                               RowsOf(teacher_logits_, 0, chunk.rows));
  }
  if (is_bf16) {
    RunRows<uint16_t>(chunk);
  } else {
    RunRows<float>(chunk);
  }
  const Matrix gradient = RowsOf(chunk.gradients.hidden, chunk.begin, chunk.rows);
  if (is_bf16) {
    auto* wide = static_cast<float*>(hidden_gradient_.data_ptr());
    products_->TimesWide(logits, head, wide);
    ParallelFor(0, chunk.rows * hidden.columns, kGradientsPerTask, [&](int64_t begin, int64_t end) {
      StoreRow(wide + begin, static_cast<size_t>(end - begin),
               static_cast<uint16_t*>(gradient.data) + begin);
    });
  } else {
    products_->Times(logits, head, /*add=*/false, gradient);
  }
  if (!chunk.gradients.head.defined()) return;
  const bool first = chunk.gradients.first && chunk.begin == 0;
  products_->TransposedTimesWide(logits, hidden, /*add=*/!first,
                                 static_cast<float*>(chunk.gradients.head.data_ptr()));
}

// Makes what a call over `rows` rows needs, where it is not there yet.
void HeadLoss::Prepare(int64_t rows, const at::Tensor& head, const RowTargets& targets) {
  const at::ScalarType dtype = head.scalar_type();
  if (!logits_.defined() || logits_.scalar_type() != dtype) {
    products_.emplace(dtype);
    logits_ = teacher_logits_ = hidden_gradient_ = at::Tensor();
  }
  const int64_t buffered = std::min(rows, chunk_rows_);
  if (!logits_.defined() || logits_.size(0) < buffered || logits_.size(1) != head.size(0)) {
    logits_ = at::empty({buffered, head.size(0)}, head.options());
    if (dtype == at::kBFloat16) {
      hidden_gradient_ = at::empty({buffered, head.size(1)}, at::TensorOptions().dtype(at::kFloat));
    }
    if (exact_) teacher_logits_ = at::empty({buffered, teacher_head_.size(0)}, head.options());
  }
  size_t top_ids_max = 0;
  if (targets.top != nullptr) {
    for (size_t row = 0; row < targets.top->rows(); ++row) {
      top_ids_max =
          std::max<size_t>(top_ids_max, targets.top->offsets[row + 1] - targets.top->offsets[row]);
    }
  }
  scratch_.resize(static_cast<size_t>(at::get_num_threads()));
  for (ThreadScratch& own : scratch_) {
    internal::RowScratch(own.rows, static_cast<size_t>(vocabulary_));
    own.values.resize(terms_.size());
    own.top_logprobs.reserve(top_ids_max + 1);
  }
}

absl::Status HeadLoss::Run(const at::Tensor& hidden, const at::Tensor& head,
                           const RowTargets& targets, absl::Span<const double> coefficients,
                           HeadGradients gradients, std::vector<std::vector<float>>* values) {
  const int64_t rows = hidden.size(0);
  SH_CHECK(rows > 0 && static_cast<int64_t>(targets.labels.size()) == rows);
  SH_CHECK(coefficients.size() == terms_.size() && head.size(0) >= vocabulary_);
  SH_CHECK(hidden.is_contiguous() && head.is_contiguous() && gradients.hidden.is_contiguous());
  for (const LossTerm& term : terms_) {
    SH_CHECK(term.kind != LossKind::kTopKl ||
             (targets.top != nullptr && static_cast<int64_t>(targets.top->rows()) == rows));
    if (term.kind != LossKind::kSampledKl) continue;
    SH_CHECK(targets.sampled != nullptr && targets.sampled->draws > 0 &&
             static_cast<int64_t>(targets.sampled->rows()) == rows);
    SH_CHECK(static_cast<int64_t>(targets.teacher_entropy.size()) == rows);
  }
  SH_CHECK(!exact_ ||
           (targets.teacher_hidden.size(0) == rows && targets.teacher_hidden.is_contiguous()));
  values->resize(terms_.size());
  for (std::vector<float>& of_term : *values) of_term.resize(static_cast<size_t>(rows));
  return CallTorch([&] {
    Prepare(rows, head, targets);
    for (int64_t begin = 0; begin < rows; begin += chunk_rows_) {
      const int64_t count = std::min(chunk_rows_, rows - begin);
      RunChunk({begin, count, hidden, head, targets, coefficients, gradients, *values});
    }
  });
}

}  // namespace stillhouse
