// get, describe, workers, cancel: one question to the coordinator each.
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "common/command_line.h"
#include "common/file.h"
#include "common/status.h"
#include "coordinator/admin_view.h"
#include "coordinator/ctl/connection.h"
#include "coordinator/ctl/exports.h"
#include "coordinator/ctl/job_views.h"
#include "coordinator/ctl/output.h"
#include "coordinator/ctl/verb.h"
#include "coordinator/journal.h"
#include "proto/admin.pb.h"

namespace stillhouse {
namespace {

struct Options {
  CoordinatorChoice coordinator;
  OutputFormat format = OutputFormat::kTable;
  std::string name;
};

absl::StatusOr<AdminView> AskLiveView(const Coordinator& coordinator, const std::string& name) {
  pb::GetRequest request;
  request.set_name(name);
  SH_ASSIGN_OR_RETURN(const std::string body,
                      AskCoordinator(coordinator, "admin.Get", request.SerializeAsString()));
  return ParseAdminView(body);
}

// From the live coordinator, or from what the last one wrote down.
absl::StatusOr<AdminView> AskViewAsWritten(const Options& options) {
  const absl::StatusOr<Coordinator> coordinator = FindCoordinator(options.coordinator);
  if (absl::IsUnavailable(coordinator.status())) {
    const absl::StatusOr<std::string> folder = FindStateFolder(options.coordinator);
    const std::string journal = folder.ok() ? JoinPath(*folder, "journal") : "";
    if (!folder.ok() || !PathExists(journal)) return coordinator.status();
    std::fprintf(stderr, "No coordinator is alive: this is what the last one wrote down.\n");
    return ReadJournal(journal, options.name);
  }
  if (!coordinator.ok()) return coordinator.status();
  return AskLiveView(*coordinator, options.name);
}

absl::StatusOr<AdminView> AskView(const Options& options) {
  SH_ASSIGN_OR_RETURN(AdminView view, AskViewAsWritten(options));
  const absl::StatusOr<std::string> folder = FindStateFolder(options.coordinator);
  const bool is_locals = folder.ok() && *folder == StateFolder(FolderOf(*folder));
  CheckExports(is_locals ? FolderOf(*folder) : "", &view);
  return view;
}

absl::StatusOr<int> Get(const Options& options) {
  SH_ASSIGN_OR_RETURN(const AdminView view, AskView(options));
  PrintText(options.format == OutputFormat::kTable ? JobsAndRunsTable(view)
                                                   : Render(JobsAndRunsJson(view), options.format));
  return kExitOk;
}

absl::StatusOr<int> Describe(const Options& options) {
  SH_ASSIGN_OR_RETURN(const AdminView view, AskView(options));
  PrintText(options.format == OutputFormat::kTable ? DescribeText(view)
                                                   : Render(JobsAndRunsJson(view), options.format));
  return kExitOk;
}

// Who is at work is in no journal.
absl::StatusOr<int> Workers(const Options& options) {
  SH_ASSIGN_OR_RETURN(const Coordinator coordinator, FindCoordinator(options.coordinator));
  SH_ASSIGN_OR_RETURN(const AdminView view, AskLiveView(coordinator, ""));
  PrintText(options.format == OutputFormat::kTable ? WorkersTable(view)
                                                   : Render(WorkersJson(view), options.format));
  return kExitOk;
}

absl::StatusOr<int> Cancel(const Options& options) {
  SH_ASSIGN_OR_RETURN(const Coordinator coordinator, FindCoordinator(options.coordinator));
  SH_ASSIGN_OR_RETURN(AdminView view, AskLiveView(coordinator, options.name));
  // The job of a run is not what was meant.
  const bool one_run = IsOfOneRun(view, options.name);
  pb::CancelRequest request;
  request.set_name(one_run ? view.runs.front().name : options.name);
  SH_RETURN_IF_ERROR(AskCoordinator(coordinator, "admin.Cancel", request.SerializeAsString()));
  SH_ASSIGN_OR_RETURN(view, AskLiveView(coordinator, request.name()));
  if (one_run) view.jobs.clear();
  std::string states;
  bool any_cancelled = false;
  const auto tell = [&](const std::string& name, const std::string& state) {
    any_cancelled |= state == "cancelled";
    absl::StrAppend(&states, name, state == "cancelled" ? " is " : " stays ", state, "\n");
  };
  for (const JobView& job : view.jobs) tell(job.name, job.state);
  for (const RunView& run : view.runs) tell(run.name, run.state);
  if (!any_cancelled) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.name, " has ended: nothing of it is left to cancel"));
  }
  PrintText(states);
  return kExitOk;
}

Command Add(Command app, const char* name, const char* what, ChosenVerb& chosen,
            absl::StatusOr<int> (*run)(const Options&), std::shared_ptr<Options> options) {
  Command verb = app.AddCommand(name, what);
  AddCoordinatorOptions(verb, &options->coordinator);
  verb.OnParsed([options, run, &chosen] { chosen = [options, run] { return run(*options); }; });
  return verb;
}

}  // namespace

void AddGetVerb(Command app, ChosenVerb& chosen) {
  auto options = std::make_shared<Options>();
  Command verb = Add(app, "get", "List jobs and their runs", chosen, Get, options);
  verb.AddOption("NAME", &options->name,
                 "a job (job/handbook) or a run (run/handbook/half); default: all");
  AddOutputOption(verb, &options->format);
  verb.SetFooter(
      "Examples:\n  coordinatorctl get\n  coordinatorctl get run/handbook/half -o json\n"
      "  coordinatorctl get --recipe recipe.yaml\n");
}

void AddDescribeVerb(Command app, ChosenVerb& chosen) {
  auto options = std::make_shared<Options>();
  Command verb = Add(app, "describe", "Tell all about a job or a run", chosen, Describe, options);
  verb.AddOption("NAME", &options->name, "a job or a run").Required();
  AddOutputOption(verb, &options->format);
  verb.SetFooter("Examples:\n  coordinatorctl describe job/handbook\n");
}

void AddWorkersVerb(Command app, ChosenVerb& chosen) {
  auto options = std::make_shared<Options>();
  Command verb =
      Add(app, "workers", "List teacher workers and students at work", chosen, Workers, options);
  AddOutputOption(verb, &options->format);
  verb.SetFooter("Examples:\n  coordinatorctl workers\n  coordinatorctl workers -o yaml\n");
}

void AddCancelVerb(Command app, ChosenVerb& chosen) {
  auto options = std::make_shared<Options>();
  Command verb =
      Add(app, "cancel", "Cancel a job with its runs, or one run", chosen, Cancel, options);
  verb.AddOption("NAME", &options->name, "a job or a run").Required();
  verb.SetFooter(
      "What was captured stays in the cache; submitting the recipe again goes on from there, and "
      "a\n"
      "run from its last checkpoint. (Ctrl-C of `local` makes one first.)\n"
      "Examples:\n  coordinatorctl cancel run/handbook/half\n  coordinatorctl cancel "
      "job/handbook\n");
}

}  // namespace stillhouse
