#include "storage/cache_directory.h"

#include <sys/random.h>
#include <unistd.h>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "common/log.h"
#include "common/status.h"
#include "storage/cache_quarantine.h"
#include "storage/cache_repair.h"
#include "storage/choose_reads.h"
#include "storage/index_builder.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kLockName = "STILLHOUSE.LOCK";
constexpr absl::string_view kDatabaseName = "db";
constexpr absl::string_view kIngestSuffix = ".ingest";

absl::Status RemoveUnfinishedFiles(const std::string& folder) {
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  for (const std::string& name : names) {
    if (!absl::EndsWith(name, kIngestSuffix)) continue;
    const std::string path = JoinPath(folder, name);
    if (unlink(path.c_str()) != 0) return ErrnoStatus("removing", path);
  }
  return absl::OkStatus();
}

KvReads ReadsFor(const std::string& database) {
  const KvReads reads = ChooseReads(DatabaseBytes(database), MemoryForFiles());
  return SupportsDirectReads(JoinPath(database, "CURRENT")) ? reads : KvReads::kMapped;
}

// Damage is named once, here, with what the user can do about it.
absl::Status ExplainDamage(const absl::Status& status, const std::string& path) {
  if (status.code() != absl::StatusCode::kDataLoss) return status;
  return absl::DataLossError(
      absl::StrCat("the cache ", path, " is damaged: ", status.message(),
                   "; nothing was changed. `coordinatorctl cache repair --dir ", path,
                   "` keeps what is whole and lists what is gone, which is then captured again"));
}

// The index is small and can be made from the records: no reason to refuse the cache.
absl::Status MakeIndexIfNeeded(KvStore& store, const std::string& path) {
  SH_ASSIGN_OR_RETURN(const bool needed, NeedsIndex(store));
  if (!needed) return absl::OkStatus();
  SH_ASSIGN_OR_RETURN(const IndexBuilt built, RebuildIndex(store));
  LogWarning("the cache ", path, " had no sound index: made from ", built.records, " records, ",
             built.indexed, " parts");
  return absl::OkStatus();
}

// Says once what the opening found that no MANIFEST named, and drops what is of no use.
absl::Status SettleQuarantine(const std::string& path, CacheDirectory& directory, KvStore& store) {
  const std::string quarantine = JoinPath(path, kQuarantineName);
  SH_RETURN_IF_ERROR(TidyQuarantine(quarantine, directory.sections(), directory.objects()));
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> aside, store.SetAsideAtOpen());
  int left = 0;
  std::string folder;
  for (const std::string& file : aside) {
    if (!PathExists(file)) continue;
    ++left;
    folder = FolderOf(file);
  }
  if (left > 0) {
    LogWarning("the cache ", path, ": ", left,
               " files that its MANIFEST does not name were moved to ", folder,
               "; a crash leaves such files. If parts are missing, `coordinatorctl cache "
               "repair` takes back what they hold");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> NewStoreId() {
  char bytes[8];
  if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes)) {
    return absl::InternalError("the system gives no random bytes");
  }
  return std::string(absl::BytesToHexString(absl::string_view(bytes, sizeof(bytes))));
}

absl::Status CheckIsThere(const std::string& inside, const std::string& path) {
  const absl::Status there = CheckExists(inside);
  if (!absl::IsNotFound(there)) return there;
  return absl::NotFoundError(absl::StrCat("no cache in ", path));
}

absl::StatusOr<std::unique_ptr<FileLock>> LockCache(const std::string& path, bool alone) {
  auto lock = FileLock::Acquire(JoinPath(path, kLockName),
                                alone ? FileLock::Mode::kExclusive : FileLock::Mode::kShared);
  if (lock.status().code() != absl::StatusCode::kFailedPrecondition) return lock;
  return absl::FailedPreconditionError(
      absl::StrCat("the cache ", path, " is held by another process; ",
                   alone ? "stop that one first, or choose another --dir"
                         : "ask its server with --server ADDRESS, or stop it first"));
}

RocksOptions CacheRocksOptions(const std::string& path) {
  RocksOptions rocks;
  rocks.path = JoinPath(path, kDatabaseName);
  rocks.ingest_folder = path;
  rocks.families = CacheFamilies();
  return rocks;
}

absl::StatusOr<std::unique_ptr<CacheDirectory>> CacheDirectory::Open(Options options) {
  RocksOptions rocks = CacheRocksOptions(options.path);
  if (options.read_only && NeedsFinishing(options.path)) {
    return ExplainDamage(absl::DataLossError("a repair of it was interrupted"), options.path);
  }
  if (options.read_only) SH_RETURN_IF_ERROR(CheckIsThere(rocks.path, options.path));
  if (!options.read_only) SH_RETURN_IF_ERROR(MakeFolders(options.path, 0700));
  auto directory = std::unique_ptr<CacheDirectory>(new CacheDirectory());
  SH_ASSIGN_OR_RETURN(directory->lock_, LockCache(options.path, /*alone=*/!options.read_only));
  if (!options.read_only) {
    SH_RETURN_IF_ERROR(CheckOwnFolder(JoinPath(options.path, kQuarantineName)));
    SH_RETURN_IF_ERROR(FinishRepair(options.path).status());
    SH_RETURN_IF_ERROR(RemoveUnfinishedFiles(options.path));
    rocks.quarantine_folder = JoinPath(options.path, kQuarantineName);
  }
  rocks.read_only = options.read_only;
  rocks.reads = options.reads.has_value() ? *options.reads : ReadsFor(rocks.path);
  rocks.disk_reserve_bytes = options.disk_reserve_bytes;
  rocks.on_background_error = std::move(options.on_background_error);
  rocks.env = options.env;
  auto store = OpenRocksKvStore(rocks);
  if (absl::IsNotFound(store.status())) {
    return absl::NotFoundError(absl::StrCat("no cache in ", options.path));
  }
  if (!store.ok()) return ExplainDamage(store.status(), options.path);
  directory->store_ = *std::move(store);
  const absl::Status filled = directory->Fill(options);
  if (!filled.ok()) return ExplainDamage(filled, options.path);
  return directory;
}

absl::Status CacheDirectory::Fill(const Options& options) {
  if (options.read_only) {
    SH_ASSIGN_OR_RETURN(sections_, TeacherCache::OpenReadOnly(*store_));
    SH_ASSIGN_OR_RETURN(objects_, ObjectStore::Open(*store_, /*writable=*/false));
    return absl::OkStatus();
  }
  SH_RETURN_IF_ERROR(MakeIndexIfNeeded(*store_, options.path));
  SH_ASSIGN_OR_RETURN(const std::string store_id, NewStoreId());
  SH_ASSIGN_OR_RETURN(sections_, TeacherCache::Open(*store_, store_id));
  sections_->set_segment_bytes(options.segment_bytes);
  SH_ASSIGN_OR_RETURN(objects_, ObjectStore::Open(*store_, /*writable=*/true));
  return SettleQuarantine(options.path, *this, *store_);
}

absl::Status CacheDirectory::Close() {
  objects_.reset();
  sections_.reset();
  absl::Status status;
  if (store_ != nullptr) status = store_->Close();
  store_.reset();
  lock_.reset();
  return status;
}

CacheDirectory::~CacheDirectory() { Close().IgnoreError(); }

}  // namespace stillhouse
