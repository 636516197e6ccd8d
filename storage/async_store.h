// AsyncStore: a cache for event-driven objects. Work goes to store threads, results come back on
// the executor.
//
// Ordering: writes run one after another in the order asked for; reads run beside them. A simulator
// implements the same contract over memory stores, with delays of its own.
// Durability: a Put that answers OK is durable (TeacherCache); puts that wait together share one
// sync.
#pragma once

#include <memory>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "common/executor.h"
#include "storage/object_store.h"
#include "storage/teacher_cache.h"

namespace stillhouse {

// Of the puts that share one sync: many, since a sync of a table file takes some 60 ms on a virtual
// disk; but no more than kGroupSegmentsMax segments of the cache, which a bounded one cuts small.
inline constexpr uint64_t kPutGroupBytesMax = 256ull << 20;
inline constexpr uint64_t kGroupSegmentsMax = 4;

class AsyncStore {
 public:
  template <typename T>
  using Callback = absl::AnyInvocable<void(absl::StatusOr<T>)>;
  // Runs on a store thread; the task it returns runs on the executor.
  using Work = absl::AnyInvocable<Task(TeacherCache&, ObjectStore&)>;

  virtual ~AsyncStore() = default;
  virtual void Put(PutItem item, Callback<PutCounts> done) = 0;
  virtual void RunRead(Work work) = 0;  // must write nothing
  virtual void RunWrite(Work work) = 0;

  // `work` gives the result that `done` gets on the executor.
  template <typename T>
  void Read(absl::AnyInvocable<absl::StatusOr<T>(TeacherCache&, ObjectStore&)> work,
            Callback<T> done) {
    RunRead(Bind<T>(std::move(work), std::move(done)));
  }
  template <typename T>
  void Write(absl::AnyInvocable<absl::StatusOr<T>(TeacherCache&, ObjectStore&)> work,
             Callback<T> done) {
    RunWrite(Bind<T>(std::move(work), std::move(done)));
  }

 private:
  template <typename T>
  static Work Bind(absl::AnyInvocable<absl::StatusOr<T>(TeacherCache&, ObjectStore&)> work,
                   Callback<T> done) {
    return [work = std::move(work), done = std::move(done)](TeacherCache& sections,
                                                            ObjectStore& objects) mutable -> Task {
      return [result = work(sections, objects), done = std::move(done)]() mutable {
        done(std::move(result));
      };
    };
  }
};

// On threads of its own: one that writes and `read_threads` others. `sections`, `objects` and
// `executor` must outlive the result, whose destructor finishes what is queued.
std::unique_ptr<AsyncStore> MakePoolAsyncStore(TeacherCache& sections, ObjectStore& objects,
                                               Executor& executor, int read_threads);

}  // namespace stillhouse
