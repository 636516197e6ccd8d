#include "worker/agent.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "common/backoff.h"
#include "common/log.h"
#include "common/status.h"
#include "common/utf8.h"
#include "proto/control.pb.h"
#include "transport/rpc.h"
#include "worker/proto_call.h"

namespace stillhouse {
namespace {

// A call that waits longer is made anew, so that it carries what is true by then.
constexpr absl::Duration kCallDeadline = absl::Seconds(30);
// A result is worth more patience than a question: its chunk was expensive. The coordinator finds
// it in the cache anyway when it asks there again.
constexpr absl::Duration kReportDeadline = absl::Minutes(10);
constexpr absl::Duration kGoodbyeDeadline = absl::Seconds(2);
// A full cache: each try costs the computation of a batch.
constexpr absl::Duration kRoomRetryMin = absl::Seconds(1);
constexpr absl::Duration kRoomRetryMax = absl::Minutes(1);
constexpr absl::Duration kSayNoRoomEvery = absl::Minutes(1);
constexpr size_t kReasonBytesMax = 4000;  // the coordinator keeps less
// Bounds on what a coordinator may ask for.
constexpr absl::Duration kHeartbeatMin = absl::Milliseconds(10);
constexpr absl::Duration kHeartbeatMax = absl::Minutes(1);
constexpr absl::Duration kLeaseRetryMin = absl::Milliseconds(10);
constexpr absl::Duration kLeaseRetryMax = absl::Seconds(10);

// The coordinator is not there, or was cut off: worth asking again.
bool IsTransient(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsResourceExhausted(status);
}

bool BlamesChunk(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsDataLoss(status);
}

pb::GrantId ToProto(const ChunkGrant& grant) {
  pb::GrantId id;
  id.set_job(grant.job);
  id.set_chunk(grant.chunk);
  id.set_epoch(grant.epoch);
  return id;
}

bool Names(const pb::GrantId& id, const ChunkGrant& grant) {
  return id.job() == grant.job && id.chunk() == grant.chunk && id.epoch() == grant.epoch;
}

class AgentImpl final : public Agent {
  // A callback that does nothing once the agent is gone.
  template <typename F>
  auto Guard(F f) {
    return [alive = std::weak_ptr<bool>(alive_), f = std::move(f)](auto&&... args) mutable {
      if (!alive.expired()) f(std::forward<decltype(args)>(args)...);
    };
  }

 public:
  AgentImpl(const AgentOptions& options, RpcClient& rpc, Executor& executor, ChunkWorker& worker,
            absl::AnyInvocable<void(absl::Status)> drained)
      : options_(options),
        rpc_(rpc),
        executor_(executor),
        worker_(worker),
        drained_(std::move(drained)),
        loading_(options.loading),
        backoff_({.seed = options.incarnation}),
        room_backoff_({.first = kRoomRetryMin, .max = kRoomRetryMax, .seed = options.incarnation}) {
  }

  ~AgentImpl() override { CancelTimers(); }

  void Start() override { Register(); }

  void Ready() override {
    loading_ = false;
    if (registered_) SendHeartbeat();
    MaybeLease();
  }

  void Drain() override {
    if (draining_ || ended_) return;
    draining_ = true;
    MaybeLeave();
    if (ended_ || !leasing_) return;
    // A coordinator that is gone must not keep us; what it grants meanwhile expires.
    executor_.Cancel(lease_timer_);
    lease_timer_ = executor_.PostAfter(kGoodbyeDeadline, Guard([this] {
                                         if (!grant_.has_value()) EndWith(absl::OkStatus());
                                       }));
  }

 private:
  void CancelTimers() {
    executor_.Cancel(heartbeat_timer_);
    executor_.Cancel(lease_timer_);
    executor_.Cancel(register_timer_);
  }

  // --- Transition 1, and 6: the coordinator restarted and knows us no more.

  void Register() {
    if (registering_ || ended_) return;
    registering_ = true;
    registered_ = false;
    pb::RegisterRequest request;
    request.set_worker(options_.worker);
    request.set_incarnation(options_.incarnation);
    request.set_host(CleanUtf8(options_.host));
    request.set_pid(options_.pid);
    request.set_role(pb::RegisterRequest::TEACHER);
    request.set_teacher(std::string(options_.teacher.AsStringView()));
    request.set_teacher_dtype(options_.teacher_dtype);
    request.set_producer_class(CleanUtf8(options_.producer_class));
    request.set_state(StateName());
    if (grant_.has_value()) *request.add_held() = ToProto(*grant_);
    CallProto<pb::RegisterResponse>(rpc_, "control.Register", request, {.deadline = kCallDeadline},
                                    Guard([this](absl::StatusOr<pb::RegisterResponse> response) {
                                      registering_ = false;
                                      OnRegistered(std::move(response));
                                    }));
  }

