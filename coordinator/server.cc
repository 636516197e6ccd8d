#include "coordinator/server.h"

#include <utility>

#include "common/log.h"
#include "common/status.h"

namespace stillhouse {

CoordinatorServer::CoordinatorServer(Options options, State state, RpcServer& rpc,
                                     Executor& executor, AsyncJournal& journal,
                                     CacheInventory& cache,
                                     absl::AnyInvocable<void(absl::Status)> stopped)
    : options_(std::move(options)),
      state_(std::move(state)),
      rpc_(rpc),
      executor_(executor),
      journal_(journal),
      planner_(
          cache, executor,
          {.capture = [this](const std::string& name, uint64_t generation) -> const CaptureSetup* {
             const Job* job = FindJob(state_, name);
             return job == nullptr || job->generation != generation ? nullptr : &job->capture;
           },
           .answered =
               [this](const InventoryAsk& asked, const std::vector<bool>& present) {
                 Apply([&](Effects& effects) {
                   OnInventory(state_, asked, present, executor_.clock().Now(), effects);
                 });
               },
           .reconciled =
               [this](const std::string& job, uint64_t generation) {
                 Apply([&](Effects& effects) { OnReconciled(state_, job, generation, effects); });
               },
           .room_made =
               [this](const RoomAsk& asked, uint64_t bytes_used) {
                 Apply([&](Effects& effects) { OnRoom(state_, asked, bytes_used, effects); });
               }}),
      stopped_(std::move(stopped)) {}

CoordinatorServer::~CoordinatorServer() { executor_.Cancel(tick_timer_); }

void CoordinatorServer::Start() {
  for (const WireMethod& method : WireMethods()) {
    rpc_.Handle(method.name, [this, &method](const Peer&, RpcMessage request, Respond respond) {
      HandleMethod(method, request, std::move(respond));
    });
  }
  rpc_.Handle("admin.Shutdown", [this](const Peer&, RpcMessage, Respond respond) {
    Enqueue({std::move(respond), RpcMessage{}});
    Shutdown();
  });
  Apply([&](Effects& effects) { OnOpened(state_, executor_.clock().Now(), effects); });
  Tick();
}

template <typename F>
void CoordinatorServer::Apply(F event) {
  if (ended_) return;
  ObserveTime(state_, executor_.clock().Now());
  Effects effects;
  event(effects);
  TakeEffects(std::move(effects));
  if (!writing_) WriteNext();
}

void CoordinatorServer::Tick() {
  Apply([&](Effects& effects) { OnTick(state_, executor_.clock().Now(), effects); });
  tick_timer_ = executor_.PostAfter(kTickPeriod, [this] { Tick(); });
}

void CoordinatorServer::HandleMethod(const WireMethod& method, const RpcMessage& request,
                                     Respond respond) {
  if (ended_ || shutting_down_) return;  // unanswered: asked again, perhaps of our successor
  ObserveTime(state_, executor_.clock().Now());
  Effects effects;
  WireContext context{state_, options_.cache_address, executor_.clock().Now(), effects};
  absl::StatusOr<std::string> body = method.handle(request.body, context);
  Pending pending{std::move(respond), RpcMessage{}};
  if (body.ok()) {
    pending.answer->body = *std::move(body);
  } else {
    pending.answer = body.status();
  }
  TakeEffects(std::move(effects));
  Enqueue(std::move(pending));
}

void CoordinatorServer::TakeEffects(Effects effects) {
  for (const std::string& warning : effects.warnings) LogWarning(warning);
  if (!effects.rows.empty()) {
    for (JournalChange& change : EncodeRows(state_, effects.rows)) {
      changes_.push_back(std::move(change));
    }
  }
  // After the rows: a question may be answered at once and raise events of its own.
  for (const InventoryAsk& ask : effects.asks) planner_.Ask(ask);
  for (const RoomAsk& ask : effects.rooms) planner_.MakeRoom(ask);
}

void CoordinatorServer::Enqueue(Pending pending) {
  waiting_.push_back(std::move(pending));
  if (!writing_) WriteNext();
}

void CoordinatorServer::WriteNext() {
  SH_CHECK(!writing_ && in_flight_.empty());
  if (changes_.empty()) {
    std::vector<Pending> ready = std::exchange(waiting_, {});
    for (Pending& pending : ready) pending.respond(std::move(pending.answer));
    if (shutting_down_ && !ended_) Stop(absl::OkStatus());
    return;
  }
  writing_ = true;
  in_flight_ = std::exchange(waiting_, {});
  journal_.Write(std::exchange(changes_, {}),
                 [this, alive = std::weak_ptr<bool>(alive_)](absl::Status status) {
                   if (!alive.expired()) OnWritten(std::move(status));
                 });
}

void CoordinatorServer::OnWritten(absl::Status status) {
  writing_ = false;
  std::vector<Pending> written = std::exchange(in_flight_, {});
  if (!status.ok()) {
    Stop(Annotate(status, "writing the journal"));
    return;
  }
  for (Pending& pending : written) pending.respond(std::move(pending.answer));
  if (!ended_) WriteNext();
}

void CoordinatorServer::Shutdown() {
  if (shutting_down_ || ended_) return;
  shutting_down_ = true;
  if (!writing_) WriteNext();
}

void CoordinatorServer::Stop(absl::Status status) {
  ended_ = true;
  executor_.Cancel(tick_timer_);
  executor_.Post([stopped = std::move(stopped_), status = std::move(status)]() mutable {
    stopped(std::move(status));
  });
}

}  // namespace stillhouse
