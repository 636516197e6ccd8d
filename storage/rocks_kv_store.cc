#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/listener.h>
#include <rocksdb/sst_file_writer.h>
#include <rocksdb/write_batch.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "common/file.h"
#include "common/log.h"
#include "common/status.h"
#include "storage/kv_store.h"
#include "storage/rocks_internal.h"
#include "storage/rocks_log.h"
#include "storage/rocks_status.h"
#include "storage/rocks_tables.h"
#include "storage/rocks_visit.h"

namespace stillhouse {
namespace {

constexpr uint64_t kFreeingBatchBytesMax = 2 << 20;  // may use half of what is kept free

rocksdb::Slice ToSlice(absl::string_view bytes) { return {bytes.data(), bytes.size()}; }

class ErrorListener final : public rocksdb::EventListener {
 public:
  explicit ErrorListener(std::function<void(absl::Status)> callback)
      : callback_(std::move(callback)) {}

  // From here on nothing may be written: RocksDB aborts when a file that failed is written again.
  void Stop(const absl::Status& error) {
    if (stopped_.exchange(true)) return;
    if (callback_) callback_(error);
  }
  bool stopped() const { return stopped_; }

  void OnBackgroundError(rocksdb::BackgroundErrorReason, rocksdb::Status* error) override {
    if (error != nullptr && !error->ok()) Stop(ToAbsl(*error, "the database stopped"));
  }
  // A database that recovered by itself would hide that some writes failed: the process ends
  // instead.
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason, rocksdb::Status,
                            bool* auto_recovery) override {
    if (auto_recovery != nullptr) *auto_recovery = false;
  }

 private:
  std::function<void(absl::Status)> callback_;
  std::atomic<bool> stopped_{false};  // never cleared; the callback runs when it is set
};

// The disk writes a file while it is made, so that little is left to sync.
rocksdb::EnvOptions FileOptions() {
  rocksdb::EnvOptions options;
  options.bytes_per_sync = 1 << 20;
  return options;
}

class RocksSortedFile final : public KvSortedFile {
 public:
  RocksSortedFile(KvFamily family, std::string path, const rocksdb::Options& options,
                  rocksdb::ColumnFamilyHandle* handle)
      : family(family),
        path(std::move(path)),
        // The page cache is kept: students read what was just written.
        writer(FileOptions(), options, handle, /*invalidate_page_cache=*/false) {}
  ~RocksSortedFile() override { unlink(path.c_str()); }

  absl::Status Add(absl::string_view key, absl::string_view value) override {
    if (!first.empty() && std::string(key) <= last) {
      return absl::InvalidArgumentError("keys of a sorted file must ascend");
    }
    SH_RETURN_IF_ERROR(ToAbsl(writer.Put(ToSlice(key), ToSlice(value)), "preparing a file"));
    if (first.empty()) first = std::string(key);
    last = std::string(key);
    return absl::OkStatus();
  }

  const KvFamily family;
  const std::string path;
  rocksdb::SstFileWriter writer;
  std::string first, last;
};

class RocksKvStore final : public KvStore {
 public:
  RocksKvStore(RocksOptions options, rocksdb::DB* db,
               std::vector<rocksdb::ColumnFamilyHandle*> handles, rocksdb::Options file_options,
               std::shared_ptr<ErrorListener> listener, std::shared_ptr<OpeningWatch> watch)
      : options_(std::move(options)),
        watch_(std::move(watch)),
        db_(db),
        handles_(std::move(handles)),
        file_options_(std::move(file_options)),
        listener_(std::move(listener)) {
    read_.verify_checksums = true;
    reader_ = MakeRocksReader(*db_, options_.reads, options_.path);
  }

  ~RocksKvStore() override {
    const absl::Status status = Close();
    if (!status.ok()) LogError("closing ", options_.path, ": ", std::string(status.message()));
  }

  absl::StatusOr<std::optional<std::string>> Get(KvFamily family, absl::string_view key) override {
    std::string value;
    const rocksdb::Status status = db_->Get(read_, Handle(family), ToSlice(key), &value);
    if (status.IsNotFound()) return std::nullopt;
    SH_RETURN_IF_ERROR(ToAbsl(status, Where("reading")));
    return value;
  }

