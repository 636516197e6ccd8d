#include "storage/rocks_internal.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <sys/stat.h>

#include <atomic>
#include <cstdio>
#include <limits>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status.h"
#include "storage/rocks_log.h"

namespace stillhouse {
namespace {

constexpr int kMemtablesMax = 3;  // per family, so that a flush does not stop writers
constexpr uint64_t kLogBytesMax = 128ull << 20;  // of all live logs: bounds the replay at open
constexpr int kFoldersMax = 1 << 20;             // numbered alike in one folder

// RocksDB's own log file aborts the process when it cannot be written, as on a full disk (7.8.3 as
// Debian builds it). What matters reaches us as a status.
class NoLog final : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

// The note of logs (kSyncedLogsName). Thread-safe.
class SyncedLogs {
 public:
  explicit SyncedLogs(rocksdb::FileSystem& files) : files_(files) {}

  rocksdb::IOStatus Add(const std::string& path) {
    MutexLock lock(mutex_);
    // The log's own name first: a note of what a power cut takes away would be taken for damage.
    const rocksdb::IOStatus status = SyncFolder(FolderOf(path));
    return status.ok() ? Change(path, /*add=*/true) : status;
  }
  rocksdb::IOStatus Remove(const std::string& path) {
    MutexLock lock(mutex_);
    return Change(path, /*add=*/false);
  }

 private:
  rocksdb::IOStatus Change(const std::string& path, bool add)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const std::string folder = FolderOf(path), note = JoinPath(folder, kSyncedLogsName);
    if (!read_) {
      const auto names = ReadSyncedLogs(folder);
      if (!names.ok()) return rocksdb::IOStatus::IOError(std::string(names.status().message()));
      names_.insert(names->begin(), names->end());
      read_ = true;
    }
    const std::string name = BaseName(path);
    const bool changed = add ? names_.insert(name).second : names_.erase(name) > 0;
    if (!changed) return rocksdb::IOStatus::OK();
    const std::string text = absl::StrJoin(names_, "\n"), fresh = note + ".new";
    rocksdb::IOStatus status = WriteStringToFile(&files_, text, fresh, /*should_sync=*/true);
    if (status.ok()) status = files_.RenameFile(fresh, note, {}, nullptr);
    return status.ok() ? SyncFolder(folder) : status;
  }
  rocksdb::IOStatus SyncFolder(const std::string& folder) {
    std::unique_ptr<rocksdb::FSDirectory> opened;
    const rocksdb::IOStatus status = files_.NewDirectory(folder, {}, &opened, nullptr);
    return status.ok() ? opened->Fsync({}, nullptr) : status;
  }

  rocksdb::FileSystem& files_;
  Mutex mutex_;
  bool read_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<std::string> names_ ABSL_GUARDED_BY(mutex_);
};

// A log that is noted when its first entries are synced, before they are acknowledged.
class NotedLog final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  NotedLog(SyncedLogs& note, std::string path, std::unique_ptr<rocksdb::FSWritableFile> file)
      : rocksdb::FSWritableFileOwnerWrapper(std::move(file)), note_(note), path_(std::move(path)) {}

  rocksdb::IOStatus Sync(const rocksdb::IOOptions& options,
                         rocksdb::IODebugContext* debug) override {
    const rocksdb::IOStatus status = target()->Sync(options, debug);
    return status.ok() ? Note(options, debug) : status;
  }
  rocksdb::IOStatus Fsync(const rocksdb::IOOptions& options,
                          rocksdb::IODebugContext* debug) override {
    const rocksdb::IOStatus status = target()->Fsync(options, debug);
    return status.ok() ? Note(options, debug) : status;
  }

 private:
  rocksdb::IOStatus Note(const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug) {
    if (noted_ || target()->GetFileSize(options, debug) == 0) return rocksdb::IOStatus::OK();
    const rocksdb::IOStatus status = note_.Add(path_);
    noted_ = status.ok();
    return status;
  }

  SyncedLogs& note_;
  const std::string path_;
  std::atomic<bool> noted_{false};  // noted twice does no harm
};

