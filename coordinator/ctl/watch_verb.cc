// watch: progress of jobs and runs until they have ended.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <string>

#include "common/event_loop.h"
#include "common/status.h"
#include "coordinator/ctl/connection.h"
#include "coordinator/ctl/job_views.h"
#include "coordinator/ctl/progress.h"
#include "coordinator/ctl/verb.h"

namespace stillhouse {
namespace {

constexpr absl::Duration kPeriod = absl::Milliseconds(500);

struct Options {
  std::string name;
  CoordinatorChoice coordinator;
  bool plain = false;
};

bool AllEnded(const AdminView& view) {
  return std::none_of(view.jobs.begin(), view.jobs.end(),
                      [](const JobView& job) { return job.state == "capturing"; }) &&
         std::all_of(view.runs.begin(), view.runs.end(), HasEnded);
}

bool AnyFailed(const AdminView& view) {
  const auto failed = [](const auto& thing) { return thing.state == "failed"; };
  return std::any_of(view.jobs.begin(), view.jobs.end(), failed) ||
         std::any_of(view.runs.begin(), view.runs.end(), failed);
}

absl::StatusOr<int> Watch(const Options& options) {
  SH_ASSIGN_OR_RETURN(const Coordinator coordinator, FindCoordinator(options.coordinator));
  EventLoop loop;
  SH_ASSIGN_OR_RETURN(const std::unique_ptr<Connection> connection,
                      Connect(loop, coordinator.file.address));
  ProgressPrinter printer(ProgressPrinter::ForStderr(options.plain));
  absl::StatusOr<int> result = kExitOk;
  ViewPoller poller(*connection->rpc, options.name, kPeriod, [&](absl::StatusOr<AdminView> view) {
    if (!view.ok()) {
      result = absl::IsDeadlineExceeded(view.status())
                   ? absl::UnavailableError("the coordinator does not answer any more")
                   : view.status();
      loop.Stop();
      return;
    }
    printer.Show(*view, loop.clock().Now());
    if (!AllEnded(*view)) return;
    result = AnyFailed(*view) ? kExitFailed : kExitOk;
    loop.Stop();
  });
  loop.Run();
  return result;
}

}  // namespace

void AddWatchVerb(CLI::App& app, ChosenVerb& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* verb =
      app.add_subcommand("watch", "Follow the progress of jobs and runs until they end");
  verb->add_option("NAME", options->name, "a job or a run; default: all");
  AddCoordinatorOptions(*verb, &options->coordinator);
  verb->add_flag("--plain", options->plain, "lines instead of bars, on a terminal too");
  verb->footer(
      "Ends with 0 when all ended well, 1 when something failed.\n"
      "Examples:\n  coordinatorctl watch\n  coordinatorctl watch run/handbook/half --plain\n");
  verb->callback([options, &chosen] { chosen = [options] { return Watch(*options); }; });
}

}  // namespace stillhouse
