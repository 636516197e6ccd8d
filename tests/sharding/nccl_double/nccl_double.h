// What a test may ask of the double of CUDA and NCCL, and what the double insists on.
//
// It behaves as a non-blocking comm does: joining, a group's launch and finalising are over only
// after several ncclCommGetAsyncError; whatever is put into a stream before that overtakes the
// group. Collectives run when all ranks have launched theirs, sends when both sides have. Misuse of
// a handle after its end, an empty or null transfer, a blocking comm, a destroy before the
// finalise: each is counted as misuse. Thread-safe; one state for the process.
#pragma once

#include <string>

namespace nccl_double {

struct Counts {
  int streams = 0, events = 0, allocations = 0, comms = 0;  // alive
  int destroyed = 0, aborted = 0;                           // comms, since Reset
  std::string misuse;                                       // the first; "" when there was none
};
Counts Now();

// Forgets all that is alive. Devices: what cudaGetDeviceCount says.
void Reset(int devices = 8);

// The next ncclCommGetAsyncError of rank `rank` says that its network failed.
void FailRank(int rank);
// Whether the peers of an aborted comm are told (as over sockets) or hang (as over shared memory).
void TellPeersOfAborts(bool tell);
// The next event that is asked for says that a kernel failed.
void FailNextEvent();

}  // namespace nccl_double
