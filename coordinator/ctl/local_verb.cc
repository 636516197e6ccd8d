// local: a whole recipe on this machine.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "common/command_line.h"
#include "common/file.h"
#include "common/status.h"
#include "coordinator/ctl/child.h"
#include "coordinator/ctl/connection.h"
#include "coordinator/ctl/exports.h"
#include "coordinator/ctl/job_views.h"
#include "coordinator/ctl/local_job.h"
#include "coordinator/ctl/output.h"
#include "coordinator/ctl/prepare_job.h"
#include "coordinator/ctl/verb.h"

namespace stillhouse {
namespace {

struct Options {
  std::string recipe;
  int parallel = 1, workers = 1, threads = 0;
  bool plain = false;
  OutputFormat format = OutputFormat::kTable;
};

// Files that an earlier process left when it was killed in the middle. The caller holds the lock.
void RemoveLeftovers(const std::string& plans) {
  const absl::StatusOr<std::vector<std::string>> names = ListFolder(plans);
  if (!names.ok()) return;
  for (const std::string& name : *names) {
    if (absl::EndsWith(name, ".tmp")) unlink(JoinPath(plans, name).c_str());
  }
}

absl::StatusOr<int> Local(const Options& options) {
  // Teacher and student share these cores: an OpenMP thread that spins at a barrier would take them
  // from the other. Set before any thread starts; a user's own choice stays.
  setenv("OMP_WAIT_POLICY", "passive", /*overwrite=*/0);
  SH_ASSIGN_OR_RETURN(const Recipe recipe, ReadRecipe(options.recipe));
  LocalOptions local{.parallel = options.parallel,
                     .workers = options.workers,
                     .threads = options.threads,
                     .state_folder = StateFolder(recipe.output),
                     .programs = "",
                     .progress = ProgressPrinter::ForStderr(options.plain)};
  SH_ASSIGN_OR_RETURN(local.programs, ProgramsFolder());
  SH_RETURN_IF_ERROR(MakeFolders(recipe.output));
  SH_RETURN_IF_ERROR(MakeFolders(local.state_folder, 0700));
  absl::StatusOr<std::unique_ptr<FileLock>> lock =
      FileLock::Acquire(JoinPath(local.state_folder, "lock"), FileLock::Mode::kExclusive);
  if (absl::IsFailedPrecondition(lock.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat("another `coordinatorctl local` is at work in ", recipe.output));
  }
  if (!lock.ok()) return lock.status();
  RemoveLeftovers(JoinPath(local.state_folder, "plans"));
  SH_ASSIGN_OR_RETURN(std::shared_ptr<const PreparedJob> job,
                      PrepareJob(recipe, [](const std::string& line) {
                        std::fprintf(stderr, "%s\n", line.c_str());
                      }));
  SH_ASSIGN_OR_RETURN(const std::unique_ptr<LocalJob> run, LocalJob::Create(std::move(job), local));
  SH_ASSIGN_OR_RETURN(LocalJob::Result result, run->Run());
  if (result.signal != 0) return result.signal == SIGTERM ? kExitTerminated : kExitInterrupted;
  const std::vector<std::string> damaged = CheckExports(recipe.output, &result.view);
  PrintText(options.format == OutputFormat::kTable
                ? ResultTable(result.view)
                : Render(JobsAndRunsJson(result.view), options.format));
  for (const auto& problems : {result.problems, damaged}) {
    for (const std::string& problem : problems) PrintError(problem);
  }
  if (!damaged.empty() || result.unreadable) return kExitCorrupt;
  if (result.problems.empty()) return kExitOk;
  // A student that was given up without a word of its own leaves its run in the middle.
  const bool all_ended = std::all_of(result.view.runs.begin(), result.view.runs.end(), HasEnded);
  const int code = EndedCode(result.view);
  return all_ended && code != kExitOk ? code : kExitFailed;
}

}  // namespace

void AddLocalVerb(Command app, ChosenVerb& chosen) {
  auto options = std::make_shared<Options>();
  Command verb = app.AddCommand("local", "Run a whole recipe on this machine");
  verb.AddOption("RECIPE", &options->recipe, "the recipe's file").Required();
  verb.AddOption("--parallel", &options->parallel, "students trained at a time (1)")
      .Range(1, 64)
      .ValueName("N");
  verb.AddOption("--workers", &options->workers, "teacher workers (1)").Range(1, 64).ValueName("N");
  verb.AddOption("--threads", &options->threads,
                 "threads of each teacher worker and student; default: each takes all cores")
      .Range(1, 1024)
      .ValueName("N");
  verb.AddFlag("--plain", &options->plain, "lines instead of bars, on a terminal too");
  AddOutputOption(verb, &options->format);
  verb.SetFooter(
      "Starts a cache server, a coordinator, teacher workers if the cache lacks something, and "
      "the\n"
      "students; progress goes to standard error, the result to standard output. At Ctrl-C a "
      "student "
      "saves\nwhat it has trained, then all of it stops; the same command goes on from there. A "
      "second "
      "Ctrl-C\nstops at once: students then go on from their last checkpoints. Logs and state lie "
      "in\n"
      "OUTPUT/.stillhouse.\n"
      "Ends with 0 when all ended well, 1 when something failed, 7 when checkpoints or exports of "
      "a "
      "run are\ndamaged or gone, 130 when it was interrupted or "
      "something\nwas cancelled.\n"
      "Examples:\n  coordinatorctl local recipe.yaml\n"
      "  coordinatorctl local recipe.yaml --parallel 2 --threads 4 -o json > result.json\n");
  verb.OnParsed([options, &chosen] { chosen = [options] { return Local(*options); }; });
}

}  // namespace stillhouse
