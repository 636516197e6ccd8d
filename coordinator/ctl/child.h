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
