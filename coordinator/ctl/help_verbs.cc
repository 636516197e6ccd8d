// help, version.
#include <cstdio>
#include <memory>
#include <string>

#include "common/command_line.h"
#include "common/status.h"
#include "coordinator/ctl/output.h"
#include "coordinator/ctl/verb.h"

namespace stillhouse {

void AddVersionVerb(Command app, ChosenVerb& chosen) {
  Command verb = app.AddCommand("version", "Print the version");
  verb.OnParsed([&chosen] {
    chosen = [] {
      std::printf("coordinatorctl %s\n", SH_VERSION);
      return kExitOk;
    };
  });
}

void AddHelpVerb(Command app, ChosenVerb& chosen) {
  auto names = std::make_shared<std::vector<std::string>>();
  Command verb = app.AddCommand("help", "Explain a verb, with examples");
  verb.AddOption("VERB", names.get(), "for example: cache ls");
  verb.SetFooter("Examples:\n  coordinatorctl help local\n  coordinatorctl help cache ls\n");
  verb.OnParsed([names, app, &chosen] {
    chosen = [names, app]() -> absl::StatusOr<int> {
      Command about = app;
      for (const std::string& name : *names) {
        const std::optional<Command> found = about.Find(name);
        if (!found.has_value()) {
          PrintError(absl::StrCat("no verb '", name, "'; coordinatorctl --help lists them"));
          return kExitUsage;
        }
        about = *found;
      }
      std::string program = names->empty() ? "" : "coordinatorctl";
      for (size_t i = 0; i + 1 < names->size(); ++i) absl::StrAppend(&program, " ", (*names)[i]);
      std::fputs(about.Help(program).c_str(), stdout);
      return kExitOk;
    };
  });
}

}  // namespace stillhouse
