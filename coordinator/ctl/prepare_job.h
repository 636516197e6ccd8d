// PrepareJob: everything that is done before anything runs: recipe, teacher, plan.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "dataset/plan.h"
#include "formats/model_config.h"
#include "recipe/recipe.h"
#include "storage/job_object.h"
#include "storage/sections.h"
#include "storage/service/cache_client.h"

namespace stillhouse {

class RpcClient;

// Plans do not depend on a recipe's name: two recipes over the same data share one, and with it the
// cache.
inline constexpr uint64_t kPlanSeed = 0;

struct PreparedJob {
  Recipe recipe;
  ModelConfig teacher_config;
  Digest teacher;
  std::string plan_path;
  std::shared_ptr<const Plan> plan;
  std::vector<SectionSpec> sections;           // of training chunks
  std::vector<SectionSpec> held_out_sections;  // of held-out chunks
  std::vector<std::string> first_chunk_artefacts;

  std::string JobName() const { return "job/" + recipe.name; }
  RunInputs Inputs() const { return {plan->digest(), teacher}; }
  JobObject Object() const;
};

// The sections a recipe's job captures.
std::vector<SectionSpec> TrainingSections(const Recipe& recipe, const ModelConfig& teacher);
std::vector<SectionSpec> HeldOutSections(const ModelConfig& teacher);

// `say` gets lines for people. The plan is kept in <output>/.stillhouse/plans and used again while
// its inputs are as they were.
absl::StatusOr<std::shared_ptr<const PreparedJob>> PrepareJob(
    const Recipe& recipe, const std::function<void(const std::string&)>& say);

// Stores the plan and the job's description in the cache, durably.
void StoreJob(CacheClient& cache, std::shared_ptr<const PreparedJob> job,
              absl::AnyInvocable<void(absl::Status)> done);
struct Submitted {
  bool resumed = false;            // this very job was known already
  std::vector<std::string> notes;  // for people: which runs begin anew, and why
};
// Asks the coordinator to run it; `key` makes a repeated request harmless.
void SubmitJob(RpcClient& coordinator, const PreparedJob& job, const std::string& key,
               absl::AnyInvocable<void(absl::StatusOr<Submitted>)> done);
// A key that no other submission has.
std::string NewSubmissionKey();

}  // namespace stillhouse
