// TeacherCache: parts of sections in a KvStore, each written once, found by key, never believed
// unread.
//
// Owner: a cache directory (storage/cache_directory.h) or a test. Threads: Put, and everything else
// that writes, from one thread at a time (the writer); Get, Find and Totals from any. Ordering:
// what a Put stored is found once it has returned. Durability: when Put returns OK, its parts
// survive SIGKILL and power loss; the order is records in a file of their own, synced and ingested
// (large parts), then one synced batch with the other records and every index entry. A crash in
// between leaves records that no index entry names: harmless, and counted by verify. Integrity:
// parts are decoded before they are written; every record is checked against its checksum and
// against the key asked for when it is read. Damage: a read that meets a damaged part fails and
// notes it; from then on the part counts as not there, so that it is captured again, and what is
// then written takes its place.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "storage/damage_list.h"
#include "storage/kv_store.h"
#include "storage/part.h"
#include "storage/record.h"

namespace stillhouse {

// The families of a cache's KvStore, in order.
enum CacheFamily : KvFamily { kCacheData, kCacheIndex, kCacheObjects, kCacheMeta };
std::vector<KvFamilyOptions> CacheFamilies();

inline constexpr uint64_t kSegmentBytesMin = 64ull << 20;  // a segment is closed once it is larger
inline constexpr uint64_t kLargePartBytes = 64ull << 10;   // such parts may be ingested, …
inline constexpr uint64_t kIngestBytesMin = 2ull << 20;    // … if a group holds this much of them
inline constexpr size_t kPutPartsMax = 65536;              // of one item

struct CacheIdentity {
  std::string store_id;      // made at the first opening, for ever
  uint64_t incarnation = 0;  // higher at each opening for writing
};

struct PutItem {
  std::vector<Part> parts;
  Provenance provenance;
};

struct PutCounts {
  uint32_t stored = 0;
  uint32_t already = 0;     // were there, or twice in the item, with the same decoded values
  uint32_t mismatched = 0;  // were there with other values: the first write won
};

// What a cache holds of the sections of one spec.
struct SpecTotals {
  uint64_t sections = 0;
  uint64_t parts = 0;
  uint64_t rows = 0;
  uint64_t record_bytes = 0;  // keys, headers, payloads and checksums
  uint64_t payload_bytes = 0;
  uint64_t index_bytes = 0;  // keys and values
};

void AddPartTotals(const PartKey& key, const IndexEntry& entry, SpecTotals* totals);
void SubtractPartTotals(const PartKey& key, const IndexEntry& entry, SpecTotals* totals);
void PutTotals(absl::string_view spec, const SpecTotals& totals, KvBatch* batch);

// InvalidArgument or DataLoss unless every part fits the spec and its payload decodes to finite
// values. Any thread: the costly half of a Put.
absl::Status CheckPut(const PutItem& item);

class TeacherCache {
 public:
  // Takes the next incarnation. `new_store_id` names a cache that is opened for the first time.
  // `store` has the families of CacheFamilies() and must outlive the result. FailedPrecondition if
  // the cache was written by a program with another format.
  static absl::StatusOr<std::unique_ptr<TeacherCache>> Open(KvStore& store,
                                                            const std::string& new_store_id);
  // Takes no incarnation and writes nothing; Put is then a bug. NotFound if the store holds no
  // cache.
  static absl::StatusOr<std::unique_ptr<TeacherCache>> OpenReadOnly(KvStore& store);

  // Stores a group of items with one sync; one answer per item. Other values for a stored key: the
  // first write wins, and the part is counted. An error means that the group is not acknowledged;
  // some of it may be stored. REQUIRES: CheckPut(item) is OK for each; called by the writer.
  absl::StatusOr<std::vector<PutCounts>> Put(absl::Span<const PutItem> items);

  // The longest prefix of the keys whose records have at most `bytes_max` in all, but at least one;
  // nullopt for what is not there. The prefix ends before a part that turns out to be damaged; if
  // that is the first, DataLoss names it.
  absl::StatusOr<std::vector<std::optional<Part>>> Get(absl::Span<const PartKey> keys,
                                                       uint64_t bytes_max);
  // Nothing for a part that is noted as damaged.
  absl::StatusOr<std::vector<std::optional<IndexEntry>>> Find(absl::Span<const PartKey> keys);
  // Damaged parts or not.
  absl::StatusOr<std::vector<std::optional<IndexEntry>>> FindAll(absl::Span<const PartKey> keys);
  // By canonical spec.
  absl::StatusOr<std::map<std::string, SpecTotals>> Totals();
  // The origin of the record at `place`.
  absl::StatusOr<Provenance> OriginOf(const Place& place, uint32_t origin_slot);

  // Any thread; on disk once the writer called SaveDamage. Nothing in a cache opened for reading.
  void NoteDamage(const PartKey& key, const absl::Status& damage) {
    if (writable_) damaged_.Note(key, damage);
  }
  bool HasUnsavedDamage() const { return writable_ && damaged_.unsaved(); }
  absl::Status SaveDamage() { return damaged_.Save(store_); }
  size_t damaged_parts() const { return damaged_.size(); }

  const CacheIdentity& identity() const { return identity_; }
  KvStore& store() { return store_; }

 private:
  struct NewPart {
    const PutItem* item;
    const Part* part;
  };
  class Group;

  explicit TeacherCache(KvStore& store) : store_(store) {}
  absl::Status ReadIdentity(bool* found);
  absl::StatusOr<Part> ReadPart(const PartKey& key, const IndexEntry& entry,
                                const absl::StatusOr<std::optional<std::string>>& bytes);
  absl::Status CompareStored(const PutItem& item, const Part& part, const IndexEntry& entry,
                             PutCounts* counts);
  absl::Status Commit(const std::vector<NewPart>& parts);
  absl::Status AddTotals(const std::vector<NewPart>& parts, Group* group);

  KvStore& store_;
  DamageList damaged_;
  CacheIdentity identity_;  // constant after Open
  bool writable_ = false;   // constant after Open

  // Of the writer: the segment that small parts go to.
  uint64_t next_segment_ = 1;
  uint64_t segment_ = 0;  // 0: none yet
  uint32_t next_slot_ = 0;
  uint64_t segment_bytes_ = 0;
  std::map<std::string, uint32_t> origins_;  // record of the origin -> its slot in segment_
};

}  // namespace stillhouse
