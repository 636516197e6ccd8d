#include "storage/rocks_repair.h"

#include <fcntl.h>
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/thread_pool.h"
#include "storage/rocks_internal.h"
#include "storage/rocks_status.h"

namespace stillhouse {
namespace {

constexpr uint64_t kBlockCacheBytes = 16ull << 20;
constexpr int kLogLineBytesMax = 1024;
constexpr size_t kLogLinesMax = 1000;  // of damage, that a report names
constexpr char kSeedKey[] = "";        // in a family that no table has told of yet

// Keeps the lines in which RocksDB tells what it leaves out of a log.
class DroppedLines final : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    char line[kLogLineBytesMax];
    std::vsnprintf(line, sizeof(line), format, arguments);
    if (!absl::StrContains(line, "dropping")) return;
    MutexLock lock(mutex_);
    if (lines_.size() < kLogLinesMax) lines_.emplace_back(line);
  }
  std::vector<std::string> lines() {
    MutexLock lock(mutex_);
    return lines_;
  }

 private:
  Mutex mutex_;
  std::vector<std::string> lines_ ABSL_GUARDED_BY(mutex_);
};

absl::Status Link(const std::string& from, const std::string& to) {
  // The file itself, where a name is a symbolic link.
  const int made = linkat(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), AT_SYMLINK_FOLLOW);
  return made == 0 ? absl::OkStatus() : ErrnoStatus("linking", from);
}

std::string TableName(uint64_t number) { return absl::StrFormat("%06d.sst", number); }

absl::StatusOr<std::vector<std::string>> ListLogs(const std::string& folder) {
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  std::vector<std::string> logs;
  for (const std::string& name : names) {
    struct stat info {};
    const bool file = stat(JoinPath(folder, name).c_str(), &info) == 0 && S_ISREG(info.st_mode);
    if (file && absl::EndsWith(name, ".log")) logs.push_back(name);
  }
  return logs;
}

// An open database and its handles.
struct OpenDatabase {
  std::unique_ptr<rocksdb::DB> db;
  std::vector<rocksdb::ColumnFamilyHandle*> handles;  // "default", then the families

  absl::Status Open(const rocksdb::DBOptions& options, const std::string& path,
                    const std::vector<rocksdb::ColumnFamilyDescriptor>& families, bool read_only) {
    rocksdb::DB* opened = nullptr;
    const rocksdb::Status status =
        read_only ? rocksdb::DB::OpenForReadOnly(options, path, families, &handles, &opened)
                  : rocksdb::DB::Open(options, path, families, &handles, &opened);
    db.reset(opened);
    return ToAbsl(status, absl::StrCat("opening ", path));
  }
  absl::Status Close() {
    if (db == nullptr) return absl::OkStatus();
    for (rocksdb::ColumnFamilyHandle* handle : handles) {
      if (handle != nullptr) db->DestroyColumnFamilyHandle(handle).PermitUncheckedError();
    }
    const absl::Status status = ToAbsl(db->Close(), "closing");
    db.reset();
    return status;
  }
  ~OpenDatabase() { Close().IgnoreError(); }
};

std::vector<TableFile> CheckTables(const std::vector<std::string>& paths, int threads) {
  std::vector<TableFile> tables(paths.size());
  ThreadPool pool(threads);
  for (size_t i = 0; i < paths.size(); ++i) {
    pool.Post([&tables, &paths, i] { tables[i] = CheckTable(paths[i]); });
  }
  return tables;  // the pool finishes first
}

class Rebuilder {
 public:
  Rebuilder(const std::string& from, const RocksOptions& options, int threads)
      : from_(from),
        options_(options),
        threads_(threads),
        families_(RocksFamilies(options.families, options.reads,
                                rocksdb::NewLRUCache(kBlockCacheBytes))) {}

  absl::StatusOr<RocksRepair> Run() {
    SH_RETURN_IF_ERROR(MakeFolders(options_.path, 0700));
    SH_RETURN_IF_ERROR(LinkTables());
    SH_RETURN_IF_ERROR(LinkSeeds());
    SH_RETURN_IF_ERROR(ToAbsl(rocksdb::RepairDB(options_.path, DatabaseOptions(), families_),
                              "making a new MANIFEST"));
    SH_ASSIGN_OR_RETURN(const std::vector<std::string> logs, ListLogs(from_));
    for (const std::string& name : logs) {
      SH_RETURN_IF_ERROR(Link(JoinPath(from_, name), JoinPath(options_.path, name)));
    }
    SH_RETURN_IF_ERROR(Fill(logs));
    return std::move(result_);
  }

