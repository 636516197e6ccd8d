// coordinatorctl: everything about jobs, runs and the cache, from a terminal.
//
// Exit codes: 0 done, 2 the command line is wrong, else ExitCodeFor (docs/exit-codes.md).
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>

#include "common/log.h"
#include "common/status.h"
#include "coordinator/ctl/cache_verbs.h"
#include "coordinator/ctl/output.h"
#include "coordinator/ctl/verb.h"

namespace stillhouse {
namespace {

constexpr char kExitCodes[] =
    "Exit codes: 0 done, 1 failed, 2 wrong command line, 3 not found, 4 in conflict with what is "
    "there,\n"
    "5 not allowed, 6 nobody answers, 7 damaged data, 124 too late, 130 interrupted.\n"
    "`coordinatorctl help VERB` gives examples.\n";

// The order in which --help lists them.
constexpr void (*kVerbs[])(CLI::App&, ChosenVerb&) = {
    AddInitVerb,     AddCheckVerb, AddLocalVerb,   AddSubmitVerb,  AddGetVerb,
    AddDescribeVerb, AddWatchVerb, AddCancelVerb,  AddWorkersVerb, AddLogsVerb,
    AddCacheVerb,    AddHelpVerb,  AddVersionVerb,
};

bool HasVerb(const CLI::App& app, const std::string& name) {
  const auto verbs = app.get_subcommands([](const CLI::App*) { return true; });
  return std::any_of(verbs.begin(), verbs.end(),
                     [&](const CLI::App* verb) { return verb->check_name(name); });
}

int Main(int argc, char** argv) {
  CLI::App app("Distil language models: teacher, cache and students of a recipe.",
               "coordinatorctl");
  app.set_version_flag("--version", "coordinatorctl " SH_VERSION);
  app.require_subcommand(1);
  app.footer(kExitCodes);
  ChosenVerb chosen;
  for (const auto add_verb : kVerbs) add_verb(app, chosen);
  if (argc > 1 && argv[1][0] != '-' && !HasVerb(app, argv[1])) {
    std::fprintf(stderr, "coordinatorctl: no verb '%s' (coordinatorctl --help)\n", argv[1]);
    return kExitUsage;
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& wanted) {  // --help, --version
    app.exit(wanted);
    return kExitOk;
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "coordinatorctl: %s (coordinatorctl --help)\n", error.what());
    return kExitUsage;
  }
  SH_CHECK(chosen != nullptr, "a verb without work");
  if (absl::Status status = InitLog({.program = "coordinatorctl"}); !status.ok()) {
    std::fprintf(stderr, "coordinatorctl: %s\n", std::string(status.message()).c_str());
    return ExitCodeFor(status);
  }
  const absl::StatusOr<int> result = chosen();
  if (!result.ok()) {
    PrintError(result.status().message());
    return ExitCodeFor(result.status());
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    PrintError("standard output could not be written");
    return kExitFailed;
  }
  return *result;
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }
