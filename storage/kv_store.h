// KvStore: named families of ordered keys, as an embedded database offers them.
//
// Owner: a process's main or a test. Threads: every method may be called from any thread and may
// block on the disk; event-driven objects go through storage/async_store.h instead. Ordering: a
// Write is atomic over all families and later calls see it. Durability: after Write(kSync), Ingest
// and Flush return OK, what they stored survives SIGKILL and power loss; after Write(kNoSync) it
// survives as soon as any later Write(kSync) has returned.
//
// Keys and values are byte strings; keys are ordered by unsigned bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace rocksdb {
class Env;
}

namespace stillhouse {

using KvFamily = int;  // position in the list of families given at open

inline constexpr int kKvScanEntriesMax = 1 << 16;         // bounds what one Scan holds in memory
inline constexpr uint64_t kKvScanBytesMax = 64ull << 20;  // keys and values of one Scan

struct KvFamilyOptions {
  std::string name;
  bool automatic_compaction = true;  // off: files stay as written until CompactRange
  bool point_lookups = true;         // keep a Bloom filter
  bool derived = false;  // its owner can make it again: it is checked at open, and empty if damaged
  uint64_t memtable_bytes = 32ull << 20;
};

struct KvEntry {
  std::string key;
  std::string value;
  friend bool operator==(const KvEntry&, const KvEntry&) = default;
};

// Changes that happen together or not at all; later ones win.
class KvBatch {
 public:
  struct Change {
    enum class Kind : uint8_t { kPut, kDelete, kDeleteRange } kind;
    KvFamily family;
    std::string key;    // kDeleteRange: the first key
    std::string value;  // kDeleteRange: the first key that stays
  };
  void Put(KvFamily family, std::string key, std::string value) {
    bytes_ += key.size() + value.size();
    changes_.push_back({Change::Kind::kPut, family, std::move(key), std::move(value)});
  }
  void Delete(KvFamily family, std::string key) {
    bytes_ += key.size();
    changes_.push_back({Change::Kind::kDelete, family, std::move(key), ""});
  }
  void DeleteRange(KvFamily family, std::string begin, std::string end) {
    bytes_ += begin.size() + end.size();
    changes_.push_back({Change::Kind::kDeleteRange, family, std::move(begin), std::move(end)});
  }
  const std::vector<Change>& changes() const { return changes_; }
  uint64_t bytes() const { return bytes_; }
  bool empty() const { return changes_.empty(); }

 private:
  std::vector<Change> changes_;
  uint64_t bytes_ = 0;
};

struct KvScanOptions {
  std::string begin;                     // first key; "" is the start
  std::optional<std::string> end;        // first key beyond; none: to the end of the family
  int entries_max = 1000;                // at most kKvScanEntriesMax
  uint64_t bytes_max = kKvScanBytesMax;  // stops after the entry that reaches it
  bool reverse = false;                  // from the end of the range downwards
  bool keys_only = false;                // values stay empty
};
struct KvScanResult {
  std::vector<KvEntry> entries;
  bool more = false;  // the range holds further keys
};

// A value to be read, and about how many bytes it has: small neighbours are fetched in one go.
struct KvWanted {
  std::string key;
  uint64_t bytes = 0;
};
// Called with the position of the key and the value, which lives during the call; nothing when the
// key is absent.
using KvVisitor = absl::FunctionRef<absl::Status(size_t, std::optional<absl::string_view>)>;

// A file of entries being prepared for Ingest, beside the database and ending in ".ingest" until
// then. Not thread-safe. Dropped without Ingest, it leaves nothing behind.
class KvSortedFile {
 public:
  virtual ~KvSortedFile() = default;
  // InvalidArgument unless `key` is above every key added before.
  virtual absl::Status Add(absl::string_view key, absl::string_view value) = 0;
};

class KvStore {
 public:
  enum class Sync { kSync, kNoSync };
  virtual ~KvStore() = default;  // as Close, errors logged

