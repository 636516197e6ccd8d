// A verb of coordinatorctl: what the command line says, and the function that then does it.
//
// Each verb is one function AddXxxVerb in one .cc file. It adds its subcommand with options, a
// one-line description and, as footer, examples; the subcommand's callback leaves the work in
// `chosen`:
//
//   void AddGetVerb(Command app, ChosenVerb& chosen) {
//     auto options = std::make_shared<GetOptions>();
//     Command verb = app.AddCommand("get", "List jobs and runs");
//     verb.AddOption("NAME", &options->name, "…");
//     verb.SetFooter("Examples:\n  coordinatorctl get\n");
//     verb.OnParsed([options, &chosen] { chosen = [options] { return Get(*options); }; });
//   }
//
// The result is the exit code; a Status is printed as one line and becomes ExitCodeFor(status).
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "common/command_line.h"

namespace stillhouse {

using ChosenVerb = std::function<absl::StatusOr<int>()>;

void AddInitVerb(Command app, ChosenVerb& chosen);
void AddCheckVerb(Command app, ChosenVerb& chosen);
void AddLocalVerb(Command app, ChosenVerb& chosen);
void AddSubmitVerb(Command app, ChosenVerb& chosen);
void AddGetVerb(Command app, ChosenVerb& chosen);
void AddDescribeVerb(Command app, ChosenVerb& chosen);
void AddWatchVerb(Command app, ChosenVerb& chosen);
void AddCancelVerb(Command app, ChosenVerb& chosen);
void AddWorkersVerb(Command app, ChosenVerb& chosen);
void AddLogsVerb(Command app, ChosenVerb& chosen);
void AddVersionVerb(Command app, ChosenVerb& chosen);
void AddHelpVerb(Command app, ChosenVerb& chosen);

}  // namespace stillhouse
