// What the files over RocksDB share: its options as we set them, and the watch
// over what it deletes while a database is opened. For .cc files of this folder that include
// RocksDB.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "storage/kv_store.h"

namespace rocksdb {
class Cache;
class Env;
class Logger;
struct ColumnFamilyDescriptor;
struct ColumnFamilyOptions;
struct DBOptions;
}  // namespace rocksdb

namespace stillhouse {

// Block sizes, checksums, filters and compaction of one family.
rocksdb::ColumnFamilyOptions RocksFamilyOptions(const KvFamilyOptions& family, KvReads reads,
                                                const std::shared_ptr<rocksdb::Cache>& cache);
// RocksDB's own "default", which stays empty, then `families`.
std::vector<rocksdb::ColumnFamilyDescriptor> RocksFamilies(
    const std::vector<KvFamilyOptions>& families, KvReads reads,
    const std::shared_ptr<rocksdb::Cache>& cache);
// Strict: damage is an error, no error is recovered from in the background.
rocksdb::DBOptions RocksDatabaseOptions(int open_files_max, KvReads reads, rocksdb::Env* env);
std::shared_ptr<rocksdb::Logger> MakeNoLog();  // takes no lines

// A file system that keeps what RocksDB would delete. While it watches, deleting a table, or a log
// that was not read through it, moves the file into a new folder <quarantine>/open-<n>/ instead.
// Without a quarantine nothing is kept. It also notes which logs hold synced entries
// (kSyncedLogsName).
//
// Owner: a store, which it must outlive. Thread-safe. Durability: a move is synced before the
// deletion is said to be done.
class OpeningWatch {
 public:
  // `base` null: the machine's own file system.
  static std::shared_ptr<OpeningWatch> Create(rocksdb::Env* base, std::string quarantine);
  virtual ~OpeningWatch() = default;
  virtual rocksdb::Env* env() = 0;
  virtual void Watch(bool on) = 0;  // on from the start
  virtual std::vector<std::string> kept() = 0;
};

// After an opening that failed: drops the derived families that have a file which cannot be read,
// so that the next opening finds them empty, and says whether there were any. Refuses as an opening
// would if the log is damaged.
absl::StatusOr<bool> EmptyUnreadableFamilies(const RocksOptions& options, rocksdb::Env* env);

// The first of <folder>/<prefix>-1, -2, … that does not exist, made with its parents.
absl::StatusOr<std::string> MakeNumberedFolder(const std::string& folder, absl::string_view prefix);
// Renames, and syncs both folders. To the same name in `folder`, or with a number behind it.
absl::StatusOr<std::string> MoveInto(const std::string& path, const std::string& folder);

}  // namespace stillhouse
