// MpiWorld: this process as one rank of an mpirun or srun.
//
// Owner: main; one per process, ever. Threads: any; calls into MPI come one at a time
// (MPI_THREAD_SERIALIZED), of all communicators together. Failure: no error of MPI ends the process
// once Init has returned; it becomes Internal with MPI's own text. (What ends it: OpenMPI 4.1 sends
// SIGTERM to all ranks when one dies, and its MPI_Init itself aborts when it cannot start.)
//
// A world in which anything has failed must not be finalised: MPI_Finalize waits for every rank and
// for every message. Such a process leaves by _exit (sharding/rank_exit.h).
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "sharding/communicator.h"
#include "sharding/message_communicator.h"

namespace stillhouse {

class MpiWorld {
 public:
  // Joins. Unimplemented, naming what to install, in a build without MPI; FailedPrecondition the
  // second time, or when MPI grants fewer threads.
  static absl::StatusOr<std::unique_ptr<MpiWorld>> Init();
  virtual ~MpiWorld() = default;  // does not finalise

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // A communicator of all ranks with messages of its own; every rank asks for it, in the same order
  // as for others. DeadlineExceeded when one does not.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> MakeCommunicator(
      const MessageOptions& options) = 0;

  // Meets all ranks within `deadline`, then finalises MPI. After an error MPI stays as it is, and
  // the process leaves by _exit. REQUIRES: every collective was waited for, with success; called at
  // most once, and no communicator is used after it.
  virtual absl::Status Close(absl::Duration deadline) = 0;
};

}  // namespace stillhouse
