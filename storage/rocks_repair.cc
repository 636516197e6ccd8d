#include "storage/rocks_repair.h"

#include <fcntl.h>
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <set>

#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status.h"
#include "common/thread_pool.h"
#include "storage/rocks_internal.h"
#include "storage/rocks_log.h"
#include "storage/rocks_redo.h"
#include "storage/rocks_status.h"

namespace stillhouse {
namespace {

constexpr uint64_t kBlockCacheBytes = 16ull << 20;
constexpr char kSeedKey[] = "";  // in a family that has no table

absl::Status Link(const std::string& from, const std::string& to) {
  // The file itself, where a name is a symbolic link.
  const int made = linkat(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), AT_SYMLINK_FOLLOW);
  return made == 0 ? absl::OkStatus() : ErrnoStatus("linking", from);
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

// Is there a pipe or a device, which RocksDB would read for ever?
bool MayBlock(const std::string& folder) {
  const auto names = ListFolder(folder);
  return names.ok() && std::any_of(names->begin(), names->end(), [&](const std::string& name) {
           struct stat info {};
           return stat(JoinPath(folder, name).c_str(), &info) == 0 && !S_ISREG(info.st_mode) &&
                  !S_ISDIR(info.st_mode);
         });
}

bool IsDerived(const RocksOptions& options, absl::string_view family) {
  return std::any_of(options.families.begin(), options.families.end(),
                     [&](const auto& one) { return one.name == family && one.derived; });
}

// Of the tables of one family in level 0 those that RocksDB would refuse: they lie within another
// one's time, as the copy of a file does.
std::vector<std::string> NestedOf(std::vector<rocksdb::LiveFileMetaData> files) {
  std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) {
    if (a.largest_seqno != b.largest_seqno) return a.largest_seqno > b.largest_seqno;
    if (a.smallest_seqno != b.smallest_seqno) return a.smallest_seqno > b.smallest_seqno;
    return a.file_number > b.file_number;
  });
  std::vector<std::string> nested;
  const rocksdb::LiveFileMetaData* newer = nullptr;
  for (const auto& file : files) {
    const bool one_change = file.smallest_seqno == file.largest_seqno;
    const bool fits =
        newer == nullptr ||
        (one_change ? file.largest_seqno == 0 || file.largest_seqno < newer->largest_seqno
                    : file.smallest_seqno < newer->smallest_seqno);
    if (fits) {
      newer = &file;
    } else {
      nested.push_back(BaseName(file.name));
    }
  }
  return nested;
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
    SH_RETURN_IF_ERROR(ReadTables());
    SH_RETURN_IF_ERROR(ReadManifest());
    SH_RETURN_IF_ERROR(MakeSeeds());
    SH_RETURN_IF_ERROR(MakeManifest());
    SH_RETURN_IF_ERROR(Fill());
    return std::move(result_);
  }

 private:
  rocksdb::DBOptions DatabaseOptions() const {
    return RocksDatabaseOptions(options_.open_files_max, options_.reads, options_.env);
  }

  absl::Status ReadTables() {
    SH_ASSIGN_OR_RETURN(const std::vector<std::string> paths, ListTables(from_));
    std::vector<TableFile> tables = CheckTables(paths, threads_);
    // A derived family that was dropped and made again has another number; the youngest counts.
    for (const TableFile& table : tables) {
      if (!table.damage.ok()) continue;
      uint64_t& id = numbers_[table.family];
      id = std::max(id, table.family_id);
    }
    for (TableFile& table : tables) {
      if (table.damage.ok() && table.family_id != numbers_[table.family]) continue;
      if (!table.damage.ok()) {
        result_.damaged.push_back(std::move(table));
      } else {
        (table.ingested ? ingested_ : flushed_).push_back(std::move(table));
      }
    }
    return absl::OkStatus();
  }

  // Which tables there should be, and the families' numbers. A MANIFEST that cannot be read tells
  // neither.
  absl::Status ReadManifest() {
    const std::string no_logs = options_.path + ".nologs";
    SH_RETURN_IF_ERROR(MakeFolders(no_logs, 0700));
    rocksdb::DBOptions lenient = DatabaseOptions();
    lenient.paranoid_checks = false;
    lenient.wal_dir = no_logs;
    OpenDatabase reader;
    const bool read =
        !MayBlock(from_) && reader.Open(lenient, from_, families_, /*read_only=*/true).ok();
    result_.told_all = read;
    std::vector<rocksdb::LiveFileMetaData> files;
    if (read) reader.db->GetLiveFilesMetaData(&files);
    for (size_t i = 1; read && i < families_.size(); ++i) {
      numbers_[families_[i].name] = reader.handles[i]->GetID();
    }
    for (const auto& file : files) {
      const std::string path = JoinPath(from_, BaseName(file.name));
      for (TableFile& damaged : result_.damaged) {
        if (damaged.path == path) damaged.family = file.column_family_name;
      }
      if (PathExists(path)) continue;
      if (IsDerived(options_, file.column_family_name)) result_.told_all = false;
      TableFile table;
      table.path = path;
      table.family = file.column_family_name;
      table.damage = absl::DataLossError(
          absl::StrCat(BaseName(path), " of the family ", table.family, " is gone"));
      result_.missing.push_back(std::move(table));
    }
    for (const TableFile& table : result_.damaged) {
      // Of one whose family cannot be told it may be the derived one.
      if (table.family.empty() || IsDerived(options_, table.family)) result_.told_all = false;
    }
    return RemoveTree(no_logs);
  }

  // Logs and ingested tables name families by their numbers, which a repaired database knows from
  // flushed tables alone. For those without any a table is taken from a database where they were
  // made in the same order.
  absl::Status MakeSeeds() {
    const std::string folder = options_.path + ".seeds";
    SH_RETURN_IF_ERROR(RemoveTree(folder));
    rocksdb::DBOptions db_options = DatabaseOptions();
    db_options.create_if_missing = true;
    db_options.create_missing_column_families = true;
    OpenDatabase seeds;
    SH_RETURN_IF_ERROR(seeds.Open(db_options, folder, families_, /*read_only=*/false));
    for (size_t i = 0; i < options_.families.size(); ++i) {
      const KvFamilyOptions& family = options_.families[i];
      const bool known = std::any_of(flushed_.begin(), flushed_.end(), [&](const TableFile& table) {
        return table.family == family.name;
      });
      if (family.derived || known) continue;
      rocksdb::ColumnFamilyHandle* handle = seeds.handles[i + 1];
      SH_RETURN_IF_ERROR(
          ToAbsl(seeds.db->Put(rocksdb::WriteOptions(), handle, kSeedKey, ""), "preparing"));
      SH_RETURN_IF_ERROR(ToAbsl(seeds.db->Flush(rocksdb::FlushOptions(), handle), "preparing"));
    }
    SH_RETURN_IF_ERROR(seeds.Close());
    SH_ASSIGN_OR_RETURN(seeds_, ListTables(folder));
    return absl::OkStatus();
  }

  // Whole flushed tables, and seeds under numbers of their own.
  absl::Status LinkTables() {
    SH_RETURN_IF_ERROR(RemoveTree(options_.path));
    SH_RETURN_IF_ERROR(MakeFolders(options_.path, 0700));
    for (const TableFile& table : flushed_) {
      SH_RETURN_IF_ERROR(Link(table.path, JoinPath(options_.path, BaseName(table.path))));
    }
    uint64_t number = 1;
    for (const std::string& seed : seeds_) {
      std::string target;
      do {
        target = JoinPath(options_.path, absl::StrFormat("%06d.sst", number++));
      } while (PathExists(target));
      SH_RETURN_IF_ERROR(Link(seed, target));
    }
    return absl::OkStatus();
  }

  absl::Status MakeManifest() {
    SH_RETURN_IF_ERROR(LinkTables());
    absl::Status made = RepairIn(options_.path);
    if (absl::IsDataLoss(made)) {
      // Flushed tables come to lie in level 0, where one must be older than the other.
      SH_RETURN_IF_ERROR(LeaveOutNested());
      SH_RETURN_IF_ERROR(LinkTables());
      made = RepairIn(options_.path);
    }
    result_.tables += flushed_.size();
    SH_RETURN_IF_ERROR(RemoveTree(options_.path + ".seeds"));
    return made;
  }

  absl::Status RepairIn(const std::string& folder) const {
    return ToAbsl(rocksdb::RepairDB(folder, DatabaseOptions(), families_), "making a new MANIFEST");
  }

  absl::Status LeaveOutNested() {
    std::map<std::string, std::vector<rocksdb::LiveFileMetaData>> by_family;
    for (const TableFile& table : flushed_) {
      SH_ASSIGN_OR_RETURN(auto alone, LookAtAlone(table));
      by_family[table.family].push_back(std::move(alone));
    }
    std::set<std::string> nested;
    for (const auto& [family, files] : by_family) {
      const std::vector<std::string> names = NestedOf(files);
      nested.insert(names.begin(), names.end());
    }
    const auto apart = std::stable_partition(
        flushed_.begin(), flushed_.end(),
        [&](const TableFile& table) { return !nested.contains(BaseName(table.path)); });
    std::move(apart, flushed_.end(), std::back_inserter(result_.apart));
    flushed_.erase(apart, flushed_.end());
    return absl::OkStatus();
  }

  // When the changes in a table were made: RocksDB reads that from the table.
  absl::StatusOr<rocksdb::LiveFileMetaData> LookAtAlone(const TableFile& table) const {
    const std::string folder = options_.path + ".one";
    SH_RETURN_IF_ERROR(RemoveTree(folder));
    SH_RETURN_IF_ERROR(MakeFolders(folder, 0700));
    SH_RETURN_IF_ERROR(Link(table.path, JoinPath(folder, BaseName(table.path))));
    SH_RETURN_IF_ERROR(RepairIn(folder));
    std::vector<rocksdb::ColumnFamilyDescriptor> its = {families_[0]};
    for (const auto& family : families_) {
      if (family.name == table.family) its.push_back(family);
    }
    std::vector<rocksdb::LiveFileMetaData> files;
    {
      OpenDatabase reader;
      SH_RETURN_IF_ERROR(reader.Open(DatabaseOptions(), folder, its, /*read_only=*/true));
      reader.db->GetLiveFilesMetaData(&files);
    }
    SH_RETURN_IF_ERROR(RemoveTree(folder));
    if (files.empty()) return absl::DataLossError(absl::StrCat(table.path, " holds nothing"));
    return files[0];
  }

  // Takes in the ingested files, then what the logs hold.
  absl::Status Fill() {
    rocksdb::DBOptions db_options = DatabaseOptions();
    db_options.create_missing_column_families = true;
    OpenDatabase made;
    SH_RETURN_IF_ERROR(made.Open(db_options, options_.path, families_, /*read_only=*/false));
    std::map<std::string, uint64_t> reach;  // of a family's tables: their last change
    std::vector<rocksdb::LiveFileMetaData> files;
    made.db->GetLiveFilesMetaData(&files);
    for (const auto& file : files) {
      uint64_t& last = reach[file.column_family_name];
      last = std::max<uint64_t>(last, file.largest_seqno);
    }
    for (size_t i = 1; i < made.handles.size(); ++i) {
      SH_RETURN_IF_ERROR(
          ToAbsl(made.db->Delete(rocksdb::WriteOptions(), made.handles[i], kSeedKey), "repairing"));
    }
    for (TableFile& table : ingested_) SH_RETURN_IF_ERROR(Ingest(std::move(table), &made));
    SH_ASSIGN_OR_RETURN(const std::vector<LogContent> logs, ReadLogs());
    std::vector<RedoFamily> families;
    for (size_t i = 0; i < options_.families.size(); ++i) {
      const KvFamilyOptions& family = options_.families[i];
      const auto number = numbers_.find(family.name);
      // Where nothing tells a number, it is that of a database that was made in one go.
      const uint64_t by_order = family.derived ? 0 : i + 1;
      families.push_back(
          {.handle = made.handles[i + 1],
           .number = static_cast<uint32_t>(number != numbers_.end() ? number->second : by_order),
           .derived = family.derived,
           .tables_reach = reach[family.name]});
    }
    SH_RETURN_IF_ERROR(RedoLogs(*made.db, std::move(families), logs));
    SH_RETURN_IF_ERROR(ToAbsl(made.db->Flush(rocksdb::FlushOptions(), made.handles), "repairing"));
    return made.Close();
  }

  absl::StatusOr<std::vector<LogContent>> ReadLogs() {
    const auto noted = ReadSyncedLogs(from_);
    if (noted.ok()) {
      SH_ASSIGN_OR_RETURN(result_.missing_logs, MissingLogs(from_));
    } else {
      result_.in_log.emplace_back(noted.status().message());
    }
    const std::vector<std::string> synced = noted.value_or(std::vector<std::string>());
    SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListLogs(from_));
    std::vector<LogContent> logs;
    for (const std::string& name : names) {
      SH_ASSIGN_OR_RETURN(LogContent log, ReadLog(JoinPath(from_, name)));
      logs.push_back(std::move(log));
    }
    SortLogs(&logs);
    for (size_t i = 0; i < logs.size(); ++i) {
      const std::vector<std::string> lines = DescribeDamage(logs[i]);
      result_.in_log.insert(result_.in_log.end(), lines.begin(), lines.end());
      result_.log_rest += logs[i].rest;
      if (logs[i].tail.empty() || !SyncedWhole(logs[i].name, synced)) continue;
      result_.in_log.push_back(absl::StrCat("log ", logs[i].name, ": its end is cut off"));
      result_.log_rest += logs[i].tail;
    }
    if (!result_.in_log.empty() || !result_.missing_logs.empty()) result_.told_all = false;
    return logs;
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
  std::map<std::string, uint64_t> numbers_;    // of families
  std::vector<TableFile> flushed_, ingested_;  // by number
  std::vector<std::string> seeds_;
  RocksRepair result_;
};

// As an opening would refuse damage in the logs.
absl::Status CheckLogs(const RocksOptions& options) {
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> logs, ListLogs(options.path));
  for (const std::string& name : logs) {
    SH_ASSIGN_OR_RETURN(const LogContent log, ReadLog(JoinPath(options.path, name)));
    if (!log.damage.empty()) return absl::DataLossError(DescribeDamage(log)[0]);
  }
  return absl::OkStatus();
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
