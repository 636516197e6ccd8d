// The family `index` and the totals, made from the records in `data`.
//
// Owner: an opening or a repair; nobody else uses the store meanwhile. Durability: finished work is
// synced. Interrupted work is begun again by whoever asks NeedsIndex at the next opening.
//
// Rule: an index entry stands if a record of its part lies in its place; a part without such an
// entry gets one for the lowest place that holds it, so that the first write wins.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "storage/teacher_cache.h"

namespace stillhouse {

inline constexpr absl::string_view kIndexBuildingKey = "index_building";  // in `meta` meanwhile

struct IndexBuildOptions {
  // Decode every payload, and remove what does not hold. Off: records are checked by checksum, what
  // does not hold gets no entry and stays.
  bool thorough = false;
  // thorough: of a record that is about to be removed.
  std::function<absl::Status(const KvEntry& record, const absl::Status& damage)> on_damaged;
  // thorough: of a whole record that lies apart from its origin; it is removed, to be put again.
  std::function<absl::Status(PutItem item)> on_moved;
  // thorough: of an index entry that is about to be dropped.
  std::function<absl::Status(const PartKey& key, const IndexEntry& entry)> on_gone;
  std::function<void(uint64_t records)> on_progress;
};
struct IndexBuilt {
  uint64_t records = 0;                       // read
  uint64_t damaged = 0;                       // of them
  uint64_t indexed = 0;                       // got an entry, or another one
  uint64_t dropped = 0;                       // entries without a record
  std::map<std::string, Provenance> origins;  // one for each section, by its canonical spec
};
absl::StatusOr<IndexBuilt> BuildIndex(KvStore& store, const IndexBuildOptions& options);

// Is there no index, or one that was not finished?
absl::StatusOr<bool> NeedsIndex(KvStore& store);
// Empties the index and builds it.
absl::StatusOr<IndexBuilt> RebuildIndex(KvStore& store);

}  // namespace stillhouse
