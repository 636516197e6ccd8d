// Journal: the State's rows in a database of their own, and their reader.
//
// Owner: coordinatord's main, or a test. Threads: Write may be called from any thread but by one at
// a time, and blocks on the disk. Ordering: later writes win; a batch happens together or not at
// all. Durability: after Write returns OK its rows survive SIGKILL and power loss. Every opening
// takes a higher incarnation; a lock keeps a second process out.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/executor.h"
#include "common/file.h"
#include "common/thread_pool.h"
#include "coordinator/admin_view.h"
#include "coordinator/journal_rows.h"
#include "coordinator/state.h"
#include "storage/kv_store.h"

namespace stillhouse {

class Journal {
 public:
  struct Opened {
    std::unique_ptr<Journal> journal;
    State state;  // with the new incarnation, which is durable already
  };
  // Makes the folder if need be. FailedPrecondition when another process holds it (for longer than
  // a reader would: two seconds), DataLoss when a row is damaged. `on_error` as in RocksOptions;
  // `pause` waits between two looks at a lock that is held.
  static absl::StatusOr<Opened> Open(
      const std::string& folder, std::function<void(absl::Status)> on_error,
      absl::FunctionRef<void(absl::Duration)> pause = absl::SleepFor);
  // Over a store of one family that the caller keeps; it must outlive the journal.
  static absl::StatusOr<Opened> OpenOver(KvStore& store);

  absl::Status Write(const std::vector<JournalChange>& changes);
  absl::Status Close();

 private:
  Journal(std::unique_ptr<FileLock> lock, std::unique_ptr<KvStore> owned, KvStore& store);

  std::unique_ptr<FileLock> lock_;  // released after the store is closed
  std::unique_ptr<KvStore> owned_;
  KvStore& store_;
};

// What people are shown when no coordinator is alive. FailedPrecondition while one is, NotFound
// when there is no journal.
absl::StatusOr<AdminView> ReadJournal(const std::string& folder, const std::string& name = "");

// Journal as event-driven objects see it. Completions come in the order of the calls.
class AsyncJournal {
 public:
  virtual ~AsyncJournal() = default;
  virtual void Write(std::vector<JournalChange> changes,
                     absl::AnyInvocable<void(absl::Status)> done) = 0;
};
// Writes on a thread of `pool` (which must have exactly one), completes on `executor`. All must
// outlive the result.
std::unique_ptr<AsyncJournal> MakeThreadedJournal(Journal& journal, ThreadPool& pool,
                                                  Executor& executor);

}  // namespace stillhouse