  absl::StatusOr<std::vector<std::optional<std::string>>> MultiGet(
      KvFamily family, absl::Span<const std::string> keys) override {
    std::vector<rocksdb::Slice> slices(keys.begin(), keys.end());
    std::vector<rocksdb::PinnableSlice> found(keys.size());
    std::vector<rocksdb::Status> statuses(keys.size());
    db_->MultiGet(read_, Handle(family), keys.size(), slices.data(), found.data(), statuses.data());
    std::vector<std::optional<std::string>> values(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
      if (statuses[i].IsNotFound()) continue;
      SH_RETURN_IF_ERROR(ToAbsl(statuses[i], Where("reading")));
      values[i] = found[i].ToString();
    }
    return values;
  }

  absl::Status Visit(KvFamily family, absl::Span<const KvWanted> wanted, KvVisitor visit) override {
    return reader_->Visit(Handle(family), wanted, visit);
  }

  absl::StatusOr<KvScanResult> Scan(KvFamily family, const KvScanOptions& options) override {
    SH_CHECK(options.entries_max > 0 && options.entries_max <= kKvScanEntriesMax);
    KvScanResult result;
    if (options.end.has_value() && *options.end <= options.begin) return result;
    const rocksdb::Slice lower(options.begin);
    const rocksdb::Slice upper = options.end.has_value() ? rocksdb::Slice(*options.end) : lower;
    rocksdb::ReadOptions read = read_;
    read.iterate_lower_bound = &lower;
    if (options.end.has_value()) read.iterate_upper_bound = &upper;
    const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(read, Handle(family)));
    uint64_t bytes = 0;
    for (options.reverse ? it->SeekToLast() : it->Seek(lower); it->Valid();
         options.reverse ? it->Prev() : it->Next()) {
      if (std::ssize(result.entries) >= options.entries_max || bytes >= options.bytes_max) {
        result.more = true;
        break;
      }
      result.entries.push_back(
          {it->key().ToString(), options.keys_only ? "" : it->value().ToString()});
      bytes += result.entries.back().key.size() + result.entries.back().value.size();
    }
    SH_RETURN_IF_ERROR(ToAbsl(it->status(), Where("scanning")));
    return result;
  }

  absl::StatusOr<uint64_t> ApproximateSize(KvFamily family, absl::string_view begin,
                                           absl::string_view end) override {
    rocksdb::SizeApproximationOptions sizes;
    sizes.include_memtables = true;
    sizes.include_files = true;
    const rocksdb::Range range(ToSlice(begin), ToSlice(end));
    uint64_t bytes = 0;
    SH_RETURN_IF_ERROR(ToAbsl(db_->GetApproximateSizes(sizes, Handle(family), &range, 1, &bytes),
                              Where("sizing")));
    return bytes;
  }

  absl::Status Write(const KvBatch& batch, Sync sync) override {
    SH_RETURN_IF_ERROR(CheckRoom(batch.bytes(), FreesSpace(batch)));
    rocksdb::WriteBatch changes(batch.bytes() + 64 * batch.changes().size(), /*max_bytes=*/0,
                                /*protection_bytes_per_key=*/8, /*default_cf_ts_sz=*/0);
    for (const KvBatch::Change& change : batch.changes()) {
      rocksdb::ColumnFamilyHandle* handle = Handle(change.family);
      rocksdb::Status status;
      switch (change.kind) {
        case KvBatch::Change::Kind::kPut:
          status = changes.Put(handle, change.key, change.value);
          break;
        case KvBatch::Change::Kind::kDelete:
          status = changes.Delete(handle, change.key);
          break;
        case KvBatch::Change::Kind::kDeleteRange:
          if (change.key < change.value) {
            status = changes.DeleteRange(handle, change.key, change.value);
          }
          break;
      }
      SH_RETURN_IF_ERROR(ToAbsl(status, Where("writing")));
    }
    rocksdb::WriteOptions write;
    write.sync = sync == Sync::kSync;
    return StopIfFailed(ToAbsl(db_->Write(write, &changes), Where("writing")));
  }

  absl::StatusOr<std::unique_ptr<KvSortedFile>> NewSortedFile(KvFamily family) override {
    SH_RETURN_IF_ERROR(CheckRoom(0));
    const std::string& folder =
        options_.ingest_folder.empty() ? options_.path : options_.ingest_folder;
    const std::string path = JoinPath(folder, absl::StrCat(getpid(), "-", next_file_++, ".ingest"));
    auto file = std::make_unique<RocksSortedFile>(family, path, file_options_, Handle(family));
    SH_RETURN_IF_ERROR(ToAbsl(file->writer.Open(path), absl::StrCat("creating ", path)));
    return file;
  }

