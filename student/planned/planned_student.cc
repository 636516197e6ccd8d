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

template <typename T>
class PlannedStudent final : public StudentModel {
 public:
  PlannedStudent(DecoderWeights decoder, const TensorView& weights, const StudentLossOptions& loss,
                 int64_t tokens_max, StepObserver* observer)
      : decoder_(std::move(decoder)),
        layout_(StudentLayout(decoder_.config)),
        observer_(observer),
        step_(decoder_.config, layout_, weights, loss) {
    step_.Reserve(tokens_max);
  }

  const ModelConfig& config() const override { return decoder_.config; }
  at::Tensor Head() const override { return HeadWeight(decoder_); }

  absl::Status AddGradients(const MicroBatch& batch, absl::Span<const double> coefficients,
                            GradientSink& sink, std::vector<std::vector<float>>* values) override {
    absl::Status status;
    SH_RETURN_IF_ERROR(
        CallTorch([&] { status = step_.Run(batch, coefficients, sink, observer_, values); }));
    return status;
  }

  absl::StatusOr<at::Tensor> Hidden(const MicroBatch& batch) override {
    const at::NoGradGuard no_grad;
    const at::Tensor row = at::from_blob(const_cast<int64_t*>(batch.ids.data()),
                                         {static_cast<int64_t>(batch.ids.size())},
                                         at::TensorOptions().dtype(at::kLong));
    return ForwardHidden(decoder_, {row, batch.lengths, batch.whole_lengths});
  }

 private:
  const DecoderWeights decoder_;
  const FlatLayout layout_;
  StepObserver* const observer_;
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
