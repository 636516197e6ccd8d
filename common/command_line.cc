#include "common/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <type_traits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"

namespace stillhouse {
namespace {

// What the option takes, in a user's words: CLI11 prints the set or map that it was given.
std::string OneOfThese(const std::vector<std::string>& words, const std::string& value) {
  return absl::StrCat("is one of ", absl::StrJoin(words, ", "), ", not '", value, "'");
}

// Whether an integer is too large for 64 bits. (As CLI11 reads it: 0x10 is one too.)
template <typename Number>
bool OutOfRange(const std::string& text) {
  errno = 0;
  if constexpr (std::is_unsigned_v<Number>) {
    std::strtoull(text.c_str(), nullptr, /*base=*/0);
  } else if constexpr (std::is_integral_v<Number>) {
    std::strtoll(text.c_str(), nullptr, /*base=*/0);
  }
  return errno == ERANGE;
}

// CLI11 takes an empty text for 0, what is too large for the largest number there is, and so -1
// where there is no sign.
template <typename Number>
CLI::Option* OnlyNumbers(CLI::Option* option) {
  return option->check([](const std::string& text) -> std::string {
    if (text.empty()) return "a number is missing";
    if (std::is_unsigned_v<Number> && text.front() == '-') return absl::StrCat(text, " is below 0");
    return OutOfRange<Number>(text) ? absl::StrCat(text, " is out of range") : std::string();
  });
}

}  // namespace

CommandOption CommandOption::Required() { return CommandOption(option_->required()); }

CommandOption CommandOption::ShowDefault() { return CommandOption(option_->capture_default_str()); }

CommandOption CommandOption::ValueName(const std::string& name) {
  return CommandOption(option_->option_text(name));
}

CommandOption CommandOption::OneOf(const std::vector<std::string>& words) {
  const auto check = [words](const std::string& value) -> std::string {
    const bool known = std::find(words.begin(), words.end(), value) != words.end();
    return known ? "" : OneOfThese(words, value);
  };
  return CommandOption(
      option_->check(CLI::Validator(check, absl::StrCat("{", absl::StrJoin(words, ","), "}"))));
}

CommandOption CommandOption::Range(int low, int high) {
  return CommandOption(option_->check(CLI::Range(low, high)));
}

CommandOption CommandOption::Range(uint64_t low, uint64_t high) {
  return CommandOption(option_->check(CLI::Range(low, high)));
}

CommandOption CommandOption::Excludes(const CommandOption& other) {
  return CommandOption(option_->excludes(other.option_));
}

CommandOption CommandOption::OneValueEach() {
  return CommandOption(option_->allow_extra_args(false));
}

Command Command::AddCommand(const std::string& name, const std::string& description) {
  return Command(app_->add_subcommand(name, description));
}

CommandOption Command::AddOption(const std::string& names, std::string* value,
                                 const std::string& description) {
  return CommandOption(app_->add_option(names, *value, description));
}

CommandOption Command::AddOption(const std::string& names, int* value,
                                 const std::string& description) {
  return CommandOption(OnlyNumbers<int>(app_->add_option(names, *value, description)));
}

CommandOption Command::AddOption(const std::string& names, int64_t* value,
                                 const std::string& description) {
  return CommandOption(OnlyNumbers<int64_t>(app_->add_option(names, *value, description)));
}

CommandOption Command::AddOption(const std::string& names, uint64_t* value,
                                 const std::string& description) {
  return CommandOption(OnlyNumbers<uint64_t>(app_->add_option(names, *value, description)));
}

CommandOption Command::AddOption(const std::string& names, double* value,
                                 const std::string& description) {
  return CommandOption(OnlyNumbers<double>(app_->add_option(names, *value, description)));
}

CommandOption Command::AddOption(const std::string& names, std::optional<uint64_t>* value,
                                 const std::string& description) {
  return CommandOption(OnlyNumbers<uint64_t>(app_->add_option(names, *value, description)));
}

CommandOption Command::AddOption(const std::string& names, std::vector<std::string>* value,
                                 const std::string& description) {
  return CommandOption(app_->add_option(names, *value, description));
}

CommandOption Command::AddFlag(const std::string& names, bool* value,
                               const std::string& description) {
  return CommandOption(app_->add_flag(names, *value, description));
}

CommandOption Command::AddChoiceOfNumbers(const std::string& names,
                                          const std::map<std::string, int>& words,
                                          std::function<void(int)> chosen,
                                          const std::string& description) {
  std::vector<std::string> known;
  for (const auto& [name, number] : words) known.push_back(name);
  const auto to_number = [words, known](std::string& value) -> std::string {
    const auto word = words.find(value);
    if (word == words.end()) return OneOfThese(known, value);
    value = std::to_string(word->second);
    return "";
  };
  return CommandOption(app_->add_option_function<int>(names, std::move(chosen), description)
                           ->transform(CLI::Validator(
                               to_number, absl::StrCat("{", absl::StrJoin(known, ","), "}"))));
}

void Command::SetFooter(const std::string& text) { app_->footer(text); }

void Command::RequireCommand() { app_->require_subcommand(1); }

void Command::OnParsed(std::function<void()> call) { app_->callback(std::move(call)); }

bool Command::HasCommands() const { return !app_->get_subcommands(nullptr).empty(); }

std::optional<Command> Command::Find(const std::string& name) const {
  try {
    return Command(app_->get_subcommand(name));
  } catch (const CLI::OptionNotFound&) {
    return std::nullopt;
  }
}

bool Command::Chose(const std::string& name) const { return app_->got_subcommand(name); }

std::string Command::Help(const std::string& program) const {
  // Not App::help, which explains the command that was given instead, as `help`.
  const std::string name =
      program.empty() ? app_->get_name() : absl::StrCat(program, " ", app_->get_name());
  return app_->get_formatter()->make_help(app_, name, CLI::AppFormatMode::Normal);
}

CommandLine::CommandLine(const std::string& description, const std::string& program)
    : CommandLine(std::make_unique<CLI::App>(description, program)) {}

CommandLine::CommandLine(std::unique_ptr<CLI::App> app)
    : Command(app.get()), owned_(std::move(app)) {}

CommandLine::~CommandLine() = default;

void CommandLine::SetVersion(const std::string& text) { app_->set_version_flag("--version", text); }

std::optional<int> CommandLine::Parse(int argc, const char* const* argv, UsageErrors errors) {
  try {
    app_->parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::Success& wanted) {
    app_->exit(wanted);
    return kExitOk;
  } catch (const CLI::ParseError& error) {
    if (errors == UsageErrors::kTwoLines) {
      app_->exit(error);
    } else {
      const std::string program = app_->get_name();
      std::fprintf(stderr, "%s: %s (%s --help)\n", program.c_str(),
                   WithoutControls(error.what()).c_str(), program.c_str());
    }
    return kExitUsage;
  }
}

std::string WithoutControls(std::string text) {
  for (char& c : text) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = ' ';
  }
  return text;
}

}  // namespace stillhouse
