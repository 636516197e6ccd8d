// A verb of coordinatorctl: what the command line says, and the function that then does it.
//
// Each verb is one function AddXxxVerb in one .cc file. It adds its subcommand with options, a
// one-line description and, as footer, examples; the subcommand's callback leaves the work in
// `chosen`:
//
//   void AddGetVerb(CLI::App& app, ChosenVerb& chosen) {
//     auto options = std::make_shared<GetOptions>();
//     CLI::App* verb = app.add_subcommand("get", "List jobs and runs");
//     verb->add_option("NAME", options->name, "…");
//     verb->footer("Examples:\n  coordinatorctl get\n");
//     verb->callback([options, &chosen] { chosen = [options] { return Get(*options); }; });
//   }
//
// The result is the exit code; a Status is printed as one line and becomes ExitCodeFor(status).
#pragma once

#include <functional>

#include "absl/status/statusor.h"

namespace CLI {
class App;
}

namespace stillhouse {

using ChosenVerb = std::function<absl::StatusOr<int>()>;

void AddInitVerb(CLI::App& app, ChosenVerb& chosen);
void AddCheckVerb(CLI::App& app, ChosenVerb& chosen);
void AddLocalVerb(CLI::App& app, ChosenVerb& chosen);
void AddSubmitVerb(CLI::App& app, ChosenVerb& chosen);
void AddGetVerb(CLI::App& app, ChosenVerb& chosen);
void AddDescribeVerb(CLI::App& app, ChosenVerb& chosen);
void AddWatchVerb(CLI::App& app, ChosenVerb& chosen);
void AddCancelVerb(CLI::App& app, ChosenVerb& chosen);
void AddWorkersVerb(CLI::App& app, ChosenVerb& chosen);
void AddLogsVerb(CLI::App& app, ChosenVerb& chosen);
void AddVersionVerb(CLI::App& app, ChosenVerb& chosen);
void AddHelpVerb(CLI::App& app, ChosenVerb& chosen);

}  // namespace stillhouse
