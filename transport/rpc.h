// Requests and answers over a Channel: request ids, idempotent retries, deadlines, protocol
// versions.
//
// A request is sent again under its id until an answer comes or its deadline passes, so handlers
// must give the same answer to the same request (each of ours is idempotent). Frames: an envelope
// (proto/envelope.proto), then the body, then attachments.
//
// Threads: as the channel underneath. Ownership: destroying a client or server drops what is
// outstanding; callbacks of calls that were not answered by then never run.
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
  std::string body;                // a serialised protobuf of the method
  std::vector<Frame> attachments;  // bulk, never copied into the body
};

inline constexpr uint32_t kProtocolMin = 1;  // oldest and newest protocol this version speaks
inline constexpr uint32_t kProtocolMax = 1;

inline constexpr size_t kEnvelopeBytesMax = 64 << 10;
inline constexpr size_t kMethodBytesMax = 128;
inline constexpr size_t kRequestsInProgressMax =
    20'000;                                      // of one server; more are dropped, and resent
inline constexpr size_t kAnswersKeptMax = 4096;  // for requests that come again, oldest go first
inline constexpr size_t kAnswerKeptBytesMax = 16 << 10;  // a larger one is computed again

struct RpcOptions {
  uint32_t protocol_min = kProtocolMin;
  uint32_t protocol_max = kProtocolMax;
  uint64_t incarnation =
      0;  // of a client: tells its request ids from a former process's; 0: random
};

struct RpcCounters {
  uint64_t malformed = 0;   // messages that were no envelope of ours, dropped
  uint64_t duplicates = 0;  // of a server: requests seen before
  uint64_t late = 0;        // of a client: answers nobody waits for any more
  uint64_t resent = 0;      // of a client
  uint64_t dropped = 0;     // of a server: requests over kRequestsInProgressMax
};

class RpcClient {
 public:
  struct CallOptions {
    absl::Duration deadline = absl::Seconds(30);     // then DeadlineExceeded; infinite allowed
    absl::Duration resend_after = absl::Seconds(2);  // grows by Backoff up to 10 s
  };
  using Done = absl::AnyInvocable<void(absl::StatusOr<RpcMessage>)>;
  virtual ~RpcClient() = default;
  // `done` runs once, on the executor, never inside Call. Status of the answer is the handler's
  // own.
  virtual void Call(std::string method, RpcMessage request, CallOptions options, Done done) = 0;
  virtual Executor& executor() = 0;
  virtual RpcCounters counters() const { return {}; }
};

class RpcServer {
 public:
  using Respond = absl::AnyInvocable<void(absl::StatusOr<RpcMessage>)>;
  // May respond later, from the executor; responding after the peer has gone is harmless. A Respond
  // that is destroyed unused means "not now": the request is handled anew when it comes again.
  using Handler = absl::AnyInvocable<void(const Peer&, RpcMessage, Respond)>;
  virtual ~RpcServer() = default;
  virtual void Handle(std::string method, Handler handler) = 0;  // an unknown method: Unimplemented
  virtual RpcCounters counters() const { return {}; }
};

// `channel` and `executor` must outlive the result.
std::unique_ptr<RpcClient> MakeRpcClient(ClientChannel& channel, Executor& executor,
                                         const RpcOptions& options = {});
std::unique_ptr<RpcServer> MakeRpcServer(ServerChannel& channel, Executor& executor,
                                         const RpcOptions& options = {});

}  // namespace stillhouse
