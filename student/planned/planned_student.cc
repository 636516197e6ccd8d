#include <algorithm>
#include <utility>

#include "ATen/core/grad_mode.h"
#include "ATen/ops/from_blob.h"
#include "common/status.h"
#include "model/decoder.h"
#include "model/torch_status.h"
#include "student/bind_student.h"
#include "student/planned/planned_step.h"
#include "student/student_model.h"

namespace stillhouse {
namespace {

// The whole flat buffer: a parameter's first gradient overwrites where `first`.
class FlatSink final : public GradientSink {
 public:
  explicit FlatSink(const FlatLayout& layout)
      : layout_(layout), begun_(layout.parameters().size()) {}

  void Start(bool first, absl::Span<float> gradients) {
    SH_CHECK(gradients.size() == layout_.size());
    gradients_ = gradients;
    std::fill(begun_.begin(), begun_.end(), first ? 0 : 1);
  }

  absl::StatusOr<GradientPlace> Begin(size_t parameter) override {
    GradientPlace place;
    place.data = gradients_.data() + layout_.parameters()[parameter].offset;
    place.add = std::exchange(begun_[parameter], 1) != 0;
    return place;
  }
  absl::Status Ready(size_t) override { return absl::OkStatus(); }
  absl::Status AwaitWeights(size_t) override { return absl::OkStatus(); }

 private:
  const FlatLayout& layout_;
  absl::Span<float> gradients_;
  std::vector<char> begun_;
};

template <typename T>
class PlannedStudent final : public StudentModel {
 public:
  PlannedStudent(DecoderWeights decoder, const TensorView& weights, const StudentLossOptions& loss,
                 int64_t tokens_max, StepObserver* observer)
      : decoder_(std::move(decoder)),
        layout_(StudentLayout(decoder_.config)),
        observer_(observer),
        sink_(layout_),
        step_(decoder_.config, layout_, weights, loss) {
    step_.Reserve(tokens_max);
  }

  const ModelConfig& config() const override { return decoder_.config; }
  at::Tensor Head() const override { return HeadWeight(decoder_); }

  absl::Status AddGradients(const MicroBatch& batch, absl::Span<const double> coefficients,
                            bool first, absl::Span<float> gradients,
                            std::vector<std::vector<float>>* values) override {
    sink_.Start(first, gradients);
    absl::Status status;
    SH_RETURN_IF_ERROR(
        CallTorch([&] { status = step_.Run(batch, coefficients, sink_, observer_, values); }));
    return status;
  }

  absl::StatusOr<at::Tensor> Hidden(const std::vector<int64_t>& ids,
                                    const std::vector<int64_t>& lengths) override {
    const at::NoGradGuard no_grad;
    const at::Tensor row =
        at::from_blob(const_cast<int64_t*>(ids.data()), {static_cast<int64_t>(ids.size())},
                      at::TensorOptions().dtype(at::kLong));
    return ForwardHidden(decoder_, {row, lengths});
  }

 private:
  const DecoderWeights decoder_;
  const FlatLayout layout_;
  StepObserver* const observer_;
  FlatSink sink_;
  planned::PlannedStep<T> step_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StudentModel>> MakePlannedStudent(const ModelConfig& config,
                                                                 const TensorView& weights,
                                                                 const StudentLossOptions& loss,
                                                                 int64_t tokens_max,
                                                                 StepObserver* observer) {
  SH_ASSIGN_OR_RETURN(DecoderWeights decoder, BindStudent(config, weights, loss, /*trains=*/false));
  std::unique_ptr<StudentModel> student;
  SH_RETURN_IF_ERROR(CallTorch([&] {
    if (weights.dtype == DType::kBF16) {
      student = std::make_unique<PlannedStudent<uint16_t>>(std::move(decoder), weights, loss,
                                                           tokens_max, observer);
    } else {
      student = std::make_unique<PlannedStudent<float>>(std::move(decoder), weights, loss,
                                                        tokens_max, observer);
    }
  }));
  return student;
}

}  // namespace stillhouse
