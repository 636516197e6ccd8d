#include "storage/cache_repair.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "common/byte_io.h"
#include "common/file.h"
#include "common/status.h"
#include "storage/cache_directory.h"
#include "storage/cache_quarantine.h"
#include "storage/cache_salvage.h"
#include "storage/index_builder.h"
#include "storage/rocks_internal.h"
#include "storage/rocks_repair.h"

namespace stillhouse {
namespace {

constexpr char kDatabase[] = "db";
constexpr char kRepairing[] = "repairing";
constexpr char kRepaired[] = "repaired";
constexpr char kAside[] = "aside";
constexpr char kBadRecords[] = "records.sst";
constexpr char kLogRest[] = "log.rest";
// After damage the incarnations that were given out last may be forgotten: none is given out twice.
constexpr uint64_t kIncarnationsSkipped = 1 << 20;

absl::Status Rename(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0) return ErrnoStatus("renaming", from);
  SH_RETURN_IF_ERROR(FsyncFolder(FolderOf(to)));
  return FsyncFolder(FolderOf(from));
}

using FileId = std::pair<dev_t, ino_t>;

absl::StatusOr<std::set<FileId>> FilesIn(const std::string& folder) {
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  std::set<FileId> files;
  for (const std::string& name : names) {
    struct stat info {};
    if (stat(JoinPath(folder, name).c_str(), &info) == 0) files.insert({info.st_dev, info.st_ino});
  }
  return files;
}

// Removes from the folder of the old database the links to what the new one holds.
absl::Status DropLinks(const std::string& old, const std::string& database) {
  if (!PathExists(old)) return absl::OkStatus();
  SH_ASSIGN_OR_RETURN(const auto served, FilesIn(database));
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(old));
  for (const std::string& name : names) {
    const std::string path = JoinPath(old, name);
    struct stat info {};
    if (stat(path.c_str(), &info) != 0 || !served.contains({info.st_dev, info.st_ino})) continue;
    if (unlink(path.c_str()) != 0) return ErrnoStatus("removing", path);
  }
  return absl::OkStatus();
}

}  // namespace

bool NeedsFinishing(const std::string& path) { return PathExists(JoinPath(path, kRepaired)); }

absl::StatusOr<std::string> FinishRepair(const std::string& path) {
  SH_RETURN_IF_ERROR(RemoveTree(JoinPath(path, kRepairing)));
  const std::string repaired = JoinPath(path, kRepaired);
  if (!PathExists(repaired)) return std::string();
  const std::string database = JoinPath(path, kDatabase);
  const std::string aside = JoinPath(repaired, kAside);
  const std::string old = JoinPath(aside, kDatabase);
  const std::string made = JoinPath(repaired, kDatabase);
  if (PathExists(made)) {
    if (PathExists(database) && !PathExists(old)) SH_RETURN_IF_ERROR(Rename(database, old));
    SH_RETURN_IF_ERROR(Rename(made, database));
  }
  SH_RETURN_IF_ERROR(DropLinks(old, database));
  std::string folder;
  if (PathExists(aside)) {
    SH_ASSIGN_OR_RETURN(folder, MakeNumberedFolder(JoinPath(path, kQuarantineName), "repair"));
    SH_RETURN_IF_ERROR(Rename(aside, folder));  // over the empty one
  }
  SH_RETURN_IF_ERROR(RemoveTree(repaired));
  return folder;
}

namespace {

class Repair {
 public:
  explicit Repair(const CacheRepairOptions& options)
      : options_(options),
        scratch_(JoinPath(options.path, kRepairing)),
        aside_(JoinPath(scratch_, kAside)) {}