  void OnRegistered(absl::StatusOr<pb::RegisterResponse> response) {
    if (ended_) return;
    if (!response.ok()) {
      if (!IsTransient(response.status())) {
        EndWith(Annotate(response.status(), "the coordinator refused this worker"));
        return;
      }
      executor_.Cancel(register_timer_);
      register_timer_ = executor_.PostAfter(backoff_.Next(), Guard([this] { Register(); }));
      return;
    }
    backoff_.Reset();
    registered_ = true;
    heartbeat_ =
        std::clamp(absl::Milliseconds(response->heartbeat_ms()), kHeartbeatMin, kHeartbeatMax);
    if (grant_.has_value() && working_) {
      const bool kept = std::any_of(response->kept().begin(), response->kept().end(),
                                    [&](const pb::GrantId& id) { return Names(id, *grant_); });
      if (!kept) StopWork();
    }
    ScheduleHeartbeat();
    MaybeLease();
  }

  // --- Heartbeats

  std::string StateName() const {
    if (draining_) return "draining";
    if (loading_) return "loading";
    return grant_.has_value() ? "working" : "ready";
  }

  void ScheduleHeartbeat() {
    executor_.Cancel(heartbeat_timer_);
    heartbeat_timer_ = executor_.PostAfter(heartbeat_, Guard([this] {
                                             SendHeartbeat();
                                             ScheduleHeartbeat();
                                           }));
  }

  void SendHeartbeat() {
    if (!registered_ || heartbeat_in_flight_ || ended_) return;
    heartbeat_in_flight_ = true;
    pb::HeartbeatRequest request;
    request.set_worker(options_.worker);
    request.set_incarnation(options_.incarnation);
    request.set_state(StateName());
    if (grant_.has_value()) {
      pb::HeartbeatRequest::Progress* progress = request.add_progress();
      *progress->mutable_grant() = ToProto(*grant_);
      progress->set_rows_done(rows_done_);
      progress->set_steps(working_ ? worker_.Steps() : 0);
    }
    // It ends before the next is due: an old heartbeat says nothing worth waiting for.
    CallProto<pb::HeartbeatResponse>(
        rpc_, "control.Heartbeat", request,
        {.deadline = heartbeat_ * 0.9, .resend_after = heartbeat_ * 0.4},
        Guard([this](absl::StatusOr<pb::HeartbeatResponse> response) {
          heartbeat_in_flight_ = false;
          if (response.ok()) OnHeartbeat(*response);
        }));
  }

  void OnHeartbeat(const pb::HeartbeatResponse& response) {
    if (ended_) return;
    if (response.unknown_worker()) {
      Register();
      return;
    }
    for (const pb::GrantId& id : response.cancelled()) {
      if (working_ && Names(id, *grant_)) StopWork();
    }
    if (response.drain()) Drain();
  }

  // --- Transition 2: leases

  void MaybeLease() {
    if (!registered_ || loading_ || draining_ || ended_ || leasing_ || grant_.has_value()) return;
    if (executor_.clock().Now() < lease_not_before_) return;  // Idle() asks then
    executor_.Cancel(lease_timer_);
    leasing_ = true;
    pb::LeaseRequest request;
    request.set_worker(options_.worker);
    request.set_incarnation(options_.incarnation);
    request.set_sequence(++lease_sequence_);
    CallProto<pb::LeaseResponse>(rpc_, "control.Lease", request, {.deadline = kCallDeadline},
                                 Guard([this](absl::StatusOr<pb::LeaseResponse> response) {
                                   leasing_ = false;
                                   OnLease(std::move(response));
                                 }));
  }

  void LeaseLater(absl::Duration delay) {
    executor_.Cancel(lease_timer_);
    lease_timer_ = executor_.PostAfter(std::clamp(delay, kLeaseRetryMin, kLeaseRetryMax),
                                       Guard([this] { MaybeLease(); }));
  }