// Where RocksDB's deletions end while a database is opened.
class KeepingFiles final : public rocksdb::FileSystemWrapper {
 public:
  KeepingFiles(const std::shared_ptr<rocksdb::FileSystem>& base, std::string quarantine)
      : rocksdb::FileSystemWrapper(base), quarantine_(std::move(quarantine)), synced_logs_(*base) {}
  const char* Name() const override { return "KeepingFiles"; }

  rocksdb::IOStatus NewSequentialFile(const std::string& path, const rocksdb::FileOptions& options,
                                      std::unique_ptr<rocksdb::FSSequentialFile>* file,
                                      rocksdb::IODebugContext* debug) override {
    if (absl::EndsWith(path, ".log")) {
      MutexLock lock(mutex_);
      read_.insert(BaseName(path));
    }
    return target()->NewSequentialFile(path, options, file, debug);
  }

  rocksdb::IOStatus NewWritableFile(const std::string& path, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* debug) override {
    std::unique_ptr<rocksdb::FSWritableFile> made;
    const rocksdb::IOStatus status = target()->NewWritableFile(path, options, &made, debug);
    if (!status.ok()) return status;
    if (absl::EndsWith(path, ".log")) {
      made = std::make_unique<NotedLog>(synced_logs_, path, std::move(made));
    }
    *file = std::move(made);
    return status;
  }

  rocksdb::IOStatus DeleteFile(const std::string& path, const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* debug) override {
    if (absl::EndsWith(path, ".log")) {
      const rocksdb::IOStatus status = synced_logs_.Remove(path);
      if (!status.ok()) return status;
    }
    MutexLock lock(mutex_);
    if (!Keeps(path)) return target()->DeleteFile(path, options, debug);
    absl::Status status;
    if (folder_.empty()) {
      auto folder = MakeNumberedFolder(quarantine_, "open");
      status = folder.status();
      if (folder.ok()) folder_ = *folder;
    }
    absl::StatusOr<std::string> moved;
    if (status.ok()) status = (moved = MoveInto(path, folder_)).status();
    // Not deleted at all is safe as well: the next opening tries again.
    if (!status.ok()) return rocksdb::IOStatus::IOError(std::string(status.message()));
    kept_.push_back(*moved);
    return rocksdb::IOStatus::OK();
  }

  void Watch(bool on) {
    MutexLock lock(mutex_);
    watching_ = on;
  }
  std::vector<std::string> kept() {
    MutexLock lock(mutex_);
    return kept_;
  }

 private:
  bool Keeps(const std::string& path) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!watching_ || quarantine_.empty()) return false;
    if (absl::EndsWith(path, ".sst")) return true;
    struct stat info {};
    return absl::EndsWith(path, ".log") && !read_.contains(BaseName(path)) &&
           stat(path.c_str(), &info) == 0 && info.st_size > 0;
  }

  const std::string quarantine_;
  SyncedLogs synced_logs_;
  Mutex mutex_;
  bool watching_ ABSL_GUARDED_BY(mutex_) = true;
  std::set<std::string> read_ ABSL_GUARDED_BY(mutex_);  // names of logs
  std::string folder_ ABSL_GUARDED_BY(mutex_);          // made with the first file
  std::vector<std::string> kept_ ABSL_GUARDED_BY(mutex_);
};

class OpeningWatchImpl final : public OpeningWatch {
 public:
  OpeningWatchImpl(rocksdb::Env* base, std::string quarantine)
      : files_(std::make_shared<KeepingFiles>(base->GetFileSystem(), std::move(quarantine))),
        env_(rocksdb::NewCompositeEnv(files_)) {}
  rocksdb::Env* env() override { return env_.get(); }
  void Watch(bool on) override { files_->Watch(on); }
  std::vector<std::string> kept() override { return files_->kept(); }

 private:
  const std::shared_ptr<KeepingFiles> files_;
  const std::unique_ptr<rocksdb::Env> env_;
};

}  // namespace

