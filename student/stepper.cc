#include "student/stepper.h"

#include <utility>

#include "common/log.h"
#include "common/status.h"
#include "model/parallel.h"
#include "student/run_stop.h"

namespace stillhouse {
namespace {

constexpr int64_t kElementsPerTask = 1 << 16;

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

}  // namespace

void RunOnComputeThreads(size_t n, RangeBody body) {
  ParallelFor(0, static_cast<int64_t>(n), n < 4096 ? 1 : kElementsPerTask,
              [&](int64_t begin, int64_t end) {
                body(static_cast<size_t>(begin), static_cast<size_t>(end));
              });
}

Stepper::Stepper(const StudentRecipe& recipe, std::vector<LossTerm> terms, StudentModel& model,
                 Zero2& zero2)
    : recipe_(recipe),
      terms_(std::move(terms)),
      schedule_(ScheduleOf(recipe)),
      adamw_options_{recipe.optimizer.beta1, recipe.optimizer.beta2, recipe.optimizer.epsilon,
                     recipe.optimizer.weight_decay},
      model_(model),
      zero2_(zero2) {}

absl::Status Stepper::AddGradients(const Plan& plan, absl::Span<const DocumentTargets> documents,
                                   const StepSplit& split, absl::FunctionRef<absl::Status()> check,
                                   std::vector<double>* parts) {
  std::vector<uint32_t> numbers;
  for (const DocumentTargets& document : documents) numbers.push_back(document.document);
  const auto counted = static_cast<double>(split.counted_rows);
  std::vector<double> coefficients;
  for (const LossTerm& term : terms_) coefficients.push_back(term.weight / counted);
  const std::vector<DocumentGroup> groups =
      MicroBatchesOf(plan, numbers, static_cast<uint64_t>(recipe_.micro_batch), recipe_.packing);
  SH_CHECK(groups.size() <= split.micro_batches);
  std::vector<std::vector<float>> values;
  for (const DocumentGroup& group : groups) {
    SH_RETURN_IF_ERROR(check());
    const MicroBatch batch = MakeMicroBatch(
        plan, documents.subspan(group.begin, group.end - group.begin), recipe_.packing);
    zero2_.BeginMicroBatch();
    SH_RETURN_IF_ERROR(model_.AddGradients(batch, coefficients, zero2_, &values));
    SH_RETURN_IF_ERROR(zero2_.EndMicroBatch());
    for (size_t k = 0; k < terms_.size(); ++k) {
      for (const float value : values[k]) (*parts)[k] += value;
    }
  }
  for (size_t i = groups.size(); i < split.micro_batches; ++i) {
    SH_RETURN_IF_ERROR(zero2_.AddNothing());
  }
  return absl::OkStatus();
}

absl::Status Stepper::NoteSkipped(const StepMetrics& metrics, SkippedSteps* skipped) const {
  if (!metrics.skipped) {
    skipped->in_a_row = 0;
    return absl::OkStatus();
  }
  ++skipped->total;
  ++skipped->in_a_row;
  const std::string what = absl::StrCat("step ", metrics.step, ": loss ", metrics.loss,
                                        ", gradient norm ", metrics.gradient_norm);
  if (skipped->in_a_row >= kSkippedInARowMax) {
    return StopStatus(RunStop::kDiverged,
                      absl::StrCat(what, ", the ", skipped->in_a_row,
                                   "th step in a row that is "
                                   "not finite: lower optimizer.lr or clip more tightly"));
  }
  LogWarning(what, ": not finite, the step is skipped");
  return absl::OkStatus();
}

absl::StatusOr<StepMetrics> Stepper::Step(const Plan& plan,
                                          absl::Span<const DocumentTargets> documents,
                                          const StepSplit& split, uint64_t step,
                                          SkippedSteps* skipped,
                                          absl::FunctionRef<absl::Status()> check) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.rows = split.rows;
  metrics.counted_rows = split.counted_rows;
  metrics.parts.assign(terms_.size(), 0.0);
  zero2_.BeginStep();
  SH_RETURN_IF_ERROR(AddGradients(plan, documents, split, check, &metrics.parts));
  metrics.learning_rate = LearningRateAt(schedule_, step);
  SH_ASSIGN_OR_RETURN(const UpdateOutcome outcome,
                      zero2_.Update({.adamw = adamw_options_,
                                     .update = step - skipped->total,
                                     .learning_rate = metrics.learning_rate,
                                     .clip = recipe_.optimizer.clip},
                                    absl::MakeSpan(metrics.parts), RunOnComputeThreads));
  metrics.gradient_norm = outcome.gradient_norm;
  metrics.skipped = outcome.skipped;
  for (size_t k = 0; k < terms_.size(); ++k) {
    if (metrics.counted_rows > 0) metrics.parts[k] /= static_cast<double>(metrics.counted_rows);
    metrics.loss += terms_[k].weight * metrics.parts[k];
  }
  SH_RETURN_IF_ERROR(NoteSkipped(metrics, skipped));
  return metrics;
}

}  // namespace stillhouse
