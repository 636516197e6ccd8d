// help, version.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "common/status.h"
#include "coordinator/ctl/verb.h"

namespace stillhouse {

void AddVersionVerb(CLI::App& app, ChosenVerb& chosen) {
  CLI::App* verb = app.add_subcommand("version", "Print the version");
  verb->callback([&chosen] {
    chosen = [] {
      std::printf("coordinatorctl %s\n", SH_VERSION);
      return kExitOk;
    };
  });
}

void AddHelpVerb(CLI::App& app, ChosenVerb& chosen) {
  auto names = std::make_shared<std::vector<std::string>>();
  CLI::App* verb = app.add_subcommand("help", "Explain a verb, with examples");
  verb->add_option("VERB", *names, "for example: cache ls");
  verb->footer("Examples:\n  coordinatorctl help local\n  coordinatorctl help cache ls\n");
  verb->callback([names, &app, &chosen] {
    chosen = [names, &app]() -> absl::StatusOr<int> {
      CLI::App* about = &app;
      for (const std::string& name : *names) {
        try {
          about = about->get_subcommand(name);
        } catch (const CLI::OptionNotFound&) {
          return absl::NotFoundError(
              absl::StrCat("no verb '", name, "'; coordinatorctl --help lists them"));
        }
      }
      std::string prefix = "coordinatorctl";
      for (size_t i = 0; i + 1 < names->size(); ++i) absl::StrAppend(&prefix, " ", (*names)[i]);
      std::fputs(about->help(about == &app ? "" : prefix).c_str(), stdout);
      return kExitOk;
    };
  });
}

}  // namespace stillhouse
