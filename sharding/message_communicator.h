// MessageCommunicator: the collectives over messages between ranks, for MPI and for tests.
//
// Every collective is cut into pieces, of which a few per peer are under way at once. Reductions
// exchange slices: each owner receives the piece of every rank and sums them in rank order, so that
// the bits are those of the thread communicator. Before data is received, the ranks tell each other
// what they started: different collectives become an error instead of a hang or wrong numbers.
#pragma once

#include <memory>

#include "absl/time/time.h"
#include "sharding/communicator.h"
#include "sharding/message_layer.h"

namespace stillhouse {

struct MessageOptions {
  absl::Duration deadline = absl::Minutes(5);  // of Wait
  size_t piece_bytes = 1 << 20;  // at most; a multiple of 4, large enough to be worth a message
  int pieces_in_flight = 4;      // per peer and direction
};

// A reduction holds so much of what other ranks sent and it has not summed yet.
inline constexpr size_t kStagingBytesMax = 64 << 20;
inline constexpr size_t kPieceBytesMin = 4096;
// Pieces as small as kStagingBytesMax asks for between so many ranks; the same on each of them.
MessageOptions FitToRanks(MessageOptions options, int ranks);

// Calls of one communicator come from one thread, those of Abort from any. What a dead communicator
// had started is never freed, nor is its layer.
std::unique_ptr<Communicator> MakeMessageCommunicator(std::unique_ptr<MessageLayer> layer,
                                                      const MessageOptions& options);

}  // namespace stillhouse
