// Planner: asks the cache what is there, one question at a time for each job, until it answers.
//
// Owner: CoordinatorServer. Event-driven, on one executor. Ordering: a chunk asked about while a
// question is out is asked about again in the next one, so no answer is older than what raised the
// question. Retries for ever, with Backoff: without the cache nothing can go on anyway.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "common/backoff.h"
#include "common/executor.h"
#include "coordinator/cache_inventory.h"
#include "coordinator/state.h"

namespace stillhouse {

class Planner {
 public:
  struct Callbacks {
    // Of the job as it is now; null when it is gone or of another generation: the question is
    // dropped.
    absl::AnyInvocable<const CaptureSetup*(const std::string& job, uint64_t generation)> capture;
    absl::AnyInvocable<void(const InventoryAsk& asked, const std::vector<bool>& present)> answered;
    absl::AnyInvocable<void(const std::string& job, uint64_t generation)> reconciled;
    absl::AnyInvocable<void(const RoomAsk& asked, uint64_t bytes_used)> room_made;
  };
  // All must outlive the planner.
  Planner(CacheInventory& cache, Executor& executor, Callbacks callbacks);
  ~Planner();

  void Ask(const InventoryAsk& ask);
  // Asks until it is answered, or the job is gone or of another generation.
  void MakeRoom(const RoomAsk& ask);

 private:
  struct Question {
    uint64_t generation = 0;
    std::set<uint32_t> wanted;
    bool reconcile = false;  // report when `to_reconcile` is empty
    std::set<uint32_t> to_reconcile;
    bool out = false;
    TimerId retry_timer = 0;
    Backoff backoff{{}};
  };
  void AskNext(const std::string& job);
  void OnAnswer(const std::string& job, InventoryAsk asked,
                absl::StatusOr<std::vector<bool>> present);

  CacheInventory& cache_;
  Executor& executor_;
  Callbacks callbacks_;
  struct RoomQuestion {
    TimerId retry_timer = 0;
    Backoff backoff{{}};
  };
  void AskForRoom(const RoomAsk& ask, std::shared_ptr<RoomQuestion> question);

  std::map<std::string, Question> questions_;                            // by job
  std::map<std::string, std::shared_ptr<RoomQuestion>> room_questions_;  // by job
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace stillhouse
