// Communicator: what the ranks of one run do together.
//
// Owner: each rank owns its own. Threads: one communicator is used by one thread; those of
// different ranks may be on different threads or processes. Ordering: every rank starts the same
// collectives in the same order. Buffers live until Wait returns, and after a failed Wait until the
// process ends. Failure: DeadlineExceeded when a peer did not take part within the deadline,
// Aborted after Abort of any rank or when ranks started different collectives; from then on the
// communicator is dead and every call says so. A process with a dead communicator writes its exit
// (sharding/rank_exit.h) and leaves by _exit: a library may still write into its buffers.
// Reduction adds in fp32 in rank order at the owner of each part: the same bits every time. (A
// backend whose library fixes its own order, NCCL, promises tolerance instead.)
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/tensor_view.h"
#include "sharding/flat_layout.h"

namespace stillhouse {

// A collective under way. Destroying it without Wait aborts its communicator. Used by the thread of
// its communicator.
class PendingCollective {
 public:
  virtual ~PendingCollective() = default;
  // Moves on whatever this rank has started, as far as that goes without waiting for anyone. True
  // once Wait would return at once. Where the transport has no engine of its own (MPI), collectives
  // overlap with computation only as far as the computation polls.
  virtual absl::StatusOr<bool> Poll() = 0;
  virtual absl::Status Wait() = 0;  // REQUIRES: called once
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  using Pending = absl::StatusOr<std::unique_ptr<PendingCollective>>;
  // Inputs and outputs do not overlap unless it is said here.
  //
  // `input` (fp32 or bf16) is added over all ranks; each rank receives its `shards[rank]` in
  // `output` (fp32). `shards` are as FlatLayout::ShardOf gives them and cover the input.
  virtual Pending ReduceScatter(const TensorView& input, absl::Span<const FlatRange> shards,
                                const TensorView& output) = 0;
  // `output` is as long as all shards; each rank gives its shard, of `output`'s dtype; it may
  // lie at its place in `output` already.
  virtual Pending AllGather(const TensorView& input, absl::Span<const FlatRange> shards,
                            const TensorView& output) = 0;
  virtual Pending AllReduceSum(const TensorView& in_out) = 0;         // fp32
  virtual Pending Broadcast(const TensorView& in_out, int root) = 0;  // any dtype
  // Sends `sends[r]` of `input` to rank r and receives `receives[r]` of `output` from it, of any
  // one dtype. What r sends here must be as long as what is received from it here.
  virtual Pending AllToAll(const TensorView& input, absl::Span<const FlatRange> sends,
                           const TensorView& output, absl::Span<const FlatRange> receives) = 0;
  virtual Pending Barrier() = 0;  // done once every rank has started it
  // Makes every rank's pending and later collectives fail. Any thread.
  virtual void Abort() = 0;
};

// `ranks` communicators of one process, for threads. No collective waits longer than `deadline`.
std::vector<std::unique_ptr<Communicator>> MakeThreadCommunicators(int ranks,
                                                                   absl::Duration deadline);

// The name by which the ranks of an NCCL communicator find each other; made by one rank and carried
// to the others by the coordinator.
struct NcclId {
  std::string bytes;
};
absl::StatusOr<NcclId> MakeNcclId();
// Joins rank `rank` of `ranks` on CUDA device `device`, within `deadline`. Unimplemented, naming
// what to build, in a build without NCCL; Unavailable without a device. Reductions take fp32 only:
// NCCL would round bf16 at every hop. Views are of `device`; work already in the stream of an input
// comes first. That ranks started different collectives shows as DeadlineExceeded.
absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(const NcclId& id, int rank,
                                                                   int ranks, int device,
                                                                   absl::Duration deadline);

}  // namespace stillhouse
