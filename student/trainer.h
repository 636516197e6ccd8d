// Trainer: one run of one student, from its start to its export.
//
//   [loading] ──1──► [training] ◄──2──► [waiting]        1 state made, or read from a checkpoint
//                        │  ▲                            2 the step's data is not here yet
//                       3│  │4                           3 an evaluation is due  4 it is done
//                        ▼  │
//                    [evaluating] ──5──► [exporting] ──6──► [finished]
//                                                        5 after the last step, or early  6 renamed
//   Any state but finished ──7──► stopped: a signal, cancel, a newer process, or data that will not
//   come. What was trained since the last checkpoint is then checkpointed, where a restart could
//   use it.
//
// Threads: runs on a thread that may block; talks to the services through their executor.
// Durability: a checkpoint counts once the coordinator has journaled it; the export appears whole.
#pragma once

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "student/services.h"
#include "worker/run_client.h"

namespace stillhouse {

struct TrainerOptions {
  absl::Duration report_every = absl::Seconds(1);
};

// Trains. OK when the run has finished (now, or by an export found complete); else a status with
// its RunStop. Either way `<run folder>/exit.json` says the same.
absl::Status TrainStudent(const RunSpec& spec, const Services& services,
                          const TrainerOptions& options = {});

}  // namespace stillhouse