  absl::Status Ingest(std::unique_ptr<KvSortedFile> file) override {
    auto& sorted = static_cast<RocksSortedFile&>(*file);
    if (sorted.first.empty()) return absl::InvalidArgumentError("an empty file was ingested");
    // RocksDB would replace the keys without a word.
    SH_ASSIGN_OR_RETURN(const KvScanResult there, Scan(sorted.family, {.begin = sorted.first,
                                                                       .end = sorted.last + '\0',
                                                                       .entries_max = 1,
                                                                       .keys_only = true}));
    if (!there.entries.empty()) {
      return absl::AlreadyExistsError("the family holds keys in the range of the file");
    }
    SH_RETURN_IF_ERROR(CheckRoom(0));
    SH_RETURN_IF_ERROR(ToAbsl(sorted.writer.Finish(), Where("syncing a file for")));
    rocksdb::IngestExternalFileOptions ingest;
    ingest.move_files = true;
    ingest.write_global_seqno = false;
    return StopIfFailed(
        ToAbsl(db_->IngestExternalFile(Handle(sorted.family), {sorted.path}, ingest),
               Where("ingesting into")));
  }

  absl::Status CompactRange(KvFamily family, absl::string_view begin,
                            absl::string_view end) override {
    const rocksdb::Slice lower = ToSlice(begin), upper = ToSlice(end);
    rocksdb::CompactRangeOptions compact;
    compact.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
    return ToAbsl(db_->CompactRange(compact, Handle(family), &lower, &upper), Where("compacting"));
  }

  absl::Status FlushFamily(KvFamily family) override {
    SH_RETURN_IF_ERROR(CheckRoom(0, /*frees=*/true));
    return ToAbsl(db_->Flush(rocksdb::FlushOptions(), Handle(family)), Where("flushing"));
  }

  absl::Status Flush() override {
    SH_RETURN_IF_ERROR(ToAbsl(db_->Flush(rocksdb::FlushOptions(), handles_), Where("flushing")));
    return ToAbsl(db_->SyncWAL(), Where("syncing"));
  }

  absl::StatusOr<std::vector<std::string>> Files() override {
    std::vector<rocksdb::LiveFileMetaData> files;
    db_->GetLiveFilesMetaData(&files);
    std::vector<std::string> names;
    for (const auto& file : files) names.push_back(BaseName(file.name));
    std::sort(names.begin(), names.end());
    return names;
  }