 private:
  rocksdb::DBOptions DatabaseOptions() const {
    return RocksDatabaseOptions(options_.open_files_max, options_.reads, options_.env);
  }

  absl::Status LinkTables() {
    SH_ASSIGN_OR_RETURN(const std::vector<std::string> paths, ListTables(from_));
    std::vector<TableFile> tables = CheckTables(paths, threads_);
    // A derived family that was dropped and made again has another number; the youngest counts.
    std::map<std::string, uint64_t> youngest;
    for (const TableFile& table : tables) {
      if (!table.damage.ok()) continue;
      uint64_t& id = youngest[table.family];
      id = std::max(id, table.family_id);
    }
    for (TableFile& table : tables) {
      if (table.damage.ok() && table.family_id != youngest[table.family]) continue;
      if (!table.damage.ok()) {
        result_.damaged.push_back(std::move(table));
      } else if (table.ingested) {
        ingested_.push_back(std::move(table));
      } else {
        known_.insert(table.family);
        ++result_.tables;
        SH_RETURN_IF_ERROR(Link(table.path, JoinPath(options_.path, BaseName(table.path))));
      }
    }
    return absl::OkStatus();
  }

  // A log names families by their numbers, which a repaired database knows from tables alone. For
  // those without any a table is taken from a database where they were made in the same order.
  absl::Status LinkSeeds() {
    const std::string folder = options_.path + ".seeds";
    SH_RETURN_IF_ERROR(RemoveTree(folder));
    rocksdb::DBOptions db_options = DatabaseOptions();
    db_options.create_if_missing = true;
    db_options.create_missing_column_families = true;
    OpenDatabase seeds;
    SH_RETURN_IF_ERROR(seeds.Open(db_options, folder, families_, /*read_only=*/false));
    for (size_t i = 0; i < options_.families.size(); ++i) {
      if (options_.families[i].derived || known_.contains(options_.families[i].name)) continue;
      rocksdb::ColumnFamilyHandle* handle = seeds.handles[i + 1];
      SH_RETURN_IF_ERROR(
          ToAbsl(seeds.db->Put(rocksdb::WriteOptions(), handle, kSeedKey, ""), "preparing"));
      SH_RETURN_IF_ERROR(ToAbsl(seeds.db->Flush(rocksdb::FlushOptions(), handle), "preparing"));
    }
    SH_RETURN_IF_ERROR(seeds.Close());
    SH_ASSIGN_OR_RETURN(const std::vector<std::string> tables, ListTables(folder));
    uint64_t number = 1;
    for (const std::string& table : tables) {
      while (PathExists(JoinPath(options_.path, TableName(number)))) ++number;
      SH_RETURN_IF_ERROR(Link(table, JoinPath(options_.path, TableName(number))));
    }
    return RemoveTree(folder);
  }

  // Replays the logs, then takes in the ingested files.
  absl::Status Fill(const std::vector<std::string>& logs) {
    rocksdb::DBOptions db_options = DatabaseOptions();
    db_options.wal_recovery_mode = rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
    db_options.create_missing_column_families = true;
    const auto dropped = std::make_shared<DroppedLines>();
    db_options.info_log = dropped;
    OpenDatabase made;
    SH_RETURN_IF_ERROR(made.Open(db_options, options_.path, families_, /*read_only=*/false));
    for (const std::string& line : dropped->lines()) {
      const size_t begin = line.find(options_.path);
      const std::string what = begin == std::string::npos ? line : line.substr(begin);
      for (const std::string& log : logs) {
        if (absl::StrContains(what, log)) result_.damaged_logs.push_back(log);
      }
      result_.in_log.push_back(absl::StrCat("log ", BaseName(what)));
    }
    for (size_t i = 1; i < made.handles.size(); ++i) {
      SH_RETURN_IF_ERROR(
          ToAbsl(made.db->Delete(rocksdb::WriteOptions(), made.handles[i], kSeedKey), "repairing"));
    }
    for (TableFile& table : ingested_) SH_RETURN_IF_ERROR(Ingest(std::move(table), &made));
    SH_RETURN_IF_ERROR(ToAbsl(made.db->Flush(rocksdb::FlushOptions(), made.handles), "repairing"));
    return made.Close();
  }

