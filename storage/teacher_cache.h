// TeacherCache: parts of sections in a KvStore, each written once, found by key, never believed
// unread.
//
// Owner: a cache directory (storage/cache_directory.h) or a test. Threads: Put, and everything else
// that writes, from one thread at a time (the writer); Get, Find and Totals from any. Ordering:
// what a Put stored is found once it has returned. Durability: when Put returns OK, its parts
// survive SIGKILL and power loss; the order is records in a file of their own, synced and ingested
// (large parts, or all that fill a segment), then one synced batch with the other records and every
// index entry. A crash in between leaves records that no index entry names: harmless, and counted
// by verify. Integrity: parts are decoded before they are written; every record is checked against
// its checksum and against the key asked for when it is read. Space: Remove takes parts out of the
// index, and their records are dead; Reclaim copies what is alive of segments that are mostly dead
// and frees them. Reads under way meanwhile succeed: they ask the index again when a record has
// moved. Damage: a read that meets a damaged part fails and notes it; from then on the part counts
// as not there, so that it is captured again, and what is then written takes its place.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "storage/damage_list.h"
#include "storage/kv_store.h"
#include "storage/part.h"
#include "storage/record.h"
#include "storage/segments.h"

namespace stillhouse {

// The families of a cache's KvStore, in order.
enum CacheFamily : KvFamily { kCacheData, kCacheIndex, kCacheObjects, kCacheMeta };
inline constexpr absl::string_view kObjectsFamily = "objects";  // jobs, plans and artefacts
std::vector<KvFamilyOptions> CacheFamilies();

// Of the family `meta`.
inline constexpr absl::string_view kStoreIdKey = "store_id";
inline constexpr absl::string_view kIncarnationKey = "incarnation";

inline constexpr uint64_t kSegmentBytesMin = 64ull << 20;  // a segment is closed once it is larger
// Parts of a group are ingested if they are large and this much, or if all of it fills a segment.
inline constexpr uint64_t kLargePartBytes = 64ull << 10;
inline constexpr uint64_t kIngestBytesMin = 2ull << 20;
inline constexpr size_t kPutPartsMax = 65536;    // of one item
inline constexpr size_t kRemovePartsMax = 8192;  // of one Remove
// Of records that one step of Reclaim reads and copies; a put waits for at most one such step.
inline constexpr uint64_t kReclaimStepBytes = 8ull << 20;

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

// A part to be removed. `spec` is that of its section.
struct Removal {
  PartKey key;
  SectionSpec spec;
};
struct RemoveCounts {
  uint64_t sections = 0;  // whose first part was there
  uint64_t parts = 0;
  uint64_t bytes = 0;  // of records and index entries
};

struct ReclaimOptions {
  // Segments with this share of live bytes or less are rewritten; those less than half alive by
  // default. 1: all that hold a dead byte.
  double live_share_max = 0.5;
  bool orphans = true;                // also looks for segments that no row counts: left by a crash
  std::optional<uint64_t> compacted;  // what the caller compacted since the last step
};
struct ReclaimStep {
  bool done = false;
  // When set, CompactFreed of it comes before the next step.
  std::optional<uint64_t> compact;
  uint64_t bytes_copied = 0;
  uint64_t bytes_freed = 0;
  uint64_t segments_freed = 0;
};
// Bytes of records with their keys, by what became of them.
struct SpaceTotals {
  uint64_t segments = 0;
  uint64_t live_bytes = 0;
  uint64_t dead_bytes = 0;
  uint64_t origin_bytes = 0;
};

void AddPartTotals(const PartKey& key, const IndexEntry& entry, SpecTotals* totals);
void SubtractPartTotals(const PartKey& key, const IndexEntry& entry, SpecTotals* totals);
void PutTotals(absl::string_view spec, const SpecTotals& totals, KvBatch* batch);

// InvalidArgument or DataLoss unless every part fits the spec and its payload decodes to finite
// values. Any thread: the costly half of a Put.
absl::Status CheckPut(const PutItem& item);

// What Visit shows of a part: it lies in the store's memory, and is gone after the call.
struct PartView {
  uint32_t row_count = 0;
  absl::string_view payload;
};
// The part that its record should hold. DataLoss, naming the part, if there is no record or it does
// not hold that part.
absl::StatusOr<PartView> ViewPart(std::optional<absl::string_view> record_bytes, const PartKey& key,
                                  const IndexEntry& entry);
using PartVisitor = absl::FunctionRef<absl::Status(size_t, const PartView&)>;

class TeacherCache {
 public:
  // Takes the next incarnation. `new_store_id` names a cache that is opened for the first time.
  // `store` has the families of CacheFamilies() and must outlive the result. FailedPrecondition if
  // the cache was written by a program with another format.
  static absl::StatusOr<std::unique_ptr<TeacherCache>> Open(KvStore& store,
                                                            const std::string& new_store_id);
  // Segments of small parts are closed once they are larger. A bounded cache has smaller ones, so
  // that one that is rewritten does not need much of its room. Before the first Put.
  void set_segment_bytes(uint64_t bytes) { segment_bytes_min_ = bytes; }
  uint64_t segment_bytes_min() const { return segment_bytes_min_; }
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
  // As Get, without a copy: calls `visit` with the position of each key that is there, in the order
  // in which the parts lie on the disk. Answers how many keys the prefix has. An error of `visit`
  // ends it.
  absl::StatusOr<size_t> Visit(absl::Span<const PartKey> keys, uint64_t bytes_max,
                               PartVisitor visit);
  // Nothing for a part that is noted as damaged.
  absl::StatusOr<std::vector<std::optional<IndexEntry>>> Find(absl::Span<const PartKey> keys);
  // Damaged parts or not.
  absl::StatusOr<std::vector<std::optional<IndexEntry>>> FindAll(absl::Span<const PartKey> keys);
  // Of which section a stored part is, as its record says; nullopt when it is not there.
  absl::StatusOr<std::optional<SectionSpec>> SpecOf(const PartKey& key);
  // By canonical spec.
  absl::StatusOr<std::map<std::string, SpecTotals>> Totals();

