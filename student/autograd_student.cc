#include <algorithm>
#include <functional>
#include <memory>
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
#include "torch/csrc/autograd/function_hook.h"
#include "torch/csrc/autograd/variable.h"

namespace stillhouse {
namespace {

constexpr int64_t kGradientsPerTask = 1 << 15;
constexpr char kEmbedding[] = "model.embed_tokens.weight";
constexpr char kHead[] = "lm_head.weight";

void AccumulateTensor(const at::Tensor& gradient, GradientPlace place) {
  const bool first = !place.add;
  float* const out = place.data;
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

// Called by autograd, on the thread that runs the backward pass, once a leaf's gradient is
// complete.
class OnGradient final : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit OnGradient(std::function<void(const at::Tensor&)> call) : call_(std::move(call)) {}
  void operator()(const torch::autograd::Variable& leaf) override { call_(leaf); }

 private:
  const std::function<void(const at::Tensor&)> call_;
};

class AutogradStudent final : public StudentModel {
 public:
  AutogradStudent(DecoderWeights weights, FlatLayout layout, const StudentLossOptions& loss)
      : weights_(std::move(weights)),
        layout_(std::move(layout)),
        head_loss_(loss.terms, loss.vocabulary, loss.teacher_head) {
    for (const NamedTensor& named : weights_.Named()) {
      if (named.name == kEmbedding || named.name == kHead) continue;
      torch::autograd::impl::set_post_acc_grad_hooks(
          named.tensor,
          std::make_unique<OnGradient>([this, index = IndexOf(named.name)](const at::Tensor& leaf) {
            TakeGradient(leaf, index);
          }));
    }
  }

  const ModelConfig& config() const override { return weights_.config; }
  at::Tensor Head() const override { return HeadWeight(weights_).detach(); }

  absl::Status AddGradients(const MicroBatch& batch, absl::Span<const double> coefficients,
                            GradientSink& sink, std::vector<std::vector<float>>* values) override {
    SH_CHECK(!batch.loss_rows.empty());
    // Autograd's forward pass cannot stop at a layer: all weights are awaited, in order of use.
    for (size_t i = layout_.parameters().size(); i-- > 0;) {
      SH_RETURN_IF_ERROR(sink.AwaitWeights(i));
    }
    // The embedding as a leaf of this batch's rows: its gradient is then [T, H], not [V, H].
    at::Tensor rows;
    DecoderWeights bound = weights_;
    DecoderBatch tokens{{}, batch.lengths, batch.whole_lengths};
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
        RunHead(batch, coefficients, hidden.detach(), sink, values, &hidden_gradient));
    sink_ = &sink;
    sink_status_ = absl::OkStatus();
    const absl::Status backward = CallTorch([&] { hidden.backward(hidden_gradient); });
    sink_ = nullptr;
    SH_RETURN_IF_ERROR(sink_status_);
    SH_RETURN_IF_ERROR(backward);
    return AddEmbeddingGradient(batch.ids, rows.grad(), sink);
  }

  absl::StatusOr<at::Tensor> Hidden(const MicroBatch& batch) override {
    const at::NoGradGuard no_grad;
    return ForwardHidden(weights_, {IdTensor(batch.ids), batch.lengths, batch.whole_lengths});
  }

 private:
  // A view; `ids` must outlive it.
  static at::Tensor IdTensor(const std::vector<int64_t>& ids) {
    return at::from_blob(const_cast<int64_t*>(ids.data()), {static_cast<int64_t>(ids.size())},
                         at::TensorOptions().dtype(at::kLong));
  }

  size_t IndexOf(absl::string_view name) const {
    const FlatParameter* parameter = layout_.Find(name);
    SH_CHECK(parameter != nullptr, name);
    return static_cast<size_t>(parameter - layout_.parameters().data());
  }

  // Of a leaf that backward is done with.
  void TakeGradient(const at::Tensor& leaf, size_t index) {
    SH_CHECK(sink_ != nullptr);
    if (!sink_status_.ok()) return;
    sink_status_ = [&]() -> absl::Status {
      SH_ASSIGN_OR_RETURN(const GradientPlace place, sink_->Begin(index));
      if (place.data != nullptr) {
        AccumulateTensor(leaf.grad(), place);
        SH_RETURN_IF_ERROR(sink_->Ready(index));
      }
      leaf.mutable_grad().reset();
      return absl::OkStatus();
    }();
  }

  absl::Status RunHead(const MicroBatch& batch, absl::Span<const double> coefficients,
                       const at::Tensor& hidden, GradientSink& sink,
                       std::vector<std::vector<float>>* values, at::Tensor* hidden_gradient) {
    const bool all_count = batch.loss_rows.size() == batch.ids.size();
    const bool tied = weights_.config.tie_embeddings;
    at::Tensor rows, row_gradient, loss_rows;
    RowTargets targets;
    targets.labels = batch.labels;
    targets.sampled = &batch.sampled;
    targets.top = &batch.top;
    targets.teacher_entropy = batch.teacher_entropy;
    const size_t head = IndexOf(tied ? kEmbedding : kHead);
    SH_ASSIGN_OR_RETURN(const GradientPlace place, sink.Begin(head));
    if (place.data == nullptr) return absl::UnimplementedError("a frozen head has no loss yet");
    HeadGradients out;
    out.first = !place.add;
    SH_RETURN_IF_ERROR(CallTorch([&] {
      loss_rows = IdTensor(batch.loss_rows);
      rows = all_count ? hidden.contiguous() : at::index_select(hidden, 0, loss_rows);
      row_gradient = at::empty(rows.sizes(), rows.options());
      out.hidden = row_gradient;
      out.head = at::from_blob(place.data, HeadWeight(weights_).sizes(),
                               at::TensorOptions().dtype(at::kFloat));
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
    if (!tied) SH_RETURN_IF_ERROR(sink.Ready(head));
    return CallTorch([&] {
      if (all_count) {
        *hidden_gradient = row_gradient;
        return;
      }
      *hidden_gradient = at::zeros_like(hidden);
      hidden_gradient->index_copy_(0, loss_rows, row_gradient);
    });
  }

  // One row after the other: tokens repeat, and the order of a sum decides its bits.
  absl::Status AddEmbeddingGradient(const std::vector<int64_t>& ids, const at::Tensor& row_gradient,
                                    GradientSink& sink) {
    const size_t embedding = IndexOf(kEmbedding);
    SH_ASSIGN_OR_RETURN(const GradientPlace place, sink.Begin(embedding));
    if (place.data == nullptr) return absl::OkStatus();
    at::Tensor rows;
    SH_RETURN_IF_ERROR(CallTorch([&] { rows = row_gradient.to(at::kFloat).contiguous(); }));
    const auto width = static_cast<size_t>(rows.size(1));
    if (!place.add) {
      std::fill_n(place.data, layout_.parameters()[embedding].count, 0.0f);
    }
    for (size_t t = 0; t < ids.size(); ++t) {
      AccumulateGradient(rows.const_data_ptr<float>() + t * width, width, /*first=*/false,
                         place.data + static_cast<size_t>(ids[t]) * width);
    }
    return sink.Ready(embedding);
  }

  const DecoderWeights weights_;
  const FlatLayout layout_;
  HeadLoss head_loss_;
  // While backward runs.
  GradientSink* sink_ = nullptr;
  absl::Status sink_status_;
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
