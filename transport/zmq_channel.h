// Channels over ZeroMQ: ROUTER on the server's side, DEALER on the client's, on ipc:// sockets.
//
// Owner and threads: made, used and destroyed on the thread of `loop` (or while it does not run);
// ZeroMQ's own I/O thread, one per channel, touches no object of ours except to release frames that
// are sent. Destruction waits until ZeroMQ has closed and removed the socket: milliseconds. Never
// destroy a channel inside its own receiver.
//
// Who may connect: the socket lies, 0600, in a folder that only this user can enter, and the server
// takes only connections whose peer has its uid (SO_PEERCRED, by ZeroMQ's ZMQ_IPC_FILTER_UID), so
// Peer::user is "uid/<that uid>" for every message.
//
// Limits: kMessageBytesMax per message, kFramesMax frames, kQueueMessagesMax and kQueueBytesMax
// waiting per peer. A client holds what it sends before the server is there (the same limits) and
// reconnects by itself, also to a server that was started again; what was on its way then is lost.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/event_loop.h"
#include "transport/channel.h"

namespace stillhouse {

struct ZmqServerOptions {
  std::optional<uid_t> uid;  // whose connections are taken; default: this process's
};

// FailedPrecondition ("… is in use by another process") when another server holds the address; see
// transport/ipc_address.h for the other refusals.
absl::StatusOr<std::unique_ptr<ServerChannel>> MakeZmqServerChannel(
    EventLoop& loop, const std::string& address, const ZmqServerOptions& options = {});
absl::StatusOr<std::unique_ptr<ClientChannel>> MakeZmqClientChannel(EventLoop& loop,
                                                                    const std::string& address);

}  // namespace stillhouse