  void OnLease(absl::StatusOr<pb::LeaseResponse> response) {
    if (ended_) return;
    if (!response.ok()) {
      if (!IsTransient(response.status())) {
        EndWith(Annotate(response.status(), "asking for work"));
      } else if (!MaybeLeave()) {
        LeaseLater(backoff_.Next());
      }
      return;
    }
    backoff_.Reset();
    if (response->granted()) {
      OnGranted(*response);
    } else if (response->unknown_worker()) {
      if (!MaybeLeave()) Register();
    } else if (!response->leave().empty()) {
      EndWith(absl::UnavailableError(response->leave()));
    } else if (response->all_done() && options_.leave_when_done) {
      Drain();
    } else if (!MaybeLeave()) {
      LeaseLater(absl::Milliseconds(response->retry_ms()));
    }
  }

  void OnGranted(const pb::LeaseResponse& response) {
    ChunkGrant grant;
    grant.job = response.grant().job();
    grant.chunk = response.grant().chunk();
    grant.epoch = response.grant().epoch();
    absl::StatusOr<Digest> plan = DigestFromBytes(response.plan());
    if (!plan.ok()) {
      EndWith(Annotate(plan.status(), absl::StrCat("the plan named in a lease of ", grant.job)));
      return;
    }
    grant.plan = *plan;
    grant.sections.assign(response.sections().canonical().begin(),
                          response.sections().canonical().end());
    grant_ = std::move(grant);
    rows_done_ = 0;
    if (draining_) {
      ReportFailed(absl::CancelledError("given back: this worker is draining"), /*returned=*/true);
      return;
    }
    working_ = true;
    stopping_ = false;
    worker_.Start(*grant_, Guard([this, epoch = grant_->epoch](uint64_t rows) {
      if (working_ && grant_->epoch == epoch) rows_done_ = std::max(rows_done_, rows);
    }),
                  Guard([this, epoch = grant_->epoch](absl::StatusOr<ChunkResult> result) {
                    SH_CHECK(working_ && grant_->epoch == epoch, "a chunk was finished twice");
                    OnWorkDone(std::move(result));
                  }));
  }

  // --- Transitions 3 and 4: the end of a piece of work

  void StopWork() {
    if (stopping_) return;
    stopping_ = true;
    worker_.Cancel();
  }

  void OnWorkDone(absl::StatusOr<ChunkResult> result) {
    working_ = false;
    if (result.ok()) {
      ReportDone(*result);  // also when it was being stopped: what is durable counts
    } else if (stopping_) {
      Idle();
    } else if (absl::IsResourceExhausted(result.status())) {
      WaitForRoom(result.status());
    } else {
      ReportFailed(result.status(), /*returned=*/false);
    }
  }

  // The cache took no more: nobody's fault, and no reason to leave. The chunk is given back, so
  // that no lease stalls, and work is asked for again after a while.
  void WaitForRoom(const absl::Status& why) {
    const absl::Duration now = executor_.clock().Now();
    if (now >= say_no_room_at_) {
      LogWarning(grant_->job, " chunk ", grant_->chunk, " is given back, since the cache has no ",
                 "room; tried again until it has: ", why.ToString());
      say_no_room_at_ = now + kSayNoRoomEvery;
    }
    lease_not_before_ = now + room_backoff_.Next();
    ReportFailed(why, /*returned=*/true);
  }

  void ReportDone(const ChunkResult& result) {
    room_backoff_.Reset();
    pb::DoneRequest request;
    request.set_worker(options_.worker);
    request.set_incarnation(options_.incarnation);
    *request.mutable_grant() = ToProto(*grant_);
    for (const ChunkResult::Ack& ack : result.acks) {
      pb::DoneRequest::Ack* out = request.add_acks();
      out->set_store_id(ack.store_id);
      out->set_incarnation(ack.incarnation);
    }
    request.set_rows_computed(result.rows_computed);
    request.set_parts_mismatched(result.parts_mismatched);
    request.set_seconds(result.seconds);
    CallProto<pb::DoneResponse>(
        rpc_, "control.Done", request, {.deadline = kReportDeadline},
        Guard([this](absl::StatusOr<pb::DoneResponse> r) { OnReported(r.status()); }));
  }

