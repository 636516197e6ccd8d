#include <deque>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status.h"
#include "transport/rpc.h"
#include "transport/rpc_envelope.h"

namespace stillhouse {
namespace {

// One request, whatever connection it comes over: a client keeps its incarnation when it
// reconnects.
struct RequestKey {
  std::string user;
  uint64_t incarnation = 0;
  uint64_t id = 0;
  friend auto operator<=>(const RequestKey&, const RequestKey&) = default;
};

class RpcServerImpl final : public RpcServer {
 public:
  RpcServerImpl(ServerChannel& channel, const RpcOptions& options)
      : channel_(channel), options_(options) {
    channel_.SetReceiver(
        [this](const Peer& peer, Frames frames) { Receive(peer, std::move(frames)); });
  }
  ~RpcServerImpl() override { channel_.SetReceiver(nullptr); }

  void Handle(std::string method, Handler handler) override {
    handlers_[std::move(method)] = std::move(handler);
  }
  RpcCounters counters() const override { return counters_; }

 private:
  class Answerer;

  void Receive(const Peer& peer, Frames frames);
  void Answer(const RequestKey& key, absl::StatusOr<RpcMessage> result);
  void Keep(const RequestKey& key, const Frames& frames);
  Frames Pack(const RequestKey& key, absl::StatusOr<RpcMessage> result) const;

  ServerChannel& channel_;
  const RpcOptions options_;
  std::map<std::string, Handler> handlers_;
  std::map<RequestKey, std::string> in_progress_;  // to the connection that asked last
  std::map<RequestKey, Frames> kept_;              // answers, for requests that come again
  std::deque<RequestKey> ages_;                    // of kept_, oldest first
  RpcCounters counters_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

// What a Respond holds: answers once, or forgets the request when destroyed without.
class RpcServerImpl::Answerer {
 public:
  Answerer(RpcServerImpl& server, RequestKey key)
      : server_(&server), alive_(server.alive_), key_(std::move(key)) {}
  Answerer(Answerer&& other) noexcept
      : server_(std::exchange(other.server_, nullptr)),
        alive_(std::move(other.alive_)),
        key_(std::move(other.key_)) {}
  Answerer& operator=(Answerer&&) = delete;
  ~Answerer() {
    if (server_ != nullptr && !alive_.expired()) server_->in_progress_.erase(key_);
  }
  void operator()(absl::StatusOr<RpcMessage> result) {
    SH_CHECK(server_ != nullptr, "a request is answered once");
    RpcServerImpl* server = std::exchange(server_, nullptr);
    if (!alive_.expired()) server->Answer(key_, std::move(result));
  }

 private:
  RpcServerImpl* server_;  // null once answered or moved from
  std::weak_ptr<bool> alive_;
  RequestKey key_;
};

void RpcServerImpl::Receive(const Peer& peer, Frames frames) {
  const auto envelope = ParseEnvelope(frames.front());
  if (!envelope.has_value() || envelope->method.empty() || frames.size() < 2) {
    ++counters_.malformed;
    return;
  }
  RequestKey key{peer.user, envelope->incarnation, envelope->request_id};
  if (auto it = in_progress_.find(key); it != in_progress_.end()) {
    ++counters_.duplicates;
    it->second = peer.connection;
    return;
  }
  if (auto it = kept_.find(key); it != kept_.end()) {
    ++counters_.duplicates;
    // A peer that cannot take the answer now asks again.
    channel_.Send(peer.connection, it->second).IgnoreError();
    return;
  }
  if (in_progress_.size() >= kRequestsInProgressMax) {
    ++counters_.dropped;
    return;
  }
  in_progress_[key] = peer.connection;
  const absl::Status protocol = CheckProtocol(*envelope, options_);
  if (!protocol.ok()) {
    Answer(key, protocol);
    return;
  }
  auto handler = handlers_.find(envelope->method);
  if (handler == handlers_.end()) {
    Answer(key, absl::UnimplementedError(
                    absl::StrCat("method \"", envelope->method, "\" is not known here")));
    return;
  }
  frames.erase(frames.begin());
  handler->second(peer, UnpackMessage(std::move(frames)), Answerer(*this, std::move(key)));
}

Frames RpcServerImpl::Pack(const RequestKey& key, absl::StatusOr<RpcMessage> result) const {
  Envelope envelope;
  envelope.protocol_min = options_.protocol_min;
  envelope.protocol_max = options_.protocol_max;
  envelope.request_id = key.id;
  envelope.incarnation = key.incarnation;
  envelope.status = result.status();
  return PackMessage(envelope, result.ok() ? *std::move(result) : RpcMessage());
}

void RpcServerImpl::Answer(const RequestKey& key, absl::StatusOr<RpcMessage> result) {
  auto it = in_progress_.find(key);
  SH_CHECK(it != in_progress_.end(), "an answer has its request");
  const std::string connection = std::move(it->second);
  in_progress_.erase(it);
  Frames frames = Pack(key, std::move(result));
  if (const absl::Status size = CheckMessageSize(frames); !size.ok()) {
    LogError("an answer could not be sent: ", size.message());
    frames = Pack(key, absl::InternalError(absl::StrCat("the answer: ", size.message())));
  }
  Keep(key, frames);
  // Unavailable: the peer is gone, or asks again over another connection. Full queue: it asks
  // again.
  channel_.Send(connection, std::move(frames)).IgnoreError();
}

void RpcServerImpl::Keep(const RequestKey& key, const Frames& frames) {
  if (MessageBytes(frames) > kAnswerKeptBytesMax) return;
  if (ages_.size() >= kAnswersKeptMax) {
    kept_.erase(ages_.front());
    ages_.pop_front();
  }
  ages_.push_back(key);
  kept_[key] = frames;
}

}  // namespace

std::unique_ptr<RpcServer> MakeRpcServer(ServerChannel& channel, Executor& executor,
                                         const RpcOptions& options) {
  return std::make_unique<RpcServerImpl>(channel, options);
}

}  // namespace stillhouse
