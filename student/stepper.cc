#include "student/stepper.h"

#include <cmath>
#include <utility>

#include "common/status.h"
#include "model/parallel.h"
#include "student/run_stop.h"

namespace stillhouse {
namespace {

constexpr int64_t kElementsPerTask = 1 << 16;

void RunParallel(size_t n, RangeBody body) {
  ParallelFor(0, static_cast<int64_t>(n), n < 4096 ? 1 : kElementsPerTask,
              [&](int64_t begin, int64_t end) {
                body(static_cast<size_t>(begin), static_cast<size_t>(end));
              });
}

LearningRateSchedule ScheduleOf(const StudentRecipe& recipe) {
  LearningRateSchedule schedule;
  schedule.peak = recipe.optimizer.lr;
  schedule.steps = static_cast<uint64_t>(recipe.steps);
  schedule.warmup = recipe.optimizer.warmup;
  schedule.shape = recipe.optimizer.schedule == OptimizerRecipe::Schedule::kCosine
                       ? LearningRateSchedule::Shape::kCosine
                       : LearningRateSchedule::Shape::kConstant;
  return schedule;
}

TensorView Fp32(FlatBuffer<float>& buffer) { return {buffer.data(), buffer.size(), DType::kF32}; }

}  // namespace

Stepper::Stepper(const StudentRecipe& recipe, std::vector<LossTerm> terms, StudentModel& model,
                 StudentState& state)
    : recipe_(recipe),
      terms_(std::move(terms)),
      schedule_(ScheduleOf(recipe)),
      adamw_options_{recipe.optimizer.beta1, recipe.optimizer.beta2, recipe.optimizer.epsilon,
                     recipe.optimizer.weight_decay},
      model_(model),
      state_(state),
      adamw_(MakeCpuAdamW()) {}

absl::Status Stepper::AddGradients(const Plan& plan, absl::Span<const DocumentTargets> documents,
                                   absl::FunctionRef<absl::Status()> check, StepMetrics* metrics) {
  std::vector<uint32_t> rows;
  for (const DocumentTargets& document : documents) {
    rows.push_back(plan.document(document.document).rows());
    metrics->rows += rows.back();
    metrics->counted_rows += CountedRows(plan.document(document.document));
  }
  metrics->parts.assign(terms_.size(), 0.0);
  if (metrics->counted_rows == 0) {
    std::fill(state_.gradients.span().begin(), state_.gradients.span().end(), 0.0f);
    return absl::OkStatus();
  }
  const auto counted = static_cast<double>(metrics->counted_rows);
  std::vector<double> coefficients;
  for (const LossTerm& term : terms_) coefficients.push_back(term.weight / counted);

  bool first = true;
  size_t next = 0;
  std::vector<std::vector<float>> values;
  for (const size_t size :
       GroupDocuments(rows, static_cast<uint64_t>(recipe_.micro_batch), recipe_.packing)) {
    SH_RETURN_IF_ERROR(check());
    const MicroBatch batch = MakeMicroBatch(plan, documents.subspan(next, size), recipe_.packing);
    next += size;
    if (batch.loss_rows.empty()) continue;
    SH_RETURN_IF_ERROR(
        model_.AddGradients(batch, coefficients, first, state_.gradients.span(), &values));
    first = false;
    for (size_t k = 0; k < terms_.size(); ++k) {
      for (const float value : values[k]) metrics->parts[k] += value;
    }
  }
  for (size_t k = 0; k < terms_.size(); ++k) {
    metrics->parts[k] /= counted;
    metrics->loss += terms_[k].weight * metrics->parts[k];
  }
  return absl::OkStatus();
}

absl::StatusOr<StepMetrics> Stepper::Step(const Plan& plan,
                                          absl::Span<const DocumentTargets> documents,
                                          uint64_t step, absl::FunctionRef<absl::Status()> check) {
  StepMetrics metrics;
  metrics.step = step;
  SH_RETURN_IF_ERROR(AddGradients(plan, documents, check, &metrics));
  metrics.gradient_norm = std::sqrt(SumOfSquares(state_.gradients.span(), RunParallel));
  if (!std::isfinite(metrics.gradient_norm) || !std::isfinite(metrics.loss)) {
    return StopStatus(
        RunStop::kDiverged,
        absl::StrCat("step ", step, ": loss ", metrics.loss, ", gradient norm ",
                     metrics.gradient_norm, ": lower optimizer.lr or clip more tightly"));
  }
  metrics.learning_rate = LearningRateAt(schedule_, step);
  const AdamWScalars scalars =
      AdamWScalarsFor(adamw_options_, step, metrics.learning_rate,
                      ClipScale(metrics.gradient_norm, recipe_.optimizer.clip));
  AdamWBuffers buffers{
      Fp32(state_.masters), Fp32(state_.first), Fp32(state_.second), Fp32(state_.gradients), {}};
  if (state_.weights.size() > 0) buffers.weights = state_.Weights();
  SH_RETURN_IF_ERROR(adamw_->Step(buffers, scalars, RunParallel));
  return metrics;
}

}  // namespace stillhouse
