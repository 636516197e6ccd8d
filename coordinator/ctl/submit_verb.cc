// submit: plans a recipe, stores the plan, hands the job to a running coordinator.
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "common/command_line.h"
#include "common/event_loop.h"
#include "common/status.h"
#include "coordinator/ctl/connection.h"
#include "coordinator/ctl/output.h"
#include "coordinator/ctl/prepare_job.h"
#include "coordinator/ctl/verb.h"

namespace stillhouse {
namespace {

struct Options {
  std::string recipe;
  CoordinatorChoice coordinator;
};

absl::StatusOr<int> Submit(const Options& options) {
  SH_ASSIGN_OR_RETURN(const Coordinator coordinator, FindCoordinator(options.coordinator));
  SH_ASSIGN_OR_RETURN(const Recipe recipe, ReadRecipe(options.recipe));
  SH_ASSIGN_OR_RETURN(const std::shared_ptr<const PreparedJob> job,
                      PrepareJob(recipe, [](const std::string& line) {
                        std::fprintf(stderr, "%s\n", line.c_str());
                      }));
  EventLoop loop;
  SH_ASSIGN_OR_RETURN(const std::unique_ptr<Connection> cache_side,
                      Connect(loop, coordinator.file.cache));
  SH_ASSIGN_OR_RETURN(const std::unique_ptr<Connection> coordinator_side,
                      Connect(loop, coordinator.file.address));
  const std::unique_ptr<CacheClient> cache = MakeCacheClient(*cache_side->rpc);
  absl::StatusOr<Submitted> submitted = absl::UnknownError("not submitted");
  StoreJob(*cache, job, [&](absl::Status stored) {
    if (!stored.ok()) {
      submitted = stored;
      loop.Stop();
      return;
    }
    SubmitJob(*coordinator_side->rpc, *job, NewSubmissionKey(),
              [&](absl::StatusOr<Submitted> answer) {
                submitted = std::move(answer);
                loop.Stop();
              });
  });
  loop.Run();
  if (!submitted.ok()) return submitted.status();
  for (const std::string& note : submitted->notes) std::fprintf(stderr, "%s\n", note.c_str());
  PrintText(absl::StrCat(job->JobName(), submitted->resumed ? " goes on" : " is submitted", " (",
                         coordinator.path, "); follow it with: coordinatorctl watch ",
                         job->JobName(), "\n"));
  return kExitOk;
}

}  // namespace

void AddSubmitVerb(Command app, ChosenVerb& chosen) {
  auto options = std::make_shared<Options>();
  Command verb = app.AddCommand("submit", "Hand a recipe to a running coordinator");
  verb.AddOption("RECIPE", &options->recipe, "the recipe's file").Required();
  verb.AddOption("--coordinator", &options->coordinator.file,
                 "its coordinator.json, or the folder of that; default: the only live one")
      .ValueName("PATH");
  verb.SetFooter(
      "Teacher workers that the coordinator has take it up if they serve its teacher; students are "
      "not\n"
      "started by it, `student_trainer --run NAME` starts one. Under `coordinatorctl local` only "
      "the "
      "recipe\n"
      "it was given has students, and all ends with them. Submitting the same recipe again goes on "
      "with\nwhat is missing.\n"
      "Examples:\n  coordinatorctl submit recipe.yaml\n");
  verb.OnParsed([options, &chosen] { chosen = [options] { return Submit(*options); }; });
}

}  // namespace stillhouse