  absl::StatusOr<CacheRepairReport> Run() {
    SH_RETURN_IF_ERROR(FinishRepair(options_.path).status());
    const std::string database = JoinPath(options_.path, kDatabase);
    SH_RETURN_IF_ERROR(MakeFolders(database, 0700));
    SH_RETURN_IF_ERROR(MakeFolders(aside_, 0700));
    SH_RETURN_IF_ERROR(Build(database));
    Step("built");
    if (!report_.changed || options_.dry_run) {
      SH_RETURN_IF_ERROR(RemoveTree(scratch_));
      return report_;
    }
    for (const std::string& folder : {JoinPath(scratch_, kDatabase), aside_, scratch_}) {
      SH_RETURN_IF_ERROR(FsyncFolder(folder));
    }
    SH_RETURN_IF_ERROR(Rename(scratch_, JoinPath(options_.path, kRepaired)));
    Step("renamed");
    SH_ASSIGN_OR_RETURN(report_.quarantine, FinishRepair(options_.path));
    Step("finished");
    return report_;
  }

 private:
  void Step(const char* step) {
    if (options_.on_step) options_.on_step(step);
  }
  void Progress(const std::string& what) {
    if (options_.on_progress) options_.on_progress(what);
  }
  void Gone(const std::string& line) {
    if (options_.on_gone) options_.on_gone(line);
  }

  absl::Status Build(const std::string& database) {
    Progress("reading the files of the database");
    RocksOptions rocks = CacheRocksOptions(scratch_);
    const absl::Status opens = OpenStrictly(database);
    // What may not be read is not damaged.
    if (absl::IsPermissionDenied(opens)) return opens;
    SH_ASSIGN_OR_RETURN(const RocksRepair files, RebuildRocks(database, rocks, options_.threads));
    Step("linked");
    Note(files, opens);
    SH_ASSIGN_OR_RETURN(const auto store, OpenRocksKvStore(rocks));
    SH_RETURN_IF_ERROR(Mend(*store, files));
    return store->Close();
  }

  static absl::Status OpenStrictly(const std::string& database) {
    RocksOptions rocks = CacheRocksOptions(FolderOf(database));
    rocks.read_only = true;
    return OpenRocksKvStore(rocks).status();
  }

  void Note(const RocksRepair& files, const absl::Status& opens) {
    report_.changed = !opens.ok() || !files.damaged.empty() || !files.in_log.empty();
    const auto objects = [](const TableFile& table) { return table.family == kObjectsFamily; };
    report_.objects_gone = std::any_of(files.damaged.begin(), files.damaged.end(), objects) ||
                           std::any_of(files.missing.begin(), files.missing.end(), objects);
    report_.gone_at_least = !files.told_all || report_.objects_gone;
    if (!opens.ok()) report_.damaged_files.push_back(std::string(opens.message()));
    for (const auto* tables : {&files.damaged, &files.missing}) {
      for (const TableFile& table : *tables) {
        report_.damaged_files.push_back(std::string(table.damage.message()));
      }
    }
    for (const std::string& log : files.missing_logs) {
      report_.damaged_files.push_back(absl::StrCat("log ", log, " is gone or empty"));
    }
    for (const std::string& line : files.in_log) report_.damaged_files.push_back(line);
  }

  absl::Status Mend(KvStore& store, const RocksRepair& files) {
    CacheSalvage salvage(store);
    if (!files.told_all) salvage.CountHeads();
    SH_RETURN_IF_ERROR(DeleteFreedSegments(store));
    std::vector<PutItem> moved;
    SH_RETURN_IF_ERROR(MendIndex(store, &salvage, &moved));
    Step("indexed");
    SH_ASSIGN_OR_RETURN(const std::vector<SalvageSource> sources, Sources(files));
    Progress("looking for what is whole in damaged files and in quarantine");
    SH_ASSIGN_OR_RETURN(const CacheSalvage::Objects objects, salvage.MendObjects(sources));
    SH_ASSIGN_OR_RETURN(const std::string store_id, StoreIdIn(sources));
    SH_ASSIGN_OR_RETURN(const auto sections, TeacherCache::Open(store, store_id));
    SH_RETURN_IF_ERROR(SkipIncarnations(store, sections->identity().incarnation));
    for (const SalvageSource& source : sources) {
      SH_ASSIGN_OR_RETURN(const uint64_t taken, salvage.TakeParts(source, *sections));
      report_.taken_back += taken;
    }
    SH_ASSIGN_OR_RETURN(const uint64_t put, salvage.TakeItems(std::move(moved), *sections));
    report_.taken_back += put + objects.taken_back;
    SH_RETURN_IF_ERROR(NameGone(store, *sections, &salvage));
    SH_ASSIGN_OR_RETURN(report_.gone,
                        salvage.ListGone(*sections, [this](const auto& line) { Gone(line); }));
    for (const std::string& name : objects.gone) Gone(absl::StrCat("object: ", name));
    report_.gone += objects.gone.size();
    if (report_.taken_back + report_.gone > 0) report_.changed = true;
    return absl::OkStatus();
  }

