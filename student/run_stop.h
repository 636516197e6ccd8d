// RunStop: why a student's process ends, as a word that the launcher and people read, carried by a
// Status from wherever it was found out.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace stillhouse {

enum class RunStop {
  kFailed,  // anything without a word of its own
  kFinished,
  kCancelled,     // by a user, through the coordinator
  kTerminated,    // by a signal; a restart continues
  kSuperseded,    // a newer process of this run has started
  kPoisoned,      // a chunk cannot be computed
  kNeedsTeacher,  // no teacher worker is alive
  kExcluded,      // a chunk was taken out of the job
  kLost,          // what was stored is gone
  kNoCheckpoint,  // the run had some, and none can be read
  kDiverged,      // loss or gradient is not finite, too many steps in a row
  kRankLost,      // a rank of the run hung, died or gave up; a restart continues
};

absl::string_view RunStopName(RunStop stop);  // "finished", "needs_teacher", …
std::optional<RunStop> RunStopOfName(absl::string_view name);
// Kinds that no restart can mend give kExitDoNotRequeue, or kExitCorrupt for kNoCheckpoint.
int RunStopExitCode(RunStop stop, const absl::Status& status);

// A status that says `stop`; `message` says what to do. REQUIRES: not kFinished.
absl::Status StopStatus(RunStop stop, absl::string_view message);
// kFailed for a status that says none; OK is kFinished.
RunStop StopOf(const absl::Status& status);

// kSuperseded where the coordinator refused what a newer process of the run has taken over.
absl::Status SupersededIfAborted(const absl::Status& status);

// Writes `<run_folder>/exit.json` atomically: {"kind", "exit_code", "message", "step"}. Launchers
// lose exit codes; they read this file.
absl::Status WriteExitFile(const std::string& run_folder, const absl::Status& status,
                           uint64_t step);

}  // namespace stillhouse
