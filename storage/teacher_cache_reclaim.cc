// Giving dead bytes back: segments that are mostly dead are copied and freed, step by step.
//
// One segment's way; every arrow is one synced batch, so that a crash leaves it at either end:
//
//   [mostly dead] ─1 live records copied, index and counts swapped─► (again, up to its last slot)
//   [all dead] ─2 range deleted, row gone, marked as freed─► [freed] ─3 compacted─► (mark gone)
#include <algorithm>
#include <limits>

#include "common/log.h"
#include "common/status.h"
#include "storage/teacher_cache.h"

namespace stillhouse {
namespace {

constexpr int kStepRecordsMax = 8192;    // of one step, where records are small
constexpr int kOrphanLooksMax = 256;     // segments looked at in one step
constexpr int kLooksMax = 3;             // for the record of one part, while it moves
constexpr int kIndexEntriesRead = 4096;  // at once, when an old cache is counted

std::string SegmentBegin(uint64_t segment) { return PlaceKey({segment, 0}); }
// Beyond its last key, and below the first of the next: RocksDB takes ends of ranges as included
// when it chooses files to compact.
std::string SegmentEnd(uint64_t segment) {
  return PlaceKey({segment, std::numeric_limits<uint32_t>::max()}) + '\0';
}

bool WorthRewriting(const SegmentCounts& counts, double live_share_max) {
  if (counts.dead_bytes == 0) return false;
  const auto live = static_cast<double>(counts.live_bytes);
  const double all = live + static_cast<double>(counts.dead_bytes);
  return live_share_max >= 1 || live < live_share_max * all;
}

double LiveShare(const SegmentCounts& counts) {
  return static_cast<double>(counts.live_bytes) /
         static_cast<double>(counts.live_bytes + counts.dead_bytes);
}

}  // namespace

// What of a step's records is alive.
struct TeacherCache::Copies {
  struct Copy {
    PutItem* item;
    size_t part;
    IndexEntry from;
  };
  std::map<uint32_t, PutItem> items;  // by the slot of their origin
  std::vector<Copy> copies;           // in order of their slots
  uint64_t bytes = 0;
};

absl::StatusOr<SpaceTotals> TeacherCache::Space() {
  SH_ASSIGN_OR_RETURN(const auto segments, ReadSegments(store_));
  SpaceTotals totals;
  totals.segments = segments.size();
  for (const auto& [segment, counts] : segments) {
    totals.live_bytes += counts.live_bytes;
    totals.dead_bytes += counts.dead_bytes;
    totals.origin_bytes += counts.origin_bytes;
  }
  return totals;
}

absl::StatusOr<std::optional<SectionSpec>> TeacherCache::SpecOf(const PartKey& key) {
  const std::string what = absl::StrCat("section ", key.section.ShortHex(), " row ", key.row_begin);
  std::optional<IndexEntry> before;
  for (int looks = 0; looks < kLooksMax; ++looks) {
    SH_ASSIGN_OR_RETURN(const auto entries, Find({key}));
    if (!entries[0].has_value()) return std::nullopt;
    if (before.has_value() && before->place == entries[0]->place) break;
    before = entries[0];
    SH_ASSIGN_OR_RETURN(const auto bytes, store_.Get(kCacheData, PlaceKey(before->place)));
    if (!bytes.has_value()) continue;
    SH_ASSIGN_OR_RETURN_AT(const PartRecord record, ParsePartRecord(*bytes), what);
    const auto origin = OriginOf(before->place, record.origin);
    if (origin.ok()) return origin->spec;
  }
  return absl::DataLossError(absl::StrCat(what, ": its record or origin is gone"));
}

// Once for a cache that was written before segments had rows. What crashes left in it is found as
// orphans later.
absl::Status TeacherCache::CountOldSegments() {
  if (counted_) return absl::OkStatus();
  SH_ASSIGN_OR_RETURN(const auto done, store_.Get(kCacheMeta, std::string(kSegmentsCountedKey)));
  if (!done.has_value()) {
    std::map<uint64_t, uint64_t> live;
    KvScanOptions scan{.begin = "", .entries_max = kIndexEntriesRead};
    for (bool more = true; more;) {
      SH_ASSIGN_OR_RETURN(const KvScanResult found, store_.Scan(kCacheIndex, scan));
      for (const KvEntry& entry : found.entries) {
        SH_ASSIGN_OR_RETURN(const IndexEntry named, ParseIndexEntry(entry.value));
        live[named.place.segment] += kPlaceKeyBytes + named.record_bytes;
        scan.begin = entry.key + '\0';
      }
      more = found.more;
    }
    SH_ASSIGN_OR_RETURN(const auto known, ReadSegments(store_));
    KvBatch batch;
    for (const auto& [segment, bytes] : live) {
      if (known.contains(segment)) continue;
      batch.Put(kCacheMeta, SegmentRowKey(segment), EncodeSegmentCounts({.live_bytes = bytes}));
    }
    batch.Put(kCacheMeta, std::string(kSegmentsCountedKey), "1");
    SH_RETURN_IF_ERROR(store_.Write(batch, KvStore::Sync::kSync));
  }
  counted_ = true;
  return absl::OkStatus();
}

// The least alive comes first: it gives most for what it costs.
absl::StatusOr<std::optional<uint64_t>> TeacherCache::ChooseSegment(const ReclaimOptions& options) {
  SH_ASSIGN_OR_RETURN(const auto segments, ReadSegments(store_));
  std::optional<uint64_t> chosen;
  double least = 2;
  for (const auto& [segment, counts] : segments) {
    if (left_as_they_are_.contains(segment) || !WorthRewriting(counts, options.live_share_max)) {
      continue;
    }
    const double share = LiveShare(counts);
    if (share >= least) continue;
    least = share;
    chosen = segment;
  }
  return chosen;
}

// Records of a file that was ingested just before a crash have no row, and mostly no index entry.
// Sets `rewriting_` when there is one, `done` when all segments were looked at.
absl::Status TeacherCache::LookForOrphan(ReclaimStep* step) {
  for (int looks = 0; looks < kOrphanLooksMax; ++looks) {
    SH_ASSIGN_OR_RETURN(const KvScanResult next,
                        store_.Scan(kCacheData, {.begin = SegmentBegin(orphans_looked_for_),
                                                 .entries_max = 1,
                                                 .keys_only = true}));
    if (next.entries.empty()) {
      orphans_looked_for_ = 0;
      step->done = true;
      return absl::OkStatus();
    }
    SH_ASSIGN_OR_RETURN(const Place place, ParsePlaceKey(next.entries[0].key));
    orphans_looked_for_ = place.segment + 1;
    if (left_as_they_are_.contains(place.segment)) continue;
    SH_ASSIGN_OR_RETURN(const auto row, store_.Get(kCacheMeta, SegmentRowKey(place.segment)));
    if (row.has_value()) continue;
    rewriting_ = Place{place.segment, 0};
    return absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::StatusOr<ReclaimStep> TeacherCache::Reclaim(const ReclaimOptions& options) {
  SH_CHECK(writable_, "a cache opened for reading was written to");
  ReclaimStep step;
  if (options.compacted.has_value()) {
    KvBatch batch;
    batch.Delete(kCacheMeta, FreedSegmentKey(*options.compacted));
    SH_RETURN_IF_ERROR(store_.Write(batch, KvStore::Sync::kNoSync));
  }
  SH_RETURN_IF_ERROR(CountOldSegments());
  SH_ASSIGN_OR_RETURN(const auto freed, ReadFreedSegments(store_));
  if (!freed.empty()) {
    step.compact = freed.front();
    return step;
  }
  if (!rewriting_.has_value()) {
    SH_ASSIGN_OR_RETURN(const auto chosen, ChooseSegment(options));
    if (chosen.has_value()) {
      rewriting_ = Place{*chosen, 0};
    } else if (options.orphans) {
      SH_RETURN_IF_ERROR(LookForOrphan(&step));
    } else {
      step.done = true;
    }
    if (!rewriting_.has_value()) return step;
  }
  if (rewriting_->segment == segment_) segment_ = 0;  // nothing is added to it any more
  SH_RETURN_IF_ERROR(CopyNext(&step));
  return step;
}

absl::Status TeacherCache::CopyNext(ReclaimStep* step) {
  const Place from = *rewriting_;
  auto found = store_.Scan(kCacheData, {.begin = PlaceKey(from),
                                        .end = SegmentEnd(from.segment),
                                        .entries_max = kStepRecordsMax,
                                        .bytes_max = kReclaimStepBytes});
  Copies live;
  absl::Status status = found.status();
  if (status.ok()) status = CollectLive(found->entries, &live);
  if (absl::IsDataLoss(status)) {
    // What is damaged is for repair to judge; nothing of it may be lost here.
    LogError("segment ", from.segment, " stays as it is: ", std::string(status.message()));
    left_as_they_are_.insert(from.segment);
    rewriting_.reset();
    return absl::OkStatus();
  }
  SH_RETURN_IF_ERROR(status);
  if (!live.copies.empty()) {
    std::vector<NewPart> parts;
    for (const Copies::Copy& copy : live.copies) {
      parts.push_back({copy.item, &copy.item->parts[copy.part], &copy.from, std::nullopt});
    }
    SH_RETURN_IF_ERROR(Commit(parts));
    step->bytes_copied = live.bytes;
  }
  if (!found->more) return FreeSegment(from.segment, step);
  SH_ASSIGN_OR_RETURN(Place last, ParsePlaceKey(found->entries.back().key));
  ++last.slot;
  rewriting_ = last;
  return absl::OkStatus();
}

absl::Status TeacherCache::CollectLive(const std::vector<KvEntry>& entries, Copies* copies) {
  struct Candidate {
    Place place;
    PartRecord record;
    uint64_t bytes;
  };
  std::vector<Candidate> candidates;
  std::vector<PartKey> keys;
  for (const KvEntry& entry : entries) {
    if (IsOriginRecord(entry.value)) continue;
    SH_ASSIGN_OR_RETURN(const Place place, ParsePlaceKey(entry.key));
    SH_ASSIGN_OR_RETURN(const PartRecord record, ParsePartRecord(entry.value));
    candidates.push_back({place, record, entry.key.size() + entry.value.size()});
    keys.push_back(record.key);
  }
  // Damaged or not: nothing of it may be lost here.
  SH_ASSIGN_OR_RETURN(const auto indexed, FindAll(keys));
  for (size_t i = 0; i < candidates.size(); ++i) {
    const auto& [place, record, bytes] = candidates[i];
    if (!indexed[i].has_value() || indexed[i]->place != place) continue;
    const auto [item, added] = copies->items.try_emplace(record.origin);
    if (added) {
      SH_ASSIGN_OR_RETURN(item->second.provenance, OriginOf(place, record.origin));
    }
    item->second.parts.push_back({record.key, record.row_count, std::string(record.payload)});
    copies->copies.push_back({&item->second, item->second.parts.size() - 1, *indexed[i]});
    copies->bytes += bytes;
  }
  return absl::OkStatus();
}

// The deletion is flushed into a file of its own: beside records of other segments it would make
// one file that overlaps all of them, and compacting the segment would rewrite the whole cache.
absl::Status TeacherCache::FreeSegment(uint64_t segment, ReclaimStep* step) {
  SH_ASSIGN_OR_RETURN(const auto row, store_.Get(kCacheMeta, SegmentRowKey(segment)));
  if (row.has_value()) {
    SH_ASSIGN_OR_RETURN(const SegmentCounts counts, ParseSegmentCounts(*row));
    step->bytes_freed = counts.Total();
  }
  SH_RETURN_IF_ERROR(store_.FlushFamily(kCacheData));
  KvBatch batch;
  batch.DeleteRange(kCacheData, SegmentBegin(segment), SegmentEnd(segment));
  batch.Delete(kCacheMeta, SegmentRowKey(segment));
  batch.Put(kCacheMeta, FreedSegmentKey(segment), "");
  SH_RETURN_IF_ERROR(store_.Write(batch, KvStore::Sync::kSync));
  rewriting_.reset();
  step->segments_freed = 1;
  step->compact = segment;
  return store_.FlushFamily(kCacheData);
}

absl::Status TeacherCache::CompactFreed(uint64_t segment) {
  return store_.CompactRange(kCacheData, SegmentBegin(segment), SegmentEnd(segment));
}

}  // namespace stillhouse