  // Their records were moved or removed, but may still lie in an ingested file.
  static absl::Status DeleteFreedSegments(KvStore& store) {
    SH_ASSIGN_OR_RETURN(const std::vector<uint64_t> freed, ReadFreedSegments(store));
    KvBatch batch;
    for (const uint64_t segment : freed) {
      batch.DeleteRange(kCacheData, PlaceKey({segment, 0}), PlaceKey({segment + 1, 0}));
    }
    return store.Write(batch, KvStore::Sync::kNoSync);
  }

  // Where neither a record nor its origin tells of a part, its job may.
  absl::Status NameGone(KvStore& store, TeacherCache& sections, CacheSalvage* salvage) const {
    if (!options_.name_sections) return absl::OkStatus();
    SH_ASSIGN_OR_RETURN(const std::set<Digest> unknown, salvage->NotDescribed(sections));
    if (unknown.empty()) return absl::OkStatus();
    SH_ASSIGN_OR_RETURN(const auto objects, ObjectStore::Open(store, /*writable=*/false));
    salvage->Name(options_.name_sections(*objects, unknown));
    return absl::OkStatus();
  }

  // Brings index and totals in line with the records; what does not hold goes to a table of its
  // own.
  absl::Status MendIndex(KvStore& store, CacheSalvage* salvage, std::vector<PutItem>* moved) {
    TableWriter damaged(JoinPath(aside_, kBadRecords));
    IndexBuildOptions build;
    build.thorough = true;
    build.on_damaged = [&](const KvEntry& record, const absl::Status&) {
      salvage->Describe(record.value, record.key);
      return damaged.Add(record.key, record.value);
    };
    build.on_moved = [&](PutItem item) {
      moved->push_back(std::move(item));
      return absl::OkStatus();
    };
    build.on_gone = [&](const PartKey& key, const IndexEntry& entry) {
      salvage->Miss(key, entry);
      return absl::OkStatus();
    };
    build.on_progress = [&](uint64_t records) { Progress(absl::StrCat(records, " records read")); };
    SH_ASSIGN_OR_RETURN(const IndexBuilt built, BuildIndex(store, build));
    KvBatch batch;
    DamageList::ReleaseAll(&batch);
    batch.Delete(kCacheMeta, std::string(kIndexBuildingKey));
    SH_RETURN_IF_ERROR(store.Write(batch, KvStore::Sync::kNoSync));
    salvage->Know(built.origins);
    report_.records = built.records - built.damaged;
    report_.indexed = built.indexed;
    if (built.indexed + built.dropped + built.damaged + moved->size() > 0) report_.changed = true;
    return damaged.Finish();
  }

  // Damaged tables of the database, then what earlier openings and repairs set aside.
  absl::StatusOr<std::vector<SalvageSource>> Sources(const RocksRepair& files) {
    std::vector<SalvageSource> sources;
    SalvageSource apart{{}, /*served=*/true, /*search_bytes=*/false};
    for (const TableFile& table : files.apart) apart.tables.push_back(table.path);
    SalvageSource damaged{{}, /*served=*/true, /*search_bytes=*/true};
    for (const TableFile& table : files.damaged) damaged.tables.push_back(table.path);
    if (!files.log_rest.empty()) {
      damaged.tables.push_back(JoinPath(scratch_, kLogRest));
      SH_RETURN_IF_ERROR(WriteFileAtomically(damaged.tables.back(), files.log_rest, 0600));
    }
    // Records that do not hold may miss no more than an origin that lies in a damaged table.
    const std::string bad = JoinPath(aside_, kBadRecords);
    if (PathExists(bad)) damaged.tables.push_back(bad);
    sources.push_back(std::move(apart));
    sources.push_back(std::move(damaged));
    const std::string quarantine = JoinPath(options_.path, kQuarantineName);
    if (!PathExists(quarantine)) return sources;
    SH_ASSIGN_OR_RETURN(const std::vector<std::string> folders, ListFolder(quarantine));
    for (const std::string& name : folders) {
      SH_ASSIGN_OR_RETURN(SalvageSource source, Quarantined(JoinPath(quarantine, name)));
      if (!source.tables.empty()) sources.push_back(std::move(source));
    }
    return sources;
  }