  absl::Status Ingest(TableFile table, OpenDatabase* made) {
    rocksdb::ColumnFamilyHandle* handle = nullptr;
    for (size_t i = 0; i < options_.families.size(); ++i) {
      if (options_.families[i].name == table.family) handle = made->handles[i + 1];
    }
    if (handle == nullptr || table.entries == 0) return absl::OkStatus();
    {
      const std::unique_ptr<rocksdb::Iterator> it(
          made->db->NewIterator(rocksdb::ReadOptions(), handle));
      it->Seek(table.first_key);
      SH_RETURN_IF_ERROR(ToAbsl(it->status(), "repairing"));
      if (it->Valid() && it->key().compare(table.last_key) <= 0) {
        result_.apart.push_back(std::move(table));
        return absl::OkStatus();
      }
    }
    const std::string path = JoinPath(options_.path, "table.ingest");
    SH_RETURN_IF_ERROR(RemoveTree(path));
    SH_RETURN_IF_ERROR(Link(table.path, path));
    rocksdb::IngestExternalFileOptions ingest;
    ingest.move_files = true;
    ingest.write_global_seqno = false;
    ++result_.tables;
    return ToAbsl(made->db->IngestExternalFile(handle, {path}, ingest),
                  absl::StrCat("taking in ", table.path));
  }

  const std::string from_;
  const RocksOptions options_;
  const int threads_;
  const std::vector<rocksdb::ColumnFamilyDescriptor> families_;
  std::set<std::string> known_;      // families with a table in the new database
  std::vector<TableFile> ingested_;  // by number
  RocksRepair result_;
};

// Would the logs of a database replay? Into a new one, which is removed again.
absl::Status CheckLogs(const RocksOptions& options) {
  const std::string folder = options.path + ".logs";
  SH_RETURN_IF_ERROR(RemoveTree(folder));
  SH_RETURN_IF_ERROR(MakeFolders(folder, 0700));
  rocksdb::DBOptions db_options =
      RocksDatabaseOptions(options.open_files_max, options.reads, options.env);
  db_options.create_if_missing = true;
  const std::vector<rocksdb::ColumnFamilyDescriptor> only_default = {
      {rocksdb::kDefaultColumnFamilyName, rocksdb::ColumnFamilyOptions()}};
  SH_RETURN_IF_ERROR(OpenDatabase().Open(db_options, folder, only_default, /*read_only=*/false));
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> logs, ListLogs(options.path));
  for (const std::string& name : logs) {
    const std::string target = JoinPath(folder, name);
    SH_RETURN_IF_ERROR(RemoveTree(target));
    SH_RETURN_IF_ERROR(Link(JoinPath(options.path, name), target));
  }
  const absl::Status status =
      OpenDatabase().Open(db_options, folder, only_default, /*read_only=*/false);
  SH_RETURN_IF_ERROR(RemoveTree(folder));
  return status;
}

}  // namespace

absl::StatusOr<RocksRepair> RebuildRocks(const std::string& from, const RocksOptions& options,
                                         int threads) {
  return Rebuilder(from, options, threads).Run();
}

absl::StatusOr<bool> EmptyUnreadableFamilies(const RocksOptions& options, rocksdb::Env* env) {
  rocksdb::DBOptions lenient = RocksDatabaseOptions(options.open_files_max, options.reads, env);
  lenient.paranoid_checks = false;
  const auto families =
      RocksFamilies(options.families, options.reads, rocksdb::NewLRUCache(kBlockCacheBytes));
  std::vector<size_t> unreadable;
  {
    OpenDatabase reader;
    if (!reader.Open(lenient, options.path, families, /*read_only=*/true).ok()) return false;
    for (size_t i = 0; i < options.families.size(); ++i) {
      if (!options.families[i].derived) continue;
      rocksdb::ColumnFamilyMetaData all;
      reader.db->GetColumnFamilyMetaData(reader.handles[i + 1], &all);
      bool whole = true;
      for (const auto& level : all.levels) {
        for (const auto& file : level.files) {
          whole = whole && CheckTable(JoinPath(options.path, BaseName(file.name))).damage.ok();
        }
      }
      if (!whole) unreadable.push_back(i);
    }
  }
  if (unreadable.empty()) return false;
  // A lenient opening would also pass over damage in the log.
  SH_RETURN_IF_ERROR(CheckLogs(options));
  OpenDatabase database;
  SH_RETURN_IF_ERROR(database.Open(lenient, options.path, families, /*read_only=*/false));
  for (const size_t i : unreadable) {
    rocksdb::ColumnFamilyHandle*& handle = database.handles[i + 1];
    SH_RETURN_IF_ERROR(ToAbsl(database.db->DropColumnFamily(handle), "dropping a family"));
    SH_RETURN_IF_ERROR(ToAbsl(database.db->DestroyColumnFamilyHandle(handle), "dropping a family"));
    handle = nullptr;
  }
  SH_RETURN_IF_ERROR(database.Close());
  return true;
}

}  // namespace stillhouse
