#include <utility>

#include "ATen/core/grad_mode.h"
#include "ATen/ops/arange.h"
#include "ATen/ops/empty.h"
#include "ATen/ops/from_blob.h"
#include "ATen/ops/index_select.h"
#include "ATen/ops/zeros_like.h"
#include "common/status.h"
#include "model/decoder.h"
#include "model/parallel.h"
#include "model/torch_status.h"
#include "student/bind_student.h"
#include "student/losses/row_kernels.h"
#include "student/student_model.h"

namespace stillhouse {
namespace {

constexpr int64_t kGradientsPerTask = 1 << 15;
constexpr char kEmbedding[] = "model.embed_tokens.weight";
constexpr char kHead[] = "lm_head.weight";

void AccumulateTensor(const at::Tensor& gradient, bool first, float* out) {
  const at::Tensor dense = gradient.contiguous();
  const bool is_bf16 = dense.scalar_type() == at::kBFloat16;
  const void* data = dense.const_data_ptr();
  ParallelFor(0, dense.numel(), kGradientsPerTask, [&](int64_t begin, int64_t end) {
    const auto count = static_cast<size_t>(end - begin);
    if (is_bf16) {
      AccumulateGradient(static_cast<const uint16_t*>(data) + begin, count, first, out + begin);
    } else {
      AccumulateGradient(static_cast<const float*>(data) + begin, count, first, out + begin);
    }
  });
}

class AutogradStudent final : public StudentModel {
 public:
  AutogradStudent(DecoderWeights weights, FlatLayout layout, const StudentLossOptions& loss)
      : weights_(std::move(weights)),
        layout_(std::move(layout)),
        head_loss_(loss.terms, loss.vocabulary, loss.teacher_head) {}

  const ModelConfig& config() const override { return weights_.config; }
  at::Tensor Head() const override { return HeadWeight(weights_).detach(); }

  absl::Status AddGradients(const MicroBatch& batch, absl::Span<const double> coefficients,
                            bool first, absl::Span<float> gradients,
                            std::vector<std::vector<float>>* values) override {
    SH_CHECK(gradients.size() == layout_.size() && !batch.loss_rows.empty());
    // The embedding as a leaf of this batch's rows: its gradient is then [T, H], not [V, H].
    at::Tensor rows;
    DecoderWeights bound = weights_;
    DecoderBatch tokens{{}, batch.lengths};
    const auto count = static_cast<int64_t>(batch.ids.size());
    SH_RETURN_IF_ERROR(CallTorch([&] {
      rows = at::index_select(weights_.embedding.detach(), 0, IdTensor(batch.ids));
      rows.requires_grad_(true);
      tokens.ids = at::arange(count, at::TensorOptions().dtype(at::kLong));
    }));
    bound.embedding = rows;
    bound.config.vocab_size = count;
    SH_ASSIGN_OR_RETURN(const at::Tensor hidden, ForwardHidden(bound, tokens));

    at::Tensor hidden_gradient;
    SH_RETURN_IF_ERROR(
        RunHead(batch, coefficients, first, hidden.detach(), gradients, values, &hidden_gradient));
    return CallTorch([&] {
      hidden.backward(hidden_gradient);
      CollectGradients(first, gradients);
      AddEmbeddingGradient(batch.ids, rows.grad(), first, gradients);
    });
  }

  absl::StatusOr<at::Tensor> Hidden(const std::vector<int64_t>& ids,
                                    const std::vector<int64_t>& lengths) override {
    const at::NoGradGuard no_grad;
    return ForwardHidden(weights_, {IdTensor(ids), lengths});
  }

 private:
  // A view; `ids` must outlive it.
  static at::Tensor IdTensor(const std::vector<int64_t>& ids) {
    return at::from_blob(const_cast<int64_t*>(ids.data()), {static_cast<int64_t>(ids.size())},
                         at::TensorOptions().dtype(at::kLong));
  }

