// The command line of a program: its options, its commands, and what is said about them.
//
// A thin front of CLI11, whose header takes ten seconds to compile wherever it is included: only
// command_line.cc does. Names read as CLI11 has them: "-o,--output" is an option, "JOB" an argument
// by its position, "!--no-x" a flag that makes its variable false.
//
// Owner: main. Not thread-safe. A mistake in what is declared (a name twice) is a bug and ends the
// process; a mistake in what is given is told on standard error by Parse.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace stillhouse {

// A handle of one option, valid while the CommandLine is; copies mean the same option.
class CommandOption {
 public:
  CommandOption Required();
  CommandOption ShowDefault();                       // what the variable holds now, in the help
  CommandOption ValueName(const std::string& name);  // how the help calls its value, as FILE
  CommandOption OneOf(const std::vector<std::string>& words);
  // Both ends are allowed.
  CommandOption Range(int low, int high);
  CommandOption Range(uint64_t low, uint64_t high);
  CommandOption Excludes(const CommandOption& other);  // not both may be given
  CommandOption OneValueEach();  // of a list: each value needs the option's name before it

 private:
  friend class Command;
  explicit CommandOption(CLI::Option* option) : option_(option) {}
  CLI::Option* option_;
};

// A handle of one command, valid while the CommandLine is; copies mean the same command.
class Command {
 public:
  Command AddCommand(const std::string& name, const std::string& description);

  // What is given is written to `value`, which must outlive the parsing.
  CommandOption AddOption(const std::string& names, std::string* value,
                          const std::string& description = "");
  CommandOption AddOption(const std::string& names, int* value,
                          const std::string& description = "");
  CommandOption AddOption(const std::string& names, int64_t* value,
                          const std::string& description = "");
  CommandOption AddOption(const std::string& names, uint64_t* value,
                          const std::string& description = "");
  CommandOption AddOption(const std::string& names, double* value,
                          const std::string& description = "");
  CommandOption AddOption(const std::string& names, std::optional<uint64_t>* value,
                          const std::string& description = "");
  CommandOption AddOption(const std::string& names, std::vector<std::string>* value,
                          const std::string& description = "");
  CommandOption AddFlag(const std::string& names, bool* value, const std::string& description = "");

  // An option whose value is one of `words`.
  template <typename Enum>
  CommandOption AddChoice(const std::string& names, Enum* value,
                          const std::map<std::string, Enum>& words,
                          const std::string& description) {
    static_assert(std::is_enum_v<Enum>);
    std::map<std::string, int> numbers;
    for (const auto& [word, meaning] : words) numbers[word] = static_cast<int>(meaning);
    return AddChoiceOfNumbers(
        names, numbers, [value](int number) { *value = static_cast<Enum>(number); }, description);
  }

  void SetFooter(const std::string& text);    // of the help
  void RequireCommand();                      // exactly one of its commands must be given
  void OnParsed(std::function<void()> call);  // called by Parse when this command was given

  bool HasCommands() const;
  std::optional<Command> Find(const std::string& name) const;  // one of its commands
  bool Chose(const std::string& name) const;  // after Parse. REQUIRES: it has the command
  // `program`: what stands before the command's name in the usage; "" for the whole program.
  std::string Help(const std::string& program) const;

 protected:
  explicit Command(CLI::App* app) : app_(app) {}
  CLI::App* app_;

 private:
  CommandOption AddChoiceOfNumbers(const std::string& names,
                                   const std::map<std::string, int>& words,
                                   std::function<void(int)> chosen, const std::string& description);
};

// How Parse tells of a mistake.
enum class UsageErrors {
  kTwoLines,  // what is wrong; "Run with --help for more information."
  kOneLine,   // "PROGRAM: what is wrong (PROGRAM --help)"
};

// Control characters become spaces: what files and other processes say may hold any, and would move
// the cursor of who reads it, or make two lines of one.
std::string WithoutControls(std::string text);

// The program itself. A Command made from it, as when it is passed on, is the handle of its top.
class CommandLine : public Command {
 public:
  // An empty `program` stands for argv[0].
  explicit CommandLine(const std::string& description, const std::string& program = "");
  ~CommandLine();
  CommandLine(const CommandLine&) = delete;
  CommandLine& operator=(const CommandLine&) = delete;

  void SetVersion(const std::string& text);  // what --version prints

  // Nothing when all was read; else the exit code to end with: kExitOk after --help or --version,
  // kExitUsage after a mistake.
  std::optional<int> Parse(int argc, const char* const* argv,
                           UsageErrors errors = UsageErrors::kTwoLines);

 private:
  explicit CommandLine(std::unique_ptr<CLI::App> app);
  const std::unique_ptr<CLI::App> owned_;
};

}  // namespace stillhouse
