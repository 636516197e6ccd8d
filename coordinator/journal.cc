#include "coordinator/journal.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace stillhouse {
namespace {

constexpr KvFamily kFamily = 0;
constexpr int kScanRows = 1000;
constexpr absl::Duration kLockPause = absl::Milliseconds(20);
constexpr int kLockPausesMax = 100;  // two seconds: longer than a reader holds it

RocksOptions StoreOptions(const std::string& folder) {
  RocksOptions options;
  options.path = JoinPath(folder, "db");
  options.families = {{.name = "journal", .memtable_bytes = 4ull << 20}};
  options.open_files_max = 100;
  options.block_cache_bytes = 4ull << 20;
  return options;
}

std::string LockPath(const std::string& folder) { return JoinPath(folder, "STILLHOUSE.LOCK"); }

// For a coordinator that starts. ReadJournal holds the lock for a moment; another coordinator keeps
// it.
absl::StatusOr<std::unique_ptr<FileLock>> LockAlone(const std::string& folder,
                                                    absl::FunctionRef<void(absl::Duration)> pause) {
  for (int pauses = 0;; ++pauses) {
    auto lock = FileLock::Acquire(LockPath(folder), FileLock::Mode::kExclusive);
    if (!absl::IsFailedPrecondition(lock.status()) || pauses == kLockPausesMax) return lock;
    pause(kLockPause);
  }
}

absl::StatusOr<State> ReadState(KvStore& store) {
  State state;
  state.incarnation = 0;
  KvScanOptions scan;
  scan.entries_max = kScanRows;
  for (;;) {
    SH_ASSIGN_OR_RETURN_AT(const KvScanResult page, store.Scan(kFamily, scan),
                           "reading the journal");
    for (const KvEntry& entry : page.entries) {
      SH_RETURN_IF_ERROR(DecodeRow(entry.key, entry.value, &state));
    }
    if (!page.more) break;
    scan.begin = page.entries.back().key + '\0';
  }
  SH_RETURN_IF_ERROR(CheckRestored(state));
  return state;
}

class ThreadedJournal final : public AsyncJournal {
 public:
  ThreadedJournal(Journal& journal, ThreadPool& pool, Executor& executor)
      : journal_(journal), pool_(pool), executor_(executor) {}

  void Write(std::vector<JournalChange> changes,
             absl::AnyInvocable<void(absl::Status)> done) override {
    // Without `this`: a write under way outlives us by as long as the pool does.
    pool_.Post([&journal = journal_, &executor = executor_, changes = std::move(changes),
                done = std::move(done)]() mutable {
      absl::Status status = journal.Write(changes);
      executor.Post([done = std::move(done), status = std::move(status)]() mutable {
        done(std::move(status));
      });
    });
  }

 private:
  Journal& journal_;
  ThreadPool& pool_;
  Executor& executor_;
};

}  // namespace

Journal::Journal(std::unique_ptr<FileLock> lock, std::unique_ptr<KvStore> owned, KvStore& store)
    : lock_(std::move(lock)), owned_(std::move(owned)), store_(store) {}

absl::StatusOr<Journal::Opened> Journal::Open(const std::string& folder,
                                              std::function<void(absl::Status)> on_error,
                                              absl::FunctionRef<void(absl::Duration)> pause) {
  SH_RETURN_IF_ERROR(MakeFolders(folder, 0700));
  SH_ASSIGN_OR_RETURN(std::unique_ptr<FileLock> lock, LockAlone(folder, pause));
  RocksOptions options = StoreOptions(folder);
  options.on_background_error = std::move(on_error);
  SH_ASSIGN_OR_RETURN_AT(std::unique_ptr<KvStore> store, OpenRocksKvStore(options),
                         absl::StrCat("opening the journal ", folder));
  KvStore& borrowed = *store;
  SH_ASSIGN_OR_RETURN_AT(Opened opened, OpenOver(borrowed), folder);
  opened.journal->lock_ = std::move(lock);
  opened.journal->owned_ = std::move(store);
  return opened;
}

absl::StatusOr<Journal::Opened> Journal::OpenOver(KvStore& store) {
  Opened opened;
  SH_ASSIGN_OR_RETURN(opened.state, ReadState(store));
  ++opened.state.incarnation;
  opened.journal.reset(new Journal(nullptr, nullptr, store));
  // Durable before it is used: epochs of leases are made of it.
  SH_RETURN_IF_ERROR_AT(
      opened.journal->Write(EncodeRows(opened.state, {{RowRef::Kind::kMeta, ""}})),
      "taking a new incarnation");
  return opened;
}

absl::Status Journal::Write(const std::vector<JournalChange>& changes) {
  KvBatch batch;
  for (const JournalChange& change : changes) {
    switch (change.kind) {
      case JournalChange::Kind::kPut:
        batch.Put(kFamily, change.key, change.value);
        break;
      case JournalChange::Kind::kErase:
        batch.Delete(kFamily, change.key);
        break;
      case JournalChange::Kind::kEraseRange:
        batch.DeleteRange(kFamily, change.key, change.value);
        break;
    }
  }
  return store_.Write(batch, KvStore::Sync::kSync);
}

absl::Status Journal::Close() {
  if (owned_ == nullptr) return absl::OkStatus();
  const absl::Status status = store_.Close();
  return status;
}

absl::StatusOr<AdminView> ReadJournal(const std::string& folder, const std::string& name) {
  if (!PathExists(LockPath(folder))) {
    return absl::NotFoundError(absl::StrCat("there is no journal in ", folder));
  }
  SH_ASSIGN_OR_RETURN(const std::unique_ptr<FileLock> lock,
                      FileLock::Acquire(LockPath(folder), FileLock::Mode::kShared));
  RocksOptions options = StoreOptions(folder);
  options.read_only = true;
  SH_ASSIGN_OR_RETURN_AT(std::unique_ptr<KvStore> store, OpenRocksKvStore(options),
                         absl::StrCat("opening the journal ", folder));
  SH_ASSIGN_OR_RETURN(const State state, ReadState(*store));
  return ViewState(state, name, absl::ZeroDuration());
}

std::unique_ptr<AsyncJournal> MakeThreadedJournal(Journal& journal, ThreadPool& pool,
                                                  Executor& executor) {
  return std::make_unique<ThreadedJournal>(journal, pool, executor);
}

}  // namespace stillhouse
