// Requests and answers over a Channel: request ids, idempotent retries, deadlines, protocol versions.
//
// A request is sent again under its id until an answer comes or its deadline passes, so handlers must
// give the same answer to the same request (each of ours is idempotent). Frames: an envelope
// (proto/envelope.proto), then the body, then attachments.
// Threads: as the channel underneath.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/executor.h"
#include "transport/channel.h"

namespace stillhouse {

struct RpcMessage {
  std::string body;            // a serialised protobuf of the method
  std::vector<Frame> attachments;  // bulk, never copied into the body
};

class RpcClient {
 public:
  struct CallOptions {
    absl::Duration deadline = absl::Seconds(30);       // then DeadlineExceeded; infinite allowed
    absl::Duration resend_after = absl::Seconds(2);    // grows by Backoff up to 10 s
  };
  using Done = absl::AnyInvocable<void(absl::StatusOr<RpcMessage>)>;
  virtual ~RpcClient() = default;
  // `done` runs once, on the executor, never inside Call. Status of the answer is the handler's own.
  virtual void Call(std::string method, RpcMessage request, CallOptions options, Done done) = 0;
  virtual Executor& executor() = 0;
};

class RpcServer {
 public:
  using Respond = absl::AnyInvocable<void(absl::StatusOr<RpcMessage>)>;
  // May respond later, from the executor; responding after the peer has gone is harmless.
  using Handler = absl::AnyInvocable<void(const Peer&, RpcMessage, Respond)>;
  virtual ~RpcServer() = default;
  virtual void Handle(std::string method, Handler handler) = 0;  // an unknown method: Unimplemented
};

// `channel` and `executor` must outlive the result.
std::unique_ptr<RpcClient> MakeRpcClient(ClientChannel& channel, Executor& executor);
std::unique_ptr<RpcServer> MakeRpcServer(ServerChannel& channel, Executor& executor);

}  // namespace stillhouse
