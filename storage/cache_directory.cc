#include "storage/cache_directory.h"

#include <sys/random.h>
#include <unistd.h>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "common/status.h"
#include "storage/choose_reads.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kLockName = "STILLHOUSE.LOCK";
constexpr absl::string_view kDatabaseName = "db";
constexpr absl::string_view kIngestSuffix = ".ingest";

absl::StatusOr<std::string> NewStoreId() {
  char bytes[8];
  if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes)) {
    return absl::InternalError("the system gives no random bytes");
  }
  return std::string(absl::BytesToHexString(absl::string_view(bytes, sizeof(bytes))));
}

absl::Status RemoveUnfinishedFiles(const std::string& folder) {
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  for (const std::string& name : names) {
    if (!absl::EndsWith(name, kIngestSuffix)) continue;
    const std::string path = JoinPath(folder, name);
    if (unlink(path.c_str()) != 0) return ErrnoStatus("removing", path);
  }
  return absl::OkStatus();
}

absl::Status ExplainHeld(const absl::Status& status, const CacheDirectory::Options& options) {
  if (status.code() != absl::StatusCode::kFailedPrecondition) return status;
  return absl::FailedPreconditionError(
      absl::StrCat("the cache ", options.path, " is held by another process; ",
                   options.read_only ? "ask its server with --server ADDRESS, or stop it first"
                                     : "stop that one first, or choose another --dir"));
}

KvReads ReadsFor(const std::string& database) {
  const KvReads reads = ChooseReads(DatabaseBytes(database), MemoryForFiles());
  return SupportsDirectReads(JoinPath(database, "CURRENT")) ? reads : KvReads::kMapped;
}

// Damage is named once, here, with what the user can do about it.
absl::Status ExplainDamage(const absl::Status& status, const std::string& path) {
  if (status.code() != absl::StatusCode::kDataLoss) return status;
  return absl::DataLossError(absl::StrCat("the cache ", path, " is damaged: ", status.message(),
                                          "; nothing was changed. `coordinatorctl cache repair` is "
                                          "not in this version: keep a copy, remove "
                                          "the folder and capture again"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<CacheDirectory>> CacheDirectory::Open(Options options) {
  const std::string database = JoinPath(options.path, kDatabaseName);
  if (options.read_only && !PathExists(JoinPath(database, "CURRENT"))) {
    return absl::NotFoundError(absl::StrCat("no cache in ", options.path));
  }
  if (!options.read_only) SH_RETURN_IF_ERROR(MakeFolders(options.path, 0700));
  auto directory = std::unique_ptr<CacheDirectory>(new CacheDirectory());
  auto lock =
      FileLock::Acquire(JoinPath(options.path, kLockName),
                        options.read_only ? FileLock::Mode::kShared : FileLock::Mode::kExclusive);
  if (!lock.ok()) return ExplainHeld(lock.status(), options);
  directory->lock_ = *std::move(lock);
  if (!options.read_only) SH_RETURN_IF_ERROR(RemoveUnfinishedFiles(options.path));

  RocksOptions rocks;
  rocks.path = database;
  rocks.ingest_folder = options.path;
  rocks.families = CacheFamilies();
  rocks.read_only = options.read_only;
  rocks.reads = options.reads.has_value() ? *options.reads : ReadsFor(database);
  rocks.disk_reserve_bytes = options.disk_reserve_bytes;
  rocks.on_background_error = std::move(options.on_background_error);
  auto store = OpenRocksKvStore(rocks);
  if (!store.ok()) return ExplainDamage(store.status(), options.path);
  directory->store_ = *std::move(store);

  absl::StatusOr<std::unique_ptr<TeacherCache>> sections;
  if (options.read_only) {
    sections = TeacherCache::OpenReadOnly(*directory->store_);
  } else {
    SH_ASSIGN_OR_RETURN(const std::string store_id, NewStoreId());
    sections = TeacherCache::Open(*directory->store_, store_id);
  }
  if (!sections.ok()) return ExplainDamage(sections.status(), options.path);
  directory->sections_ = *std::move(sections);
  directory->sections_->set_segment_bytes(options.segment_bytes);
  auto objects = ObjectStore::Open(*directory->store_, !options.read_only);
  if (!objects.ok()) return ExplainDamage(objects.status(), options.path);
  directory->objects_ = *std::move(objects);
  return directory;
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
