#include "student/planned/planned_step.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "model/parallel.h"
#include "student/losses/row_kernels.h"
#include "student/planned/step_kernels.h"

namespace stillhouse::planned {
namespace {

template <typename T>
constexpr at::ScalarType kScalarType = sizeof(T) == 2 ? at::kBFloat16 : at::kFloat;

absl::Status CheckBatch(const ModelConfig& config, const MicroBatch& batch) {
  int64_t sum = 0;
  for (const int64_t length : batch.lengths) {
    if (length < 1 || length > config.TokensMax()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a document of ", length, " tokens; this model takes 1 to ", config.TokensMax()));
    }
    sum += length;
  }
  SH_CHECK(sum == static_cast<int64_t>(batch.ids.size()) && !batch.loss_rows.empty());
  for (const int64_t id : batch.ids) {
    if (id < 0 || id >= config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, " is not below the vocabulary's ", config.vocab_size));
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <typename T>
PlannedStep<T>::PlannedStep(const ModelConfig& config, const FlatLayout& layout,
                            const TensorView& weights, const StudentLossOptions& loss)
    : config_(config),
      tied_(config.tie_embeddings),
      weights_(config, layout, weights),
      head_loss_(loss.terms, loss.vocabulary, loss.teacher_head),
      products_(kScalarType<T>),
      attention_({config.heads, config.kv_heads, config.head_dim,
                  sizeof(T) == 2 && HasTiles() ? ProductKind::kTiles : ProductKind::kPortable}),
      head_(MovableTensor(kScalarType<T>)),
      picked_(MovableTensor(kScalarType<T>)),
      picked_gradient_(MovableTensor(kScalarType<T>)),
      head_gradient_(MovableTensor(at::kFloat)),
      teacher_hidden_(MovableTensor(kScalarType<T>)) {
  PointTensor(head_, {const_cast<T*>(weights_.head.data), config.vocab_size, config.hidden_size,
                      config.hidden_size});
}

template <typename T>
void PlannedStep<T>::Reserve(int64_t tokens) {
  if (tokens <= buffers_.tokens) return;
  // The old ones first: both together may not fit.
  buffers_ = StepBuffers<T>();
  buffers_ = StepBuffers<T>(config_, tokens);
}

// The place of each token in its document, and the angles of each place.
template <typename T>
void PlannedStep<T>::PlanPositions(const MicroBatch& batch) {
  const std::vector<int64_t>& whole =
      batch.whole_lengths.empty() ? batch.lengths : batch.whole_lengths;
  const int64_t longest = *std::max_element(batch.lengths.begin(), batch.lengths.end());
  int32_t* positions = buffers_.positions.data();
  if (AnglesDependOnLength(config_, *std::max_element(whole.begin(), whole.end()))) {
    // Dynamic RoPE past its positions: other angles for each length, made anew for each batch.
    angles_ = AnglesOf(config_, batch.lengths, whole, kScalarType<T>);
    angle_positions_ = 0;
    std::copy_n(angles_.row.template const_data_ptr<int32_t>(), tokens_, positions);
  } else {
    if (longest > angle_positions_) {
      angle_positions_ = longest;
      angles_.table = MakeRotaryTable(config_, longest, longest, kScalarType<T>);
    }
    for (const int64_t length : batch.lengths) {
      std::iota(positions, positions + length, 0);
      positions += length;
    }
  }
  cos_ = angles_.table.cos.template const_data_ptr<float>();
  sin_ = angles_.table.sin.template const_data_ptr<float>();
}

template <typename T>
absl::Status PlannedStep<T>::RunHead(const MicroBatch& batch, absl::Span<const double> coefficients,
                                     GradientSink& sink, std::vector<std::vector<float>>* values) {
  const int64_t width = config_.hidden_size, rows = static_cast<int64_t>(batch.loss_rows.size());
  T* picked = buffers_.hidden.data();
  if (rows < tokens_) {
    picked = buffers_.picked.data();
    PickRows(buffers_.hidden.data(), batch.loss_rows.data(), rows, width, picked);
  }
  PointTensor(picked_, {picked, rows, width, width});
  PointTensor(picked_gradient_, {buffers_.picked_gradient.data(), rows, width, width});
  RowTargets targets;
  targets.labels = batch.labels;
  targets.sampled = &batch.sampled;
  targets.top = &batch.top;
  targets.teacher_entropy = batch.teacher_entropy;
  if (batch.teacher_hidden.rows() > 0) {
    const HiddenRows& teacher = batch.teacher_hidden;
    const auto columns = static_cast<int64_t>(teacher.hidden_size);
    void* data = const_cast<uint16_t*>(teacher.values.data());
    if constexpr (sizeof(T) == 4) {
      if (buffers_.teacher_hidden.size() < teacher.values.size()) {
        buffers_.teacher_hidden = FlatBuffer<T>(static_cast<size_t>(buffers_.tokens * columns));
      }
      LoadRow(teacher.values.data(), teacher.values.size(), buffers_.teacher_hidden.data());
      data = buffers_.teacher_hidden.data();
    }
    PointTensor(teacher_hidden_, {data, rows, columns, columns});
    targets.teacher_hidden = teacher_hidden_;
  }
  SH_RETURN_IF_ERROR(sink.AwaitWeights(weights_.head.index));
  SH_ASSIGN_OR_RETURN(const GradientPlace place, sink.Begin(weights_.head.index));
  HeadGradients out;
  out.hidden = picked_gradient_;
  out.first = !place.add;
  if (place.data != nullptr) {
    PointTensor(head_gradient_, {place.data, config_.vocab_size, width, width});
    out.head = head_gradient_;
  }
  SH_RETURN_IF_ERROR(head_loss_.Run(picked_, head_, targets, coefficients, out, values));
  // A tied matrix is complete only when the embedding has added its part.
  return tied_ || place.data == nullptr ? absl::OkStatus() : sink.Ready(weights_.head.index);
}

template <typename T>
absl::Status PlannedStep<T>::Run(const MicroBatch& batch, absl::Span<const double> coefficients,
                                 GradientSink& sink, StepObserver* observer,
                                 std::vector<std::vector<float>>* values) {
  SH_RETURN_IF_ERROR(CheckBatch(config_, batch));
  tokens_ = static_cast<int64_t>(batch.ids.size());
  lengths_ = batch.lengths;
  Reserve(tokens_);
  attention_.Reserve(*std::max_element(batch.lengths.begin(), batch.lengths.end()));
  PlanPositions(batch);
  SH_RETURN_IF_ERROR(Forward(batch, sink, observer));
  SH_RETURN_IF_ERROR(RunHead(batch, coefficients, sink, values));
  return Backward(batch, sink, observer);
}

template class PlannedStep<float>;
template class PlannedStep<uint16_t>;

}  // namespace stillhouse::planned