  absl::Status VerifyFile(const std::string& name) override {
    const std::string path = JoinPath(options_.path, name);
    const absl::Status damage = CheckTable(path).damage;
    if (damage.ok() || PathExists(path)) return damage;
    // Gone: rightly so if it was freed since it was named.
    SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, Files());
    const bool named = std::find(names.begin(), names.end(), name) != names.end();
    return named ? absl::DataLossError(absl::StrCat(name, " is gone")) : absl::OkStatus();
  }

  absl::Status EmptyFamily(KvFamily family) override {
    rocksdb::ColumnFamilyHandle*& handle = handles_[family + 1];
    const rocksdb::ColumnFamilyOptions same = db_->GetOptions(handle);
    SH_RETURN_IF_ERROR(ToAbsl(db_->DropColumnFamily(handle), Where("emptying")));
    SH_RETURN_IF_ERROR(ToAbsl(db_->DestroyColumnFamilyHandle(handle), Where("emptying")));
    return ToAbsl(db_->CreateColumnFamily(same, options_.families[family].name, &handle),
                  Where("emptying"));
  }

  absl::StatusOr<std::vector<std::string>> SetAsideAtOpen() override {
    return watch_ == nullptr ? std::vector<std::string>() : watch_->kept();
  }

  // The tables of a family that do not hold.
  std::vector<std::string> DamagedTables(KvFamily family) {
    rocksdb::ColumnFamilyMetaData all;
    db_->GetColumnFamilyMetaData(Handle(family), &all);
    std::vector<std::string> damaged;
    for (const auto& level : all.levels) {
      for (const auto& file : level.files) {
        const TableFile table = CheckTable(JoinPath(options_.path, BaseName(file.name)));
        if (!table.damage.ok()) damaged.push_back(std::string(table.damage.message()));
      }
    }
    return damaged;
  }

  absl::Status Close() override {
    if (db_ == nullptr) return absl::OkStatus();
    absl::Status status;
    if (!options_.read_only && !listener_->stopped()) status = Flush();
    reader_.reset();
    for (rocksdb::ColumnFamilyHandle* handle : handles_) {
      db_->DestroyColumnFamilyHandle(handle).PermitUncheckedError();
    }
    const absl::Status closed = ToAbsl(db_->Close(), Where("closing"));
    db_.reset();
    return status.ok() ? closed : status;
  }

 private:
  rocksdb::ColumnFamilyHandle* Handle(KvFamily family) const {
    SH_CHECK(family >= 0 && family + 1 < std::ssize(handles_), "family ", family);
    return handles_[family + 1];  // the first is RocksDB's own "default"
  }
  std::string Where(absl::string_view action) const {
    return absl::StrCat(action, " ", options_.path);
  }

  absl::Status StopIfFailed(absl::Status status) {
    if (!status.ok() && !options_.read_only) listener_->Stop(status);
    return status;
  }

  // On a full disk deleting must still be possible.
  static bool FreesSpace(const KvBatch& batch) {
    if (batch.bytes() > kFreeingBatchBytesMax) return false;
    return std::any_of(batch.changes().begin(), batch.changes().end(), [](const auto& change) {
      return change.kind != KvBatch::Change::Kind::kPut;
    });
  }

  absl::Status CheckRoom(uint64_t bytes, bool frees = false) const {
    if (listener_->stopped()) {
      return absl::FailedPreconditionError(
          absl::StrCat(options_.path, " takes no more after an error; open it again"));
    }
    if (options_.disk_reserve_bytes == 0) return absl::OkStatus();
    struct statvfs disk {};
    if (statvfs(options_.path.c_str(), &disk) != 0) return ErrnoStatus("asking", options_.path);
    const uint64_t free = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
    const uint64_t reserve = frees ? options_.disk_reserve_bytes / 2 : options_.disk_reserve_bytes;
    if (free >= reserve + bytes) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat("the disk of ", options_.path, " is full: ", free, " bytes free, ",
                     reserve + bytes, " needed; free some space, then try again"));
  }

  const RocksOptions options_;
  const std::shared_ptr<OpeningWatch> watch_;  // the database works through it
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;  // constant between EmptyFamily and Close
  const rocksdb::Options file_options_;
  const std::shared_ptr<ErrorListener> listener_;
  rocksdb::ReadOptions read_;            // constant after construction
  std::unique_ptr<RocksReader> reader_;  // constant after construction
  std::atomic<uint64_t> next_file_{1};   // names of files being prepared
};

}  // namespace

namespace {

// A name that RocksDB or we take for a file of the database. RocksDB does not survive a folder of
// such a name, and waits for ever at a pipe.
bool IsDatabaseName(const std::string& name) {
  return name == "CURRENT" || name == "IDENTITY" || name == kSyncedLogsName ||
         absl::StartsWith(name, "MANIFEST-") || absl::StartsWith(name, "OPTIONS-") ||
         (absl::ascii_isdigit(name[0]) &&
          (absl::EndsWith(name, ".log") || absl::EndsWith(name, ".sst")));
}

// Are there files of a database with something in them? RocksDB would make a new one beside them
// when the one that names them is gone, and then delete them.
absl::StatusOr<bool> HoldsData(const std::string& path) {
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(path));
  bool holds_data = false;
  for (const std::string& name : names) {
    if (!IsDatabaseName(name)) continue;
    const std::string file = JoinPath(path, name);
    struct stat info {};
    if (stat(file.c_str(), &info) != 0) {
      if (errno == ENOENT) continue;  // a link that leads nowhere: the database tells
      if (errno == ELOOP) return absl::DataLossError(absl::StrCat(file, " leads to itself"));
      return ErrnoStatus("opening", file);
    }
    if (!S_ISREG(info.st_mode)) {
      return absl::DataLossError(absl::StrCat(file, " is not a file, but has a file's name"));
    }
    if (access(file.c_str(), R_OK) != 0) return ErrnoStatus("opening", file);
    holds_data = holds_data || absl::EndsWith(name, ".sst") ||
                 (absl::EndsWith(name, ".log") && info.st_size > 0);
  }
  return holds_data;
}

// What RocksDB says of a database that has files but does not open is damage, whatever it calls it,
// unless the system is to blame.
absl::Status AsDamage(const absl::Status& status) {
  if (absl::IsNotFound(status) || absl::IsInvalidArgument(status)) {
    return absl::DataLossError(status.message());
  }
  return status;
}

