// CoordinatorServer: the State behind an RpcServer: requests in, journaled effects, answers out.
//
// Owner: coordinatord's main, or a simulation. Execution model: event-driven, on one executor; owns
// no thread and never blocks: the journal is written elsewhere (AsyncJournal). Ordering: answers
// leave in the order of the events they answer. Durability: an answer leaves only after every row
// that its event, or one before it, marked is synced. Rows of events that come while a batch is
// being written go together into the next. When the journal cannot be written the server answers
// nobody any more and says so once: what memory holds by then was never promised.
#pragma once

#include <deque>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "common/executor.h"
#include "coordinator/cache_inventory.h"
#include "coordinator/journal.h"
#include "coordinator/planner.h"
#include "coordinator/state.h"
#include "coordinator/wire.h"
#include "transport/rpc.h"

namespace stillhouse {

class CoordinatorServer {
 public:
  struct Options {
    std::string cache_address;  // told to students
  };
  // `stopped` is called once: OK after admin.Shutdown, when everything is written; else why the
  // journal could not be. All references must outlive the server.
  CoordinatorServer(Options options, State state, RpcServer& rpc, Executor& executor,
                    AsyncJournal& journal, CacheInventory& cache,
                    absl::AnyInvocable<void(absl::Status)> stopped);
  ~CoordinatorServer();

  // Serves from now on.
  void Start();
  // Answers nothing new; `stopped(OK)` when all that was answered, and more, is durable.
  void Shutdown();

  const State& state() const { return state_; }

 private:
  using Respond = RpcServer::Respond;
  struct Pending {
    Respond respond;
    absl::StatusOr<RpcMessage> answer;
  };

  void HandleMethod(const WireMethod& method, const RpcMessage& request, Respond respond);
  void Tick();
  // Runs an event of our own, one that nobody waits for.
  template <typename F>
  void Apply(F event);
  void TakeEffects(Effects effects);
  void Enqueue(Pending pending);
  void WriteNext();
  void OnWritten(absl::Status status);
  void Stop(absl::Status status);

  const Options options_;
  State state_;
  RpcServer& rpc_;
  Executor& executor_;
  AsyncJournal& journal_;
  Planner planner_;
  absl::AnyInvocable<void(absl::Status)> stopped_;

  std::vector<JournalChange> changes_;  // of the next batch
  std::vector<Pending> waiting_;        // for the next batch
  std::vector<Pending> in_flight_;      // for the batch being written
  bool writing_ = false;
  bool shutting_down_ = false;
  bool ended_ = false;
  TimerId tick_timer_ = 0;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace stillhouse
