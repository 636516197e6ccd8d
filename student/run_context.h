// RunContext: everything a run is, resolved once at its start from the coordinator's words, the
// recipe, the plan, the teacher's files and the run's own manifest.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ATen/core/Tensor.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/digest.h"
#include "dataset/plan.h"
#include "formats/model_files.h"
#include "recipe/recipe.h"
#include "storage/sections.h"
#include "student/checkpoint.h"
#include "student/losses/head_loss.h"
#include "student/rank_group.h"
#include "student/services.h"
#include "student/student_state.h"
#include "worker/run_client.h"

namespace stillhouse {

struct RunContext {
  RunSpec spec;
  Recipe recipe;
  StudentRecipe student;
  Digest run_hash;
  std::shared_ptr<const Plan> plan;
  ModelFiles teacher;
  StudentShape shape;
  std::vector<LossTerm> terms;
  std::vector<SectionSpec> sections;  // read of training documents; may be empty
  std::vector<SectionSpec>
      held_out_sections;  // read of held-out documents; empty if there are none
};

// By the ranks together, the first of them first: it waits for the teacher's block influence where
// the recipe asks for it and no manifest has the answer; `tell` is called with what it waits for,
// and with nothing when that has come. Writes
// `<run folder>/manifest.json`: run hash, plan, teacher, kept layers, parameters.
absl::StatusOr<RunContext> PrepareRun(const RunSpec& spec, const Services& services,
                                      RankGroup& group,
                                      absl::FunctionRef<void(absl::string_view)> tell);

// What checkpoints of the run must fit.
CheckpointRules RulesOf(const RunContext& context);

// The loss terms of a recipe. FailedPrecondition for sampled targets at another temperature than 1.
absl::StatusOr<std::vector<LossTerm>> LossTermsOf(const StudentRecipe& student);
// Which of the job's sections the terms read. FailedPrecondition, naming it, for one not captured.
absl::StatusOr<std::vector<SectionSpec>> SectionsOf(const std::vector<LossTerm>& terms,
                                                    const std::vector<std::string>& captured);

// The teacher's head from the cache, [V, H] in fp32. Waits until chunk 0 is durable, since the
// artefact is stored before it.
absl::StatusOr<at::Tensor> FetchTeacherHead(const RunContext& context, const Services& services);

}  // namespace stillhouse