  // The tables in a folder of the quarantine, and those that its logs make.
  absl::StatusOr<SalvageSource> Quarantined(const std::string& folder) {
    SalvageSource source{{}, /*served=*/false, /*search_bytes=*/true};
    struct stat info {};
    if (stat(folder.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) return source;
    SH_ASSIGN_OR_RETURN(source.tables, ListTables(folder));
    const std::string old = JoinPath(folder, kDatabase);
    std::vector<std::string> more;
    if (PathExists(old)) {
      SH_ASSIGN_OR_RETURN(more, ListTables(old));
    }
    SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
    const bool logs = std::any_of(names.begin(), names.end(), [](const std::string& name) {
      return absl::EndsWith(name, ".log");
    });
    if (logs) {
      RocksOptions rocks = CacheRocksOptions(JoinPath(scratch_, BaseName(folder)));
      SH_RETURN_IF_ERROR(RebuildRocks(folder, rocks, options_.threads).status());
      SH_ASSIGN_OR_RETURN(more, ListTables(rocks.path));
    }
    source.tables.insert(source.tables.end(), more.begin(), more.end());
    return source;
  }

  // Of the cache, should no sound table tell it any more.
  static absl::StatusOr<std::string> StoreIdIn(const std::vector<SalvageSource>& sources) {
    for (const SalvageSource& source : sources) {
      for (const std::string& path : source.tables) {
        const std::optional<std::string> id = FindInTable(path, kStoreIdKey);
        if (id.has_value()) return *id;
      }
    }
    return NewStoreId();
  }

  static absl::Status SkipIncarnations(KvStore& store, uint64_t incarnation) {
    ByteWriter out;
    out.Put(incarnation + kIncarnationsSkipped);
    KvBatch batch;
    batch.Put(kCacheMeta, std::string(kIncarnationKey), out.Take());
    return store.Write(batch, KvStore::Sync::kNoSync);
  }

  const CacheRepairOptions options_;
  const std::string scratch_;
  const std::string aside_;
  CacheRepairReport report_;
};

}  // namespace

absl::StatusOr<CacheRepairReport> RepairCache(const CacheRepairOptions& options) {
  const absl::Status there = CheckIsThere(JoinPath(options.path, kDatabase), options.path);
  if (!there.ok() && !PathExists(JoinPath(options.path, kQuarantineName)) &&
      !NeedsFinishing(options.path)) {
    return there;
  }
  SH_ASSIGN_OR_RETURN(const auto lock, LockCache(options.path, /*alone=*/true));
  // A link would be moved without what it leads to.
  SH_RETURN_IF_ERROR(CheckOwnFolder(JoinPath(options.path, kDatabase)));
  SH_RETURN_IF_ERROR(CheckOwnFolder(JoinPath(options.path, kQuarantineName)));
  auto repaired = Repair(options).Run();
  if (repaired.ok() || NeedsFinishing(options.path)) return repaired;
  SH_RETURN_IF_ERROR(RemoveTree(JoinPath(options.path, kRepairing)));
  if (!absl::IsDataLoss(repaired.status())) return repaired;
  return absl::DataLossError(absl::StrCat(
      "the database could not be rebuilt: ", repaired.status().message(), "; nothing was changed"));
}

}  // namespace stillhouse