rocksdb::ColumnFamilyOptions RocksFamilyOptions(const KvFamilyOptions& family, KvReads reads,
                                                const std::shared_ptr<rocksdb::Cache>& cache) {
  rocksdb::ColumnFamilyOptions options;
  options.write_buffer_size = family.memtable_bytes;
  options.max_write_buffer_number = kMemtablesMax;
  options.compression = rocksdb::kNoCompression;  // payloads are coded already
  options.bottommost_compression = rocksdb::kNoCompression;
  options.disable_auto_compactions = !family.automatic_compaction;
  if (!family.automatic_compaction) {
    options.level0_slowdown_writes_trigger = std::numeric_limits<int>::max();
    options.level0_stop_writes_trigger = std::numeric_limits<int>::max();
  }
  rocksdb::BlockBasedTableOptions table;
  table.format_version = 5;
  table.checksum = rocksdb::kXXH3;
  table.block_cache = cache;
  // Bounded memory however many files there are: by the block cache, or, for mapped files, whose
  // blocks are not cached, by the number of open ones. Those read and check their index and filter
  // once.
  table.cache_index_and_filter_blocks = reads == KvReads::kDirect;
  table.block_size = 16 << 10;
  if (family.point_lookups) table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

std::vector<rocksdb::ColumnFamilyDescriptor> RocksFamilies(
    const std::vector<KvFamilyOptions>& families, KvReads reads,
    const std::shared_ptr<rocksdb::Cache>& cache) {
  // The largest memtable decides how much disk is reserved for each log.
  rocksdb::ColumnFamilyOptions unused;
  unused.write_buffer_size = 1 << 20;
  std::vector<rocksdb::ColumnFamilyDescriptor> descriptors = {
      {rocksdb::kDefaultColumnFamilyName, unused}};
  for (const KvFamilyOptions& family : families) {
    descriptors.emplace_back(family.name, RocksFamilyOptions(family, reads, cache));
  }
  return descriptors;
}

rocksdb::DBOptions RocksDatabaseOptions(int open_files_max, KvReads reads, rocksdb::Env* env) {
  rocksdb::DBOptions db;
  if (env != nullptr) db.env = env;
  db.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  db.paranoid_checks = true;
  db.max_open_files = open_files_max;
  db.max_total_wal_size = kLogBytesMax;
  db.skip_stats_update_on_db_open = true;  // it reads every file at open
  db.allow_mmap_reads = reads == KvReads::kMapped;
  db.use_direct_reads = reads == KvReads::kDirect;
  db.max_bgerror_resume_count = 0;
  db.info_log = MakeNoLog();
  return db;
}

std::shared_ptr<rocksdb::Logger> MakeNoLog() { return std::make_shared<NoLog>(); }

std::shared_ptr<OpeningWatch> OpeningWatch::Create(rocksdb::Env* base, std::string quarantine) {
  return std::make_shared<OpeningWatchImpl>(base != nullptr ? base : rocksdb::Env::Default(),
                                            std::move(quarantine));
}

absl::StatusOr<std::string> MakeNumberedFolder(const std::string& folder,
                                               absl::string_view prefix) {
  SH_RETURN_IF_ERROR(MakeFolders(folder, 0700));
  for (int i = 1; i < kFoldersMax; ++i) {
    const std::string path = JoinPath(folder, absl::StrCat(prefix, "-", i));
    if (mkdir(path.c_str(), 0700) == 0) {
      SH_RETURN_IF_ERROR(FsyncFolder(folder));
      SH_RETURN_IF_ERROR(FsyncFolder(FolderOf(folder)));
      return path;
    }
    if (errno != EEXIST) return ErrnoStatus("making", path);
  }
  return absl::ResourceExhaustedError(absl::StrCat(folder, " holds too many folders"));
}

absl::StatusOr<std::string> MoveInto(const std::string& path, const std::string& folder) {
  std::string target = JoinPath(folder, BaseName(path));
  for (int i = 1; PathExists(target); ++i) {
    target = JoinPath(folder, absl::StrCat(i, "-", BaseName(path)));
  }
  if (rename(path.c_str(), target.c_str()) != 0) return ErrnoStatus("setting aside", path);
  SH_RETURN_IF_ERROR(FsyncFolder(folder));
  SH_RETURN_IF_ERROR(FsyncFolder(FolderOf(path)));
  return target;
}

}  // namespace stillhouse