  void ReportFailed(const absl::Status& why, bool returned) {
    if (!returned) {
      LogWarning(grant_->job, " chunk ", grant_->chunk, " failed: ", why.ToString());
    }
    pb::FailedRequest request;
    request.set_worker(options_.worker);
    request.set_incarnation(options_.incarnation);
    *request.mutable_grant() = ToProto(*grant_);
    request.set_reason(CleanUtf8(why.ToString(), kReasonBytesMax));
    request.set_chunk_at_fault(BlamesChunk(why));
    request.set_returned(returned);
    CallProto<pb::FailedResponse>(
        rpc_, "control.Failed", request, {.deadline = kReportDeadline},
        Guard([this](absl::StatusOr<pb::FailedResponse> r) { OnReported(r.status()); }));
  }

  void OnReported(const absl::Status& status) {
    if (!status.ok()) {
      LogWarning("reporting ", grant_->job, " chunk ", grant_->chunk, ": ", status.ToString());
    }
    Idle();
  }

  void Idle() {
    grant_.reset();
    stopping_ = false;
    if (MaybeLeave()) return;
    const absl::Duration wait = lease_not_before_ - executor_.clock().Now();
    if (wait <= absl::ZeroDuration()) return MaybeLease();
    executor_.Cancel(lease_timer_);
    lease_timer_ = executor_.PostAfter(wait, Guard([this] {
                                         lease_not_before_ = -absl::InfiniteDuration();
                                         MaybeLease();
                                       }));
  }

  // --- Transition 5: leaving

  // True if the agent is on its way out (or would be, but for a call in flight).
  bool MaybeLeave() {
    if (ended_) SayGoodbye();
    if (ended_) return true;
    if (!draining_) return false;
    if (!grant_.has_value() && !leasing_) EndWith(absl::OkStatus());
    return true;
  }

  // Nothing new is begun; work under way is stopped; then `drained(status)`.
  void EndWith(absl::Status status) {
    if (!ended_) {
      ended_ = true;
      end_status_ = std::move(status);
      CancelTimers();
    }
    if (working_) {
      StopWork();
      return;  // Idle() says it later
    }
    SayGoodbye();
  }

  // The last heartbeat only spares the coordinator a time-out: it is not insisted upon.
  void SayGoodbye() {
    if (said_goodbye_) return;
    said_goodbye_ = true;
    if (!registered_) {
      Finish();
      return;
    }
    pb::HeartbeatRequest request;
    request.set_worker(options_.worker);
    request.set_incarnation(options_.incarnation);
    request.set_state("left");
    CallProto<pb::HeartbeatResponse>(
        rpc_, "control.Heartbeat", request, {.deadline = kGoodbyeDeadline},
        Guard([this](absl::StatusOr<pb::HeartbeatResponse>) { Finish(); }));
  }

  // Posted, and without `this`: the receiver may destroy the agent.
  void Finish() {
    executor_.Post([drained = std::move(drained_), status = end_status_]() mutable {
      drained(std::move(status));
    });
  }

  const AgentOptions options_;
  RpcClient& rpc_;
  Executor& executor_;
  ChunkWorker& worker_;
  absl::AnyInvocable<void(absl::Status)> drained_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);

  bool registered_ = false;
  bool registering_ = false;
  bool loading_;
  bool draining_ = false;
  bool leasing_ = false;  // a Lease call is in flight
  bool heartbeat_in_flight_ = false;
  uint64_t lease_sequence_ = 0;
  absl::Duration heartbeat_ = absl::Seconds(5);
  Backoff backoff_;
  Backoff room_backoff_;
  absl::Duration lease_not_before_ = -absl::InfiniteDuration();
  absl::Duration say_no_room_at_ = -absl::InfiniteDuration();
  TimerId heartbeat_timer_ = 0;
  TimerId lease_timer_ = 0;
  TimerId register_timer_ = 0;

  // Held from the grant until its end was reported; `working_` only while the ChunkWorker has it.
  std::optional<ChunkGrant> grant_;
  bool working_ = false;
  bool stopping_ = false;
  uint64_t rows_done_ = 0;

  bool ended_ = false;
  bool said_goodbye_ = false;
  absl::Status end_status_;
};

}  // namespace

std::unique_ptr<Agent> MakeAgent(const AgentOptions& options, RpcClient& rpc, Executor& executor,
                                 ChunkWorker& worker,
                                 absl::AnyInvocable<void(absl::Status)> drained) {
  return std::make_unique<AgentImpl>(options, rpc, executor, worker, std::move(drained));
}

}  // namespace stillhouse