  // Takes the parts out of the index, all in one synced batch; what is not there is passed over.
  // REQUIRES: called by the writer; at most kRemovePartsMax.
  absl::StatusOr<RemoveCounts> Remove(absl::Span<const Removal> parts);
  // One bounded step of giving dead bytes back: at most kReclaimStepBytes (or one record) are
  // copied. A step that fails may be tried again; a segment with a damaged record stays as it is.
  // REQUIRES: called by the writer.
  absl::StatusOr<ReclaimStep> Reclaim(const ReclaimOptions& options = {});
  // Frees the disk space of a segment that Reclaim deleted. Takes as long as reading what lies
  // beside it in the same files; any thread.
  absl::Status CompactFreed(uint64_t segment);
  absl::StatusOr<SpaceTotals> Space();
  // The origin of the record at `place`.
  absl::StatusOr<Provenance> OriginOf(const Place& place, uint32_t origin_slot);

  // Any thread; on disk once the writer called SaveDamage. Nothing in a cache opened for reading.
  void NoteDamage(const PartKey& key, const absl::Status& damage) {
    if (writable_) damaged_.Note(key, damage);
  }
  bool HasUnsavedDamage() const { return writable_ && damaged_.unsaved(); }
  absl::Status SaveDamage() { return damaged_.Save(store_); }
  size_t damaged_parts() const { return damaged_.size(); }
  bool IsDamaged(const PartKey& key) const { return damaged_.Contains(key); }  // as far as noted

  const CacheIdentity& identity() const { return identity_; }
  KvStore& store() { return store_; }

 private:
  struct NewPart {
    const PutItem* item;
    const Part* part;
    const IndexEntry* moved_from = nullptr;  // where it was, if it is only copied
    std::optional<IndexEntry> replaces;      // a damaged one
  };
  class Group;
  struct Copies;

  explicit TeacherCache(KvStore& store) : store_(store) {}
  absl::Status ReadIdentity(bool* found);
  absl::Status VisitOne(const PartKey& key, const IndexEntry& entry,
                        std::optional<absl::string_view> bytes,
                        absl::FunctionRef<absl::Status(const PartView&)> visit);
  // Unless the part has another entry by now than the one that led to the damage.
  void NoteDamageAt(const PartKey& key, const IndexEntry& entry, const absl::Status& damage);
  absl::Status CompareStored(const PutItem& item, const Part& part, const IndexEntry& entry,
                             PutCounts* counts);
  absl::Status Commit(const std::vector<NewPart>& parts);
  absl::Status AddTotals(const std::vector<NewPart>& parts, Group* group);
  // The part of a record that was not where `before` says; it may have moved meanwhile.
  absl::StatusOr<std::optional<Part>> GetMoved(const PartKey& key, IndexEntry before);
  absl::Status CountOldSegments();
  absl::StatusOr<std::optional<uint64_t>> ChooseSegment(const ReclaimOptions& options);
  absl::Status LookForOrphan(ReclaimStep* step);
  absl::Status CopyNext(ReclaimStep* step);
  absl::Status CollectLive(const std::vector<KvEntry>& entries, Copies* copies);
  absl::Status FreeSegment(uint64_t segment, ReclaimStep* step);

  KvStore& store_;
  DamageList damaged_;
  CacheIdentity identity_;  // constant after Open
  bool writable_ = false;   // constant after Open
  bool counted_ = false;    // of the writer: every segment has its row

  // Of the writer: the segment that small parts go to.
  uint64_t next_segment_ = 1;
  uint64_t segment_ = 0;  // 0: none yet
  uint32_t next_slot_ = 0;
  uint64_t segment_bytes_ = 0;
  uint64_t segment_bytes_min_ = kSegmentBytesMin;
  std::map<std::string, uint32_t> origins_;  // record of the origin -> its slot in segment_

  // Of the writer: the segment being rewritten, and from which slot on.
  std::optional<Place> rewriting_;
  uint64_t orphans_looked_for_ = 0;      // below this segment
  std::set<uint64_t> left_as_they_are_;  // with a damaged record; until the next opening
};

}  // namespace stillhouse