  // Nothing when the key is absent. DataLoss when a checksum does not match.
  virtual absl::StatusOr<std::optional<std::string>> Get(KvFamily family,
                                                         absl::string_view key) = 0;
  // As many answers as keys, in order.
  virtual absl::StatusOr<std::vector<std::optional<std::string>>> MultiGet(
      KvFamily family, absl::Span<const std::string> keys) = 0;
  // Visits the value of each key in order, without a copy where the store has the value in memory.
  // `visit` checks values by a checksum of their own and answers DataLoss for what does not match:
  // the store may leave its own checks to it, and where it did it reads such a value again with
  // them, so that damage is found twice and a wrong answer never given. Stops at the first error.
  // REQUIRES: keys do not descend.
  virtual absl::Status Visit(KvFamily family, absl::Span<const KvWanted> wanted,
                             KvVisitor visit) = 0;
  virtual absl::StatusOr<KvScanResult> Scan(KvFamily family, const KvScanOptions& options) = 0;
  // Bytes on disk of the keys in [begin, end), within about a block; what is still in memory counts
  // too.
  virtual absl::StatusOr<uint64_t> ApproximateSize(KvFamily family, absl::string_view begin,
                                                   absl::string_view end) = 0;

  // ResourceExhausted when the disk is full: nothing of the batch is stored.
  virtual absl::Status Write(const KvBatch& batch, Sync sync) = 0;

  // Ingestion: large values go into a file of their own, written once, past the log and the
  // memtable.
  virtual absl::StatusOr<std::unique_ptr<KvSortedFile>> NewSortedFile(KvFamily family) = 0;
  // Makes the file's entries part of its family, all or none. AlreadyExists, and nothing changed,
  // if the family holds any key between the first and the last of the file. InvalidArgument if it
  // is empty. REQUIRES: `file` is of this store; no other thread writes keys of that range
  // meanwhile.
  virtual absl::Status Ingest(std::unique_ptr<KvSortedFile> file) = 0;

  // Frees the disk space of deleted keys in [begin, end). What else lies in the same files is
  // written anew, so a deletion is flushed on its own first where that matters.
  virtual absl::Status CompactRange(KvFamily family, absl::string_view begin,
                                    absl::string_view end) = 0;
  virtual absl::Status FlushFamily(KvFamily family) = 0;  // as Flush, of one family
  virtual absl::Status Flush() = 0;  // memory to files, so that the next open replays no log

  // The files that hold the entries. What is still in memory or in the log is in none.
  virtual absl::StatusOr<std::vector<std::string>> Files() = 0;
  // Reads all of one; DataLoss names what is damaged. OK if it was freed since it was listed.
  virtual absl::Status VerifyFile(const std::string& name) = 0;
  // Drops all entries with their files, damaged or not. REQUIRES: no other call is under way.
  virtual absl::Status EmptyFamily(KvFamily family) = 0;
  // Paths of files that the database did not name when it was opened: moved, not deleted.
  virtual absl::StatusOr<std::vector<std::string>> SetAsideAtOpen() = 0;
  // Flushes and releases the files. REQUIRES: no other call is under way or follows.
  virtual absl::Status Close() = 0;
};

// How files are read. Mapped: through the page cache, in place; right while the database fits into
// memory. Direct: past the page cache, with read-ahead of our own; right when it does not, where
// page faults would fetch it by small pieces.
enum class KvReads : uint8_t { kMapped, kDirect };

struct RocksOptions {
  std::string path;           // folder of the database, made if need be
  std::string ingest_folder;  // for files being prepared, on the same file system; "": `path`
  std::vector<KvFamilyOptions> families;
  bool read_only = false;  // NotFound if there is no database; nothing is changed on disk
  // Where files go that the database would delete while it is opened because its MANIFEST does not
  // name them, and damaged files of derived families. "": they are deleted, and derived families
  // are not checked.
  std::string quarantine_folder;
  rocksdb::Env* env = nullptr;  // tests: the file system under it; must outlive the store
  int open_files_max = 400;     // fits `ulimit -n 1024` beside sockets and logs
  uint64_t block_cache_bytes = 64ull << 20;
  KvReads reads = KvReads::kMapped;
  // Kept free on the disk: writes are refused before the database could be stopped by a full one in
  // the middle of a flush. 0: no such check.
  uint64_t disk_reserve_bytes = 160ull << 20;
  // Called, from any thread and at most once, when the database stops accepting writes for good. A
  // main ends the process with this as its one line.
  std::function<void(absl::Status)> on_background_error;
};
// DataLoss when the database is damaged. A torn tail of the log (a crash in the middle of a write
// that was never acknowledged) is dropped silently, damage before it is not.
absl::StatusOr<std::unique_ptr<KvStore>> OpenRocksKvStore(const RocksOptions& options);

// The same contract in memory, for tests and simulations. Durability: none.
std::unique_ptr<KvStore> MakeMemoryKvStore(int families);

}  // namespace stillhouse
