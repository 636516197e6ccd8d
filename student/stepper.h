// Stepper: one optimizer step from the documents of a step: packing, accumulation, reduction over
// the ranks, clipping, update.
//
// A pure function of the state's buffers, the documents and the step's number; the same bits on the
// same CPU with the same number of ranks and threads. Threads: one at a time; inside, ATen's.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dataset/plan.h"
#include "recipe/recipe.h"
#include "sharding/adamw.h"
#include "sharding/schedule.h"
#include "sharding/zero2.h"
#include "student/metrics_log.h"
#include "student/packing.h"
#include "student/step_split.h"
#include "student/student_model.h"

namespace stillhouse {

// Steps whose loss or gradient was not finite. They are part of where a run stands: bias correction
// counts updates.
struct SkippedSteps {
  uint64_t total = 0, in_a_row = 0;
  friend bool operator==(const SkippedSteps&, const SkippedSteps&) = default;
};
// One bad batch is left out; what does not get better by itself ends the run.
inline constexpr uint64_t kSkippedInARowMax = 5;

// A RangeRunner over ATen's threads.
void RunOnComputeThreads(size_t n, RangeBody body);

class Stepper {
 public:
  // `model` reads the weights that `zero2` updates; both must outlive the stepper.
  Stepper(const StudentRecipe& recipe, std::vector<LossTerm> terms, StudentModel& model,
          Zero2& zero2);

  // Makes step number `step` (from 1) from this rank's `documents`, which are those that `split`
  // gives it. `check` is asked between micro-batches; its error is returned before anything has
  // changed; of several ranks it must be OK always. Every term is divided by the count of the rows
  // of the whole step, over all ranks. When a loss or the gradient is not finite on any rank, the
  // step is skipped on all: nothing changes but `skipped`; a RunStop kDiverged status after
  // kSkippedInARowMax of them. Errors of the communicator as they are (Zero2::dead). Fills all
  // metrics but the times.
  absl::StatusOr<StepMetrics> Step(const Plan& plan, absl::Span<const DocumentTargets> documents,
                                   const StepSplit& split, uint64_t step, SkippedSteps* skipped,
                                   absl::FunctionRef<absl::Status()> check);

 private:
  absl::Status AddGradients(const Plan& plan, absl::Span<const DocumentTargets> documents,
                            const StepSplit& split, absl::FunctionRef<absl::Status()> check,
                            std::vector<double>* parts);
  absl::Status NoteSkipped(const StepMetrics& metrics, SkippedSteps* skipped) const;

  const StudentRecipe recipe_;
  const std::vector<LossTerm> terms_;
  const LearningRateSchedule schedule_;
  const AdamWOptions adamw_options_;
  StudentModel& model_;
  Zero2& zero2_;
};

}  // namespace stillhouse
