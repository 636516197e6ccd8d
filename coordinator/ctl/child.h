// A child process that cannot outlive us.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace stillhouse {

// Starts argv[0] (a path) in a process group of its own, so that Ctrl-C reaches only us, with
// standard input empty and both outputs appended to `log_path`. The child gets SIGKILL when the
// calling thread ends, however it ends. REQUIRES: argv is not empty; called on the main thread.
absl::StatusOr<pid_t> StartChild(const std::vector<std::string>& argv, const std::string& log_path);

// As StartChild, but standard output goes into a pipe and standard error is ours. `out`, the end to
// read from, is the caller's; `shared`, if not -1, is open in the child under the same number.
struct PipedChild {
  pid_t pid = -1;
  int out = -1;
};
absl::StatusOr<PipedChild> StartPipedChild(const std::vector<std::string>& argv, int shared);

// Where the other programs are: <prefix>/bin/coordinatorctl has its siblings in
// <prefix>/libexec/stillhouse.
absl::StatusOr<std::string> ProgramsFolder();

struct ChildExit {
  bool by_signal = false;
  int code = 0;                  // exit code, or the signal's number
  std::string Describe() const;  // "exit code 4", "signal 9 (Killed)"
};
// From the status that waitpid gives.
ChildExit ChildExitFrom(int wait_status);

// The last line of a text file that is not blank, cut to `bytes_max`; "" when there is none.
std::string LastLine(const std::string& path, size_t bytes_max = 400);

}  // namespace stillhouse