  float* Place(absl::string_view name, absl::Span<float> gradients) const {
    const FlatParameter* parameter = layout_.Find(name);
    SH_CHECK(parameter != nullptr, name);
    return gradients.data() + parameter->offset;
  }

  absl::Status RunHead(const MicroBatch& batch, absl::Span<const double> coefficients, bool first,
                       const at::Tensor& hidden, absl::Span<float> gradients,
                       std::vector<std::vector<float>>* values, at::Tensor* hidden_gradient) {
    const bool all_count = batch.loss_rows.size() == batch.ids.size();
    const bool tied = weights_.config.tie_embeddings;
    at::Tensor rows, row_gradient, loss_rows;
    RowTargets targets;
    targets.labels = batch.labels;
    targets.sampled = &batch.sampled;
    targets.top = &batch.top;
    targets.teacher_entropy = batch.teacher_entropy;
    HeadGradients out;
    out.first = first;
    SH_RETURN_IF_ERROR(CallTorch([&] {
      loss_rows = IdTensor(batch.loss_rows);
      rows = all_count ? hidden.contiguous() : at::index_select(hidden, 0, loss_rows);
      row_gradient = at::empty(rows.sizes(), rows.options());
      out.hidden = row_gradient;
      out.head = at::from_blob(Place(tied ? kEmbedding : kHead, gradients),
                               HeadWeight(weights_).sizes(), at::TensorOptions().dtype(at::kFloat));
      if (batch.teacher_hidden.rows() > 0) {
        targets.teacher_hidden =
            at::from_blob(const_cast<uint16_t*>(batch.teacher_hidden.values.data()),
                          {static_cast<int64_t>(batch.teacher_hidden.rows()),
                           static_cast<int64_t>(batch.teacher_hidden.hidden_size)},
                          at::TensorOptions().dtype(at::kBFloat16))
                .to(hidden.scalar_type());
      }
    }));
    SH_RETURN_IF_ERROR(
        head_loss_.Run(rows, HeadWeight(weights_).detach(), targets, coefficients, out, values));
    return CallTorch([&] {
      if (all_count) {
        *hidden_gradient = row_gradient;
        return;
      }
      *hidden_gradient = at::zeros_like(hidden);
      hidden_gradient->index_copy_(0, loss_rows, row_gradient);
    });
  }

  void CollectGradients(bool first, absl::Span<float> gradients) {
    for (NamedTensor& named : weights_.Named()) {
      if (named.name == kEmbedding || named.name == kHead) continue;
      SH_CHECK(named.tensor.grad().defined(), named.name);
      AccumulateTensor(named.tensor.grad(), first, Place(named.name, gradients));
      named.tensor.mutable_grad().reset();
    }
  }

  // One row after the other: tokens repeat, and the order of a sum decides its bits.
  void AddEmbeddingGradient(const std::vector<int64_t>& ids, const at::Tensor& row_gradient,
                            bool first, absl::Span<float> gradients) {
    const at::Tensor rows = row_gradient.to(at::kFloat).contiguous();
    const auto width = static_cast<size_t>(rows.size(1));
    float* out = Place(kEmbedding, gradients);
    const bool overwrite = first && !weights_.config.tie_embeddings;
    if (overwrite) std::fill(out, out + layout_.Find(kEmbedding)->count, 0.0f);
    for (size_t t = 0; t < ids.size(); ++t) {
      AccumulateGradient(rows.const_data_ptr<float>() + t * width, width, /*first=*/false,
                         out + static_cast<size_t>(ids[t]) * width);
    }
  }

  const DecoderWeights weights_;
  const FlatLayout layout_;
  HeadLoss head_loss_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StudentModel>> MakeAutogradStudent(const ModelConfig& config,
                                                                  const TensorView& weights,
                                                                  const StudentLossOptions& loss) {
  SH_ASSIGN_OR_RETURN(DecoderWeights bound, BindStudent(config, weights, loss, /*trains=*/true));
  return std::unique_ptr<StudentModel>(
      std::make_unique<AutogradStudent>(std::move(bound), StudentLayout(config), loss));
}

}  // namespace stillhouse
