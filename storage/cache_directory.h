// CacheDirectory: a cache on disk, held by one process for writing or by several for reading.
//
//   <dir>/STILLHOUSE.LOCK   flock: exclusive for a server, shared for readers
//   <dir>/db/               the database
//   <dir>/*.ingest          files being prepared; removed when the cache is opened for writing
//   <dir>/quarantine/       files that were taken out of service (cache_quarantine.h,
//   cache_repair.h)
//
// Opening for writing finishes an interrupted repair, keeps files that the database does not name,
// checks the family `index` and makes it anew if a file of it is damaged.
//
// Threads and durability: see TeacherCache and ObjectStore, which it owns.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/file.h"
#include "storage/object_store.h"
#include "storage/teacher_cache.h"

namespace stillhouse {

class CacheDirectory {
 public:
  struct Options {
    std::string path;
    bool read_only = false;
    uint64_t disk_reserve_bytes = RocksOptions().disk_reserve_bytes;
    // None: mapped if the database fits into memory now or its file system knows no direct reads,
    // else direct (storage/choose_reads.h).
    std::optional<KvReads> reads;
    std::function<void(absl::Status)> on_background_error;  // as RocksOptions
    uint64_t segment_bytes = kSegmentBytesMin;              // TeacherCache::set_segment_bytes
    rocksdb::Env* env = nullptr;                            // as RocksOptions
  };
  // FailedPrecondition if another process holds the directory in a way that excludes this one;
  // NotFound if there is nothing to read; DataLoss if the database is damaged.
  static absl::StatusOr<std::unique_ptr<CacheDirectory>> Open(Options options);
  ~CacheDirectory();

  TeacherCache& sections() { return *sections_; }
  ObjectStore& objects() { return *objects_; }
  // Flushes, so that the next opening replays no log. REQUIRES: nothing follows.
  absl::Status Close();

 private:
  CacheDirectory() = default;
  absl::Status Fill(const Options& options);

  // Destroyed from the last to the first: the lock goes when the database is closed.
  std::unique_ptr<FileLock> lock_;
  std::unique_ptr<KvStore> store_;
  std::unique_ptr<TeacherCache> sections_;
  std::unique_ptr<ObjectStore> objects_;
};

// OK if `inside`, a path in the cache directory `path`, is there; NotFound, saying that there is no
// cache, or PermissionDenied.
absl::Status CheckIsThere(const std::string& inside, const std::string& path);
// The lock of a cache directory, for one process alone or beside others that read.
// FailedPrecondition says who holds it.
absl::StatusOr<std::unique_ptr<FileLock>> LockCache(const std::string& path, bool alone);
// The database of a cache in `path`, without quarantine.
RocksOptions CacheRocksOptions(const std::string& path);
absl::StatusOr<std::string> NewStoreId();

}  // namespace stillhouse
