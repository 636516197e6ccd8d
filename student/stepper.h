// Stepper: one optimizer step from the documents of a step: packing, accumulation, clipping,
// update.
//
// A pure function of the state's buffers, the documents and the step's number; the same bits on the
// same CPU with the same number of threads. Threads: one at a time; inside, ATen's.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dataset/plan.h"
#include "recipe/recipe.h"
#include "sharding/adamw.h"
#include "sharding/schedule.h"
#include "student/metrics_log.h"
#include "student/packing.h"
#include "student/student_model.h"
#include "student/student_state.h"

namespace stillhouse {

class Stepper {
 public:
  // `model` reads `state`'s weights; both must outlive the stepper.
  Stepper(const StudentRecipe& recipe, std::vector<LossTerm> terms, StudentModel& model,
          StudentState& state);

  // Makes update number `step` (from 1). `check` is asked between micro-batches; its error is
  // returned before anything has changed. Every term is divided by the count of the rows of the
  // whole step that it reads. A RunStop kDiverged status, with nothing changed, when loss or
  // gradient is not finite. Fills all metrics but the times.
  absl::StatusOr<StepMetrics> Step(const Plan& plan, absl::Span<const DocumentTargets> documents,
                                   uint64_t step, absl::FunctionRef<absl::Status()> check);

 private:
  absl::Status AddGradients(const Plan& plan, absl::Span<const DocumentTargets> documents,
                            absl::FunctionRef<absl::Status()> check, StepMetrics* metrics);

  const StudentRecipe recipe_;
  const std::vector<LossTerm> terms_;
  const LearningRateSchedule schedule_;
  const AdamWOptions adamw_options_;
  StudentModel& model_;
  StudentState& state_;
  std::unique_ptr<AdamWBackend> adamw_;
};

}  // namespace stillhouse
