// Exchange: one collective of MessageCommunicator, from its first message to its last.
//
//   Start ──► the ranks tell each other what they started ──► pieces travel, sums are made ──► done
//                    └─ they differ: Aborted
//
// Owner: its communicator. Threads: one at a time. Nothing here waits; Advance does what can be
// done now. Everything that a message may still write to lives as long as the exchange.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/status/statusor.h"
#include "sharding/collective.h"
#include "sharding/flat_buffer.h"
#include "sharding/message_communicator.h"
#include "sharding/message_layer.h"

namespace stillhouse {

class Exchange {
 public:
  // `layer` and `options` must outlive it. `staging` has at least StagingBytes.
  Exchange(Collective collective, uint64_t sequence, MessageLayer& layer,
           const MessageOptions& options, FlatBuffer<char> staging);

  // What the slices of the other ranks need while they wait to be summed.
  static size_t StagingBytes(const Collective& collective, int ranks,
                             const MessageOptions& options);

  absl::Status Start();
  absl::StatusOr<bool> Advance();  // whether anything moved
  bool done() const;
  std::vector<int> Awaited() const;  // the ranks of which something is still to come
  FlatBuffer<char> TakeStaging() { return std::move(staging_); }  // REQUIRES: done

 private:
  struct Peer {
    Agreement mine, theirs;
    MessageLayer::Request sending = 0, receiving = 0;
    bool told = false, heard = false;  // and found to agree
  };
  // Bytes on their way to or from one rank, piece after piece.
  struct Stream {
    int peer = 0;
    int phase = 0;
    bool sends = false;
    char* data = nullptr;
    size_t bytes = 0;
    size_t slots = 0;               // piece k lies in slot k modulo this; 0: one after the other
    const size_t* limit = nullptr;  // no byte from here on may be started yet; null: all may
    size_t started = 0, finished = 0;
    std::deque<MessageLayer::Request> in_flight;  // oldest first
  };

  void Build();
  void BuildReduction(const std::vector<FlatRange>& parts, float* output);
  void BuildAllReduce();
  void BuildAllGather();
  void BuildBroadcast();
  void BuildAllToAll();
  Stream& AddStream(int peer, int phase, bool sends, const TensorView& view, FlatRange range);
  absl::StatusOr<bool> AdvanceAgreements();
  absl::StatusOr<bool> AdvanceStream(Stream& stream);
  bool SumWhatIsThere();

  const Collective collective_;
  const uint64_t sequence_;
  MessageLayer& layer_;
  const MessageOptions& options_;
  FlatBuffer<char> staging_;
  std::vector<Peer> peers_;      // by rank; our own is not used
  std::deque<Stream> streams_;   // their places stay: limits point into them
  std::vector<Stream*> slices_;  // by rank, of the reduction; our own is null

  // The reduction of our own part, in bytes of the input.
  const char* own_part_ = nullptr;
  float* sum_output_ = nullptr;
  size_t sum_bytes_ = 0, summed_ = 0;
  size_t staging_limit_ = 0;  // summed_ and the slots behind it
};

}  // namespace stillhouse
