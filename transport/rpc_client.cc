#include <sys/random.h>

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/backoff.h"
#include "common/status.h"
#include "transport/rpc.h"
#include "transport/rpc_envelope.h"

namespace stillhouse {
namespace {

constexpr absl::Duration kResendMax = absl::Seconds(10);
// After a Send that was refused (queue full): sooner than an answer could be missed.
constexpr absl::Duration kRefusedSendRetry = absl::Milliseconds(200);

uint64_t RandomIncarnation() {
  uint64_t value = 0;
  while (value == 0) {
    SH_CHECK(getrandom(&value, sizeof(value), 0) == sizeof(value), "no randomness");
  }
  return value;
}

class RpcClientImpl final : public RpcClient {
 public:
  RpcClientImpl(ClientChannel& channel, Executor& executor, const RpcOptions& options)
      : channel_(channel), executor_(executor), options_(options) {
    if (options_.incarnation == 0) options_.incarnation = RandomIncarnation();
    channel_.SetReceiver([this](Frames frames) { Receive(std::move(frames)); });
    channel_.SetConnected([this] { SendAgainAfterReconnect(); });
  }
  ~RpcClientImpl() override {
    channel_.SetReceiver(nullptr);
    channel_.SetConnected(nullptr);
    for (auto& [id, call] : calls_) {
      if (call.deadline_timer != 0) executor_.Cancel(call.deadline_timer);
      if (call.resend_timer != 0) executor_.Cancel(call.resend_timer);
    }
  }

  void Call(std::string method, RpcMessage request, CallOptions options, Done done) override;
  Executor& executor() override { return executor_; }
  RpcCounters counters() const override { return counters_; }

 private:
  struct Outstanding {
    std::string method;
    Frames frames;
    Done done;
    Backoff backoff;
    absl::Duration deadline;  // as asked for
    TimerId deadline_timer = 0;
    TimerId resend_timer = 0;
    uint64_t connection = 0;   // that it was last sent over
    absl::Status send_status;  // of the last attempt
  };

  void SendNow(uint64_t id);
  // What went over a connection that is gone, or came while there was none, goes at once: a server
  // that was started again answers as soon as it is there.
  void SendAgainAfterReconnect();
  void Receive(Frames frames);
  void Expire(uint64_t id);
  // Ends the call; `done` runs later, on the executor.
  void Finish(uint64_t id, absl::StatusOr<RpcMessage> result);

  ClientChannel& channel_;
  Executor& executor_;
  RpcOptions options_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Outstanding> calls_;
  RpcCounters counters_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

void RpcClientImpl::Call(std::string method, RpcMessage request, CallOptions options, Done done) {
  SH_CHECK(!method.empty() && method.size() <= kMethodBytesMax, method);
  const uint64_t id = next_id_++;
  Envelope envelope;
  envelope.protocol_min = options_.protocol_min;
  envelope.protocol_max = options_.protocol_max;
  envelope.request_id = id;
  envelope.method = method;
  envelope.incarnation = options_.incarnation;
  Backoff backoff({.first = options.resend_after,
                   .max = std::max(options.resend_after, kResendMax),
                   .seed = options_.incarnation ^ id});
  auto [it, inserted] = calls_.emplace(
      id, Outstanding{std::move(method), PackMessage(envelope, std::move(request)), std::move(done),
                      backoff, options.deadline, 0, 0, 0, absl::OkStatus()});
  if (const absl::Status size = CheckMessageSize(it->second.frames); !size.ok()) {
    Finish(id, Annotate(size, it->second.method));
    return;
  }
  if (options.deadline != absl::InfiniteDuration()) {
    it->second.deadline_timer = executor_.PostAfter(options.deadline, [this, id] { Expire(id); });
  }
  SendNow(id);
}

void RpcClientImpl::SendNow(uint64_t id) {
  Outstanding& call = calls_.at(id);
  call.resend_timer = 0;
  call.connection = channel_.connection();
  if (call.connection == 0) {  // copies would only pile up until a server comes
    call.send_status = absl::UnavailableError("no server is there");
    return;
  }
  call.send_status = channel_.Send(call.frames);
  const absl::Duration wait = call.send_status.ok() ? call.backoff.Next() : kRefusedSendRetry;
  call.resend_timer = executor_.PostAfter(wait, [this, id] {
    ++counters_.resent;
    SendNow(id);
  });
}

void RpcClientImpl::SendAgainAfterReconnect() {
  const uint64_t connection = channel_.connection();
  if (connection == 0) return;
  for (auto& [id, call] : calls_) {
    if (call.connection == connection) continue;
    if (call.resend_timer != 0) executor_.Cancel(call.resend_timer);
    if (call.connection != 0) ++counters_.resent;
    call.backoff.Reset();
    SendNow(id);
  }
}

void RpcClientImpl::Expire(uint64_t id) {
  Outstanding& call = calls_.at(id);
  call.deadline_timer = 0;
  std::string message =
      absl::StrCat(call.method, ": no answer within ", absl::FormatDuration(call.deadline));
  if (!call.send_status.ok()) absl::StrAppend(&message, " (", call.send_status.message(), ")");
  Finish(id, absl::DeadlineExceededError(message));
}

void RpcClientImpl::Finish(uint64_t id, absl::StatusOr<RpcMessage> result) {
  auto it = calls_.find(id);
  Outstanding call = std::move(it->second);
  calls_.erase(it);
  if (call.deadline_timer != 0) executor_.Cancel(call.deadline_timer);
  if (call.resend_timer != 0) executor_.Cancel(call.resend_timer);
  executor_.Post([alive = std::weak_ptr<bool>(alive_), done = std::move(call.done),
                  result = std::move(result)]() mutable {
    if (!alive.expired()) done(std::move(result));
  });
}

void RpcClientImpl::Receive(Frames frames) {
  const auto envelope = ParseEnvelope(frames.front());
  const bool answer = envelope.has_value() && envelope->method.empty() &&
                      envelope->incarnation == options_.incarnation;
  if (!answer || (envelope->status.ok() && frames.size() < 2)) {
    ++counters_.malformed;
    return;
  }
  const uint64_t id = envelope->request_id;
  if (!calls_.contains(id)) {
    ++counters_.late;
    return;
  }
  const absl::Status protocol = CheckProtocol(*envelope, options_);
  if (!protocol.ok()) {
    Finish(id, protocol);
  } else if (!envelope->status.ok()) {
    Finish(id, envelope->status);
  } else {
    frames.erase(frames.begin());
    Finish(id, UnpackMessage(std::move(frames)));
  }
}

}  // namespace

std::unique_ptr<RpcClient> MakeRpcClient(ClientChannel& channel, Executor& executor,
                                         const RpcOptions& options) {
  return std::make_unique<RpcClientImpl>(channel, executor, options);
}

}  // namespace stillhouse