// Families that cannot be made again must be named by the manifest.
absl::Status CheckFamilies(const RocksOptions& options, const rocksdb::DBOptions& db_options) {
  std::vector<std::string> names;
  SH_RETURN_IF_ERROR(AsDamage(
      ToAbsl(rocksdb::DB::ListColumnFamilies(db_options, options.path, &names), "opening")));
  for (const KvFamilyOptions& family : options.families) {
    if (family.derived || std::find(names.begin(), names.end(), family.name) != names.end())
      continue;
    return absl::DataLossError(
        absl::StrCat(options.path, ": its MANIFEST does not name the family ", family.name));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<RocksKvStore>> OpenAsIs(const RocksOptions& options, bool holds_data,
                                                       std::shared_ptr<OpeningWatch> watch) {
  const auto cache = rocksdb::NewLRUCache(options.block_cache_bytes);
  const auto listener = std::make_shared<ErrorListener>(options.on_background_error);
  rocksdb::DBOptions db_options = RocksDatabaseOptions(
      options.open_files_max, options.reads, watch != nullptr ? watch->env() : options.env);
  db_options.listeners.push_back(listener);
  if (!options.read_only) {
    if (holds_data) SH_RETURN_IF_ERROR(CheckFamilies(options, db_options));
    db_options.create_if_missing = !holds_data;
    db_options.create_missing_column_families = true;
  }
  const auto families = RocksFamilies(options.families, options.reads, cache);
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  const rocksdb::Status opened =
      options.read_only
          ? rocksdb::DB::OpenForReadOnly(db_options, options.path, families, &handles, &db)
          : rocksdb::DB::Open(db_options, options.path, families, &handles, &db);
  const absl::Status status = ToAbsl(opened, absl::StrCat("opening ", options.path));
  if (!status.ok()) return holds_data ? AsDamage(status) : status;
  return std::make_unique<RocksKvStore>(
      options, db, std::move(handles),
      rocksdb::Options(db_options, RocksFamilyOptions(options.families[0], options.reads, cache)),
      listener, std::move(watch));
}

// Derived families are looked through before they are believed: their files are small, and damage
// in one would stop every later write.
absl::Status EmptyDamagedFamilies(const RocksOptions& options, RocksKvStore& store) {
  for (KvFamily family = 0; family < std::ssize(options.families); ++family) {
    if (!options.families[family].derived) continue;
    const std::vector<std::string> damaged = store.DamagedTables(family);
    if (damaged.empty()) continue;
    LogWarning(options.path, ": a file of the family ", options.families[family].name,
               " is damaged (", damaged[0], "); the family is made again");
    SH_RETURN_IF_ERROR(store.EmptyFamily(family));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvStore>> OpenRocksKvStore(const RocksOptions& options) {
  SH_CHECK(!options.families.empty());
  if (!options.read_only) {
    SH_RETURN_IF_ERROR(MakeFolders(options.path));
    if (!options.ingest_folder.empty()) SH_RETURN_IF_ERROR(MakeFolders(options.ingest_folder));
  }
  SH_ASSIGN_OR_RETURN(const bool holds_data, HoldsData(options.path));
  SH_RETURN_IF_ERROR(CheckLogFiles(options.path));
  if (!PathExists(JoinPath(options.path, "CURRENT"))) {
    if (holds_data) {
      return absl::DataLossError(absl::StrCat(
          options.path, ": the file CURRENT is gone, which says what of the rest counts"));
    }
    if (options.read_only)
      return absl::NotFoundError(absl::StrCat("no database in ", options.path));
  }
  std::shared_ptr<OpeningWatch> watch;
  if (!options.read_only) watch = OpeningWatch::Create(options.env, options.quarantine_folder);
  auto store = OpenAsIs(options, holds_data, watch);
  if (watch != nullptr && absl::IsDataLoss(store.status())) {
    SH_ASSIGN_OR_RETURN(const bool emptied, EmptyUnreadableFamilies(options, watch->env()));
    if (emptied) store = OpenAsIs(options, holds_data, watch);
  }
  SH_RETURN_IF_ERROR(store.status());
  if (watch != nullptr) {
    SH_RETURN_IF_ERROR(EmptyDamagedFamilies(options, **store));
    watch->Watch(false);
  }
  return store;
}

}  // namespace stillhouse
