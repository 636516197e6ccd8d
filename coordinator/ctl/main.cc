// coordinatorctl: everything about jobs, runs and the cache, from a terminal.
//
// Exit codes: 0 done, 2 the command line is wrong, else ExitCodeFor (docs/exit-codes.md).
#include <cstdio>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/command_line.h"
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
constexpr void (*kVerbs[])(Command, ChosenVerb&) = {
    AddInitVerb,     AddCheckVerb, AddLocalVerb,   AddSubmitVerb,  AddGetVerb,
    AddDescribeVerb, AddWatchVerb, AddCancelVerb,  AddWorkersVerb, AddLogsVerb,
    AddCacheVerb,    AddHelpVerb,  AddVersionVerb,
};

int Main(int argc, char** argv) {
  CommandLine command_line("Distil language models: teacher, cache and students of a recipe.",
                           "coordinatorctl");
  command_line.SetVersion("coordinatorctl " SH_VERSION);
  command_line.RequireCommand();
  command_line.SetFooter(kExitCodes);
  ChosenVerb chosen;
  for (const auto add_verb : kVerbs) add_verb(command_line, chosen);
  Command about = command_line;
  std::string path = "coordinatorctl";
  for (int i = 1; i < argc && argv[i][0] != '-' && about.HasCommands(); ++i) {
    const std::optional<Command> found = about.Find(argv[i]);
    if (!found.has_value()) {
      std::fprintf(stderr, "coordinatorctl: no verb '%s' (%s --help)\n", argv[i], path.c_str());
      return kExitUsage;
    }
    about = *found;
    absl::StrAppend(&path, " ", argv[i]);
  }
  if (const auto code = command_line.Parse(argc, argv, UsageErrors::kOneLine)) return *code;
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
