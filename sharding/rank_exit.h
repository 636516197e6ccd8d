// How the ranks of a step ended, in one file each: what mpirun and srun report does not say it
// (OpenMPI's --enable-recovery returns 0, srun 137 where a rank left with 42).
//
// The ranks write, the launcher reads after all processes are gone. A file is there as a whole or
// not at all; a rank that was killed leaves none. Format: docs/formats.md.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace stillhouse {

struct RankExit {
  absl::Status status;
  int code = 0;  // that the process would have left with, had its launcher passed that on
};

// Into `folder`, which is one step's alone. OK is written too: it tells a rank that ended from one
// that was killed.
absl::Status WriteRankExit(const std::string& folder, int rank, const RankExit& exit);

// What a rank wrote. NotFound when it wrote nothing, DataLoss when the file is no such file.
absl::StatusOr<RankExit> ReadRankExit(const std::string& folder, int rank);

// The end of the step: OK when every rank wrote that. Otherwise the error that explains most, with
// its rank: one that is of a rank's own doing before those that tell of a peer (Aborted,
// DeadlineExceeded, Unavailable), and these before Unavailable for the ranks that left no word.
RankExit StepExit(const std::string& folder, int ranks);

// For a main whose communicator is dead: writes the exit and leaves at once with its code, running
// nothing that could wait for a peer.
[[noreturn]] void LeaveWithRankExit(const std::string& folder, int rank, const RankExit& exit);

}  // namespace stillhouse
