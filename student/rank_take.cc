#include "student/rank_take.h"

#include <memory>
#include <optional>
#include <utility>

#include "common/blocking.h"
#include "common/mutex.h"
#include "common/status.h"

namespace stillhouse {
namespace {

using Documents = absl::StatusOr<std::vector<DocumentTargets>>;

// Between two votes of ranks that wait. Little against a wait for a teacher; with the data here
// nobody waits for it.
constexpr absl::Duration kVotePeriod = absl::Milliseconds(20);

struct Taking {
  Mutex mutex;
  CondVar changed;
  std::optional<Documents> result ABSL_GUARDED_BY(mutex);
};

// Whether the documents are here, at the latest after the period.
absl::StatusOr<bool> IsHere(Taking& taking) {
  MutexLock lock(taking.mutex);
  if (!taking.result.has_value()) taking.changed.WaitFor(taking.mutex, kVotePeriod);
  if (!taking.result.has_value()) return false;
  SH_RETURN_IF_ERROR(taking.result->status());
  return true;
}

}  // namespace

Documents TakeTogether(RankGroup& group, Executor& executor, Prefetcher& loader, size_t count,
                       absl::FunctionRef<absl::Status()> check) {
  if (group.ranks() == 1) {
    SH_RETURN_IF_ERROR(check());
    return CallAndWait<std::vector<DocumentTargets>>(
        executor, [&](auto done) { loader.Take(count, std::move(done)); });
  }
  auto taking = std::make_shared<Taking>();
  if (count == 0) {
    MutexLock lock(taking->mutex);
    taking->result = std::vector<DocumentTargets>();
  } else {
    executor.Post([taking, &loader, count] {
      loader.Take(count, [taking](Documents documents) {
        MutexLock lock(taking->mutex);
        taking->result = std::move(documents);
        taking->changed.NotifyAll();
      });
    });
  }
  for (;;) {
    absl::StatusOr<bool> mine = IsHere(*taking);
    if (const absl::Status status = check(); !status.ok()) mine = status;
    SH_ASSIGN_OR_RETURN(const bool all, group.AllReady(mine));
    if (!all) continue;
    MutexLock lock(taking->mutex);
    return *std::move(taking->result);
  }
}

}  // namespace stillhouse
