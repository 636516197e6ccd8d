// MessageLayer: bytes from one rank to another, not blocking: what MessageCommunicator builds its
// collectives on.
//
// Owner: one communicator. Threads: calls come one at a time, from any thread. Ordering: messages
// of one sender, receiver and tag arrive in the order in which they were sent, each in the receive
// that was started in that order. Errors: those of the library below, with its text; after one the
// layer is of no more use. Lifetime: what was handed over stays allocated until Test has said true
// of it, and for ever when it never does: no transport that we know can take a message back.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace stillhouse {

class MessageLayer {
 public:
  virtual ~MessageLayer() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  using Request = uint64_t;
  // Tags are 0 to kTagsMax - 1. A receive is as long as the message that it takes.
  virtual absl::StatusOr<Request> Send(int peer, int tag, const void* data, size_t bytes) = 0;
  virtual absl::StatusOr<Request> Receive(int peer, int tag, void* data, size_t bytes) = 0;
  // Moves messages on; whether this one is over. After true the request is gone.
  virtual absl::StatusOr<bool> Test(Request request) = 0;

  // Out of band and without a receive: at most kNoticeBytesMax, best effort.
  virtual absl::Status SendNotice(int peer, absl::string_view text) = 0;
  virtual absl::StatusOr<std::optional<std::string>> TakeNotice() = 0;

  static constexpr int kTagsMax = 32000;  // MPI promises 32767
  static constexpr size_t kNoticeBytesMax = 512;
};

}  // namespace stillhouse
