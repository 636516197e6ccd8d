// Channel: frames between one server endpoint and many clients. The only thing simulated networks,
// in-memory tests and ZeroMQ have in common.
//
// Owner: a process's main. Threads: every method is called on, and every callback runs on, the
// executor the channel was made with. Ordering: frames of one Send arrive together and in order;
// messages between two endpoints arrive in the order sent or not at all. Durability: none; whoever
// needs an answer asks again (transport/rpc.h). Sends never block and queues are bounded.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/executor.h"
#include "common/shared_bytes.h"

namespace stillhouse {

using Frame = SharedBytes;
using Frames = std::vector<Frame>;

inline constexpr uint64_t kMessageBytesMax = 24ull << 20;  // all frames of one message
inline constexpr int kFramesMax = 4096;                    // of one message
inline constexpr int kQueueMessagesMax = 1000;             // per peer; a full queue pushes back
inline constexpr uint64_t kQueueBytesMax = 256ull << 20;   // per peer, likewise

// Who sent a message. `connection` is what Send takes; `user` is authenticated by the transport
// (the uid of an ipc peer, the CURVE user of a TCP one) and is all that authorisation may look at.
struct Peer {
  std::string connection;
  std::string user;
};

class ServerChannel {
 public:
  virtual ~ServerChannel() = default;
  using Receiver = absl::AnyInvocable<void(const Peer&, Frames)>;
  virtual void SetReceiver(Receiver receiver) = 0;
  // Unavailable if the peer is gone, ResourceExhausted if its queue is full, InvalidArgument if the
  // message has no frame, more than kFramesMax, or more than kMessageBytesMax bytes.
  virtual absl::Status Send(absl::string_view connection, Frames frames) = 0;
  virtual std::string address() const = 0;  // what a client connects to
};

class ClientChannel {
 public:
  virtual ~ClientChannel() = default;
  using Receiver = absl::AnyInvocable<void(Frames)>;
  virtual void SetReceiver(Receiver receiver) = 0;
  // As ServerChannel::Send. While no server is there messages wait, in order, for one to come.
  virtual absl::Status Send(Frames frames) = 0;
  // The connection that a Send uses now: 0 while there is none, else a number that is larger for
  // each connection made.
  virtual uint64_t connection() const = 0;
  // `connected` runs, never inside another call, when a connection was made. What was sent over an
  // earlier one may be lost.
  virtual void SetConnected(absl::AnyInvocable<void()> connected) = 0;
};

// Ok, or InvalidArgument saying which limit `frames` breaks.
absl::Status CheckMessageSize(const Frames& frames);
uint64_t MessageBytes(const Frames& frames);

}  // namespace stillhouse
