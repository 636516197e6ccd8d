// Segments: how much of each is alive, as rows of the family `meta`.
//
// Threads: SegmentChanges from the writer, the rest from any. Durability: changes go into the batch
// that makes them true, so the rows are right after every crash; CountSegments finds them again
// from records and index.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "storage/kv_store.h"
#include "storage/record.h"

namespace stillhouse {

inline constexpr uint64_t kIndexKeyBytes = 36;

// In `meta`: every segment has its row. Caches of earlier versions lack it.
inline constexpr absl::string_view kSegmentsCountedKey = "segments";

// Keys and values of records. Live: the index names it.
struct SegmentCounts {
  uint64_t live_bytes = 0;
  uint64_t dead_bytes = 0;
  uint64_t origin_bytes = 0;  // go with the segment
  uint64_t Total() const { return live_bytes + dead_bytes + origin_bytes; }
  friend bool operator==(const SegmentCounts&, const SegmentCounts&) = default;
};
std::string EncodeSegmentCounts(const SegmentCounts& counts);
absl::StatusOr<SegmentCounts> ParseSegmentCounts(absl::string_view bytes);

std::string SegmentRowKey(uint64_t segment);
// The segment is deleted, but the disk space of its keys is not freed yet.
std::string FreedSegmentKey(uint64_t segment);

absl::StatusOr<std::map<uint64_t, SegmentCounts>> ReadSegments(KvStore& store);
absl::StatusOr<std::vector<uint64_t>> ReadFreedSegments(KvStore& store);
// What ReadSegments should give: reads every record.
absl::StatusOr<std::map<uint64_t, SegmentCounts>> CountSegments(KvStore& store);
// All rows anew, as CountSegments finds them.
absl::Status PutSegmentRows(KvStore& store, KvBatch* batch);

// What one batch changes. A cache written before there were rows may lack some: no count goes
// below zero.
class SegmentChanges {
 public:
  void AddLive(uint64_t segment, uint64_t record_bytes) {
    changes_[segment].live += static_cast<int64_t>(kPlaceKeyBytes + record_bytes);
  }
  void AddOrigin(uint64_t segment, uint64_t record_bytes) {
    changes_[segment].origin += static_cast<int64_t>(kPlaceKeyBytes + record_bytes);
  }
  void Kill(uint64_t segment, uint64_t record_bytes) {
    const auto bytes = static_cast<int64_t>(kPlaceKeyBytes + record_bytes);
    changes_[segment].live -= bytes;
    changes_[segment].dead += bytes;
  }
  absl::Status AddTo(KvStore& store, KvBatch* batch) const;

 private:
  struct Change {
    int64_t live = 0, dead = 0, origin = 0;
  };
  std::map<uint64_t, Change> changes_;
};

}  // namespace stillhouse
