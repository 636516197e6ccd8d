// Collective: what one rank asked its communicator to do, in one form for every backend.
//
// Plain data and pure functions. CheckedCommunicator turns the calls of the interface into it, with
// the checks of their arguments (a wrong argument is a bug of the caller and aborts).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "sharding/communicator.h"

namespace stillhouse {

enum class Operation : uint8_t {
  kReduceScatter = 1,
  kAllGather,
  kAllReduce,
  kBroadcast,
  kAllToAll,
  kBarrier,
};

struct Collective {
  Operation operation = Operation::kBarrier;
  TensorView input, output;         // one and the same where the interface says in_out
  std::vector<FlatRange> sends;     // shards, or what goes to each rank; empty where there are none
  std::vector<FlatRange> receives;  // all-to-all only
  int root = 0;
};

// What two ranks must agree on about a collective, as one of them sees it towards the other. Plain
// bytes: it travels between processes of one build on one kind of machine.
struct Agreement {
  uint32_t operation = 0, dtype = 0;
  int32_t root = 0, ranks = 0;
  uint64_t count = 0;                // elements of the whole; 0 for all-to-all
  uint64_t shards = 0;               // digest of the shards; 0 where there are none
  uint64_t offers = 0, expects = 0;  // elements, all-to-all only
};

Agreement AgreementOf(const Collective& collective, int ranks, int peer);
// Aborted, naming both collectives, unless the two are sides of the same.
absl::Status CheckAgreement(const Agreement& mine, int peer, const Agreement& theirs);

// The part of `count` elements that `rank` sums in an all-reduce.
FlatRange AllReducePart(size_t count, int rank, int ranks);

class CheckedCommunicator : public Communicator {
 public:
  Pending ReduceScatter(const TensorView& input, absl::Span<const FlatRange> shards,
                        const TensorView& output) final;
  Pending AllGather(const TensorView& input, absl::Span<const FlatRange> shards,
                    const TensorView& output) final;
  Pending AllReduceSum(const TensorView& in_out) final;
  Pending Broadcast(const TensorView& in_out, int root) final;
  Pending AllToAll(const TensorView& input, absl::Span<const FlatRange> sends,
                   const TensorView& output, absl::Span<const FlatRange> receives) final;
  Pending Barrier() final;

 protected:
  virtual Pending Begin(Collective collective) = 0;
};

}  // namespace stillhouse
