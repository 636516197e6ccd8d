// logs: what a process of `coordinatorctl local` wrote.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/command_line.h"
#include "common/event_loop.h"
#include "common/file.h"
#include "common/status.h"
#include "coordinator/ctl/connection.h"
#include "coordinator/ctl/output.h"
#include "coordinator/ctl/verb.h"

namespace stillhouse {
namespace {

constexpr absl::Duration kFollowPeriod = absl::Milliseconds(200);

struct Options {
  std::string name;
  CoordinatorChoice coordinator;
  bool follow = false;
};

// The log of a process (teacher-0, coordinator, cache, student-half) or of a run (half,
// run/handbook/half).
absl::StatusOr<std::string> FindLog(const std::string& folder, const std::string& name) {
  SH_ASSIGN_OR_RETURN_AT(const std::vector<std::string> files, ListFolder(folder), "no logs yet");
  std::vector<std::string> names;
  for (const std::string& file : files) {
    const std::string process(absl::StripSuffix(file, ".log"));
    if (process == name || process == absl::StrCat("student-", BaseName(name))) {
      return JoinPath(folder, file);
    }
    names.push_back(process);
  }
  return absl::NotFoundError(absl::StrCat("no log of ", name, " in ", folder,
                                          "; there are: ", absl::StrJoin(names, ", ")));
}

// Prints what was appended since the last call.
class Tail {
 public:
  explicit Tail(std::FILE* file) : file_(file) {}
  void PrintMore() {
    char buffer[1 << 16];
    std::clearerr(file_.get());
    while (const size_t count = std::fread(buffer, 1, sizeof(buffer), file_.get())) {
      PrintText({buffer, count});
    }
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::unique_ptr<std::FILE, Close> file_;
};

absl::StatusOr<int> Logs(const Options& options) {
  SH_ASSIGN_OR_RETURN(const std::string state, FindStateFolder(options.coordinator));
  SH_ASSIGN_OR_RETURN(const std::string path, FindLog(JoinPath(state, "logs"), options.name));
  std::FILE* file = std::fopen(path.c_str(), "rbe");
  if (file == nullptr) return ErrnoStatus("opening", path);
  Tail tail(file);
  tail.PrintMore();
  if (!options.follow) return kExitOk;
  EventLoop loop;
  std::function<void()> again = [&] {
    tail.PrintMore();
    loop.PostAfter(kFollowPeriod, again);
  };
  again();
  loop.Run();  // until a signal ends the program
  return kExitOk;
}

}  // namespace

void AddLogsVerb(Command app, ChosenVerb& chosen) {
  auto options = std::make_shared<Options>();
  Command verb = app.AddCommand("logs", "Show the log of a process or a run");
  verb.AddOption("NAME", &options->name,
                 "cache, coordinator, teacher-0, … or a run (run/handbook/half, or just half)")
      .Required();
  AddCoordinatorOptions(verb, &options->coordinator);
  verb.AddFlag("-f,--follow", &options->follow, "go on with what is appended, until Ctrl-C");
  verb.SetFooter(
      "Examples:\n  coordinatorctl logs half -f\n  coordinatorctl logs teacher-0 --recipe "
      "recipe.yaml\n");
  verb.OnParsed([options, &chosen] { chosen = [options] { return Logs(*options); }; });
}

}  // namespace stillhouse
