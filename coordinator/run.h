// Run: one student's training in a job, as the coordinator knows it.
//
// Owner: the coordinator's State. Everything here is journaled, but for a report's numbers between
// two journaled ones. Pure: `now` is passed in.
//
//              1 StartRun            2 Report(phase)             3 finished
//   [queued] ────────────► [active] ───────────────► [active] ──────────────► [finished]
//       ▲ ▲                  │  │ 4 failed
//       │ └─5 submitted again┘  └─────────► [failed] ──1 StartRun──► [active]
//       └─5── [failed], [cancelled] ◄──6 cancelled── [queued], [active], [failed]
//
// Every StartRun by a new process takes a higher epoch: reports, demands and checkpoints of older
// epochs are refused, so a process that was thought dead cannot undo what its successor did.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace stillhouse {

struct RunEvaluation {
  uint64_t step = 0, rows = 0;
  double perplexity = 0;
  double kl = 0, kl_se = 0;
  double jsd = 0, jsd_se = 0;
  double agreement = 0, agreement_se = 0;
  double teacher_perplexity = 0;
};

struct RunProgress {
  std::string phase;
  uint64_t step = 0, steps = 0;
  double loss = 0, rows_per_s = 0, waited_s = 0, seconds = 0;
  std::string message;
  std::optional<RunEvaluation> evaluation;
  uint64_t parameters = 0;
  std::string exported_to;
};

enum class RunPhase : uint8_t { kQueued, kActive, kFinished, kFailed, kCancelled };

struct RunSetup {    // as submitted
  std::string name;  // "run/handbook/half"
  std::string student;
  std::string folder;
  std::string hash;  // of what the recipe says
  uint64_t steps = 0;
  friend bool operator==(const RunSetup&, const RunSetup&) = default;
};

struct Run {
  RunSetup setup;
  std::string job;
  RunPhase phase = RunPhase::kQueued;
  uint64_t epoch = 0;
  uint64_t incarnation = 0;                 // of the process that holds the epoch
  std::vector<uint64_t> past_incarnations;  // fenced, newest last
  std::string checkpoint;                   // last committed folder name
  uint64_t checkpoint_step = 0;
  uint64_t checkpoint_epoch = 0;  // that committed it
  RunProgress last;
  std::optional<RunEvaluation> best;  // lowest KL
  std::optional<RunEvaluation> final;
  uint64_t teacher_rows_charged = 0;
  // Volatile, for people.
  std::string host;
  int64_t pid = 0;
  std::optional<absl::Duration> last_heard;
  absl::Duration journaled_at = -absl::InfiniteDuration();
};

// "queued", "finished", …; of an active run the phase it last reported.
std::string RunStateName(const Run& run);

// T1. The same process again keeps its epoch. FailedPrecondition: finished; Cancelled: cancelled;
// Aborted: a newer process has started.
absl::Status StartRun(Run& run, uint64_t incarnation);
// Aborted unless `epoch` is the live one.
absl::Status CheckRunEpoch(const Run& run, uint64_t epoch);
// T2, T3, T4. True if it must be journaled before it is acknowledged. REQUIRES: the epoch was
// checked.
bool ApplyReport(Run& run, const RunProgress& progress, absl::Duration now);
// T6. False if it had ended already.
bool CancelRun(Run& run);
// T5, or a new setup under the same name: begins afresh, in a higher epoch.
void ResubmitRun(Run& run, const RunSetup& setup);

}  // namespace stillhouse
