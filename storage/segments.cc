#include "storage/segments.h"

#include <algorithm>

#include "common/byte_io.h"
#include "common/status.h"
#include "storage/teacher_cache.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kRowPrefix = "segment/";
constexpr absl::string_view kRowsEnd = "segment0";  // '0' follows '/'
constexpr absl::string_view kFreedPrefix = "freed/";
constexpr absl::string_view kFreedEnd = "freed0";
constexpr int kScanEntries = 4096;
constexpr uint64_t kScanBytes = 16ull << 20;

std::string NumberedKey(absl::string_view prefix, uint64_t segment) {
  return absl::StrCat(prefix, PlaceKey({segment, 0}).substr(0, 8));
}

absl::StatusOr<uint64_t> NumberOf(absl::string_view prefix, absl::string_view key) {
  if (key.size() != prefix.size() + 8) return absl::DataLossError("a segment's key is malformed");
  SH_ASSIGN_OR_RETURN(
      const Place place,
      ParsePlaceKey(absl::StrCat(key.substr(prefix.size()), absl::string_view("\0\0\0\0", 4))));
  return place.segment;
}

// Calls `visit(entry)` for every entry of [begin, end), "" being the end of the family.
template <typename Visit>
absl::Status ForEachEntry(KvStore& store, KvFamily family, std::string begin, absl::string_view end,
                          Visit visit) {
  KvScanOptions scan{.begin = std::move(begin), .entries_max = kScanEntries};
  scan.bytes_max = kScanBytes;
  if (!end.empty()) scan.end = std::string(end);
  for (bool more = true; more;) {
    SH_ASSIGN_OR_RETURN(const KvScanResult found, store.Scan(family, scan));
    for (const KvEntry& entry : found.entries) SH_RETURN_IF_ERROR(visit(entry));
    more = found.more;
    if (more) scan.begin = found.entries.back().key + '\0';
  }
  return absl::OkStatus();
}

uint64_t Changed(uint64_t value, int64_t by) {
  if (by >= 0) return value + static_cast<uint64_t>(by);
  return value - std::min(value, static_cast<uint64_t>(-by));
}

}  // namespace

std::string EncodeSegmentCounts(const SegmentCounts& counts) {
  ByteWriter out;
  for (const uint64_t value : {counts.live_bytes, counts.dead_bytes, counts.origin_bytes}) {
    out.Put(value);
  }
  return out.Take();
}

absl::StatusOr<SegmentCounts> ParseSegmentCounts(absl::string_view bytes) {
  ByteReader reader(bytes);
  SegmentCounts counts;
  for (uint64_t* value : {&counts.live_bytes, &counts.dead_bytes, &counts.origin_bytes}) {
    reader.Get(value);
  }
  if (!reader.AtEnd()) return absl::DataLossError("the counts of a segment are malformed");
  return counts;
}

std::string SegmentRowKey(uint64_t segment) { return NumberedKey(kRowPrefix, segment); }
std::string FreedSegmentKey(uint64_t segment) { return NumberedKey(kFreedPrefix, segment); }

absl::StatusOr<std::map<uint64_t, SegmentCounts>> ReadSegments(KvStore& store) {
  std::map<uint64_t, SegmentCounts> segments;
  SH_RETURN_IF_ERROR(
      ForEachEntry(store, kCacheMeta, std::string(kRowPrefix), kRowsEnd,
                   [&](const KvEntry& entry) -> absl::Status {
                     SH_ASSIGN_OR_RETURN(const uint64_t segment, NumberOf(kRowPrefix, entry.key));
                     SH_ASSIGN_OR_RETURN(segments[segment], ParseSegmentCounts(entry.value));
                     return absl::OkStatus();
                   }));
  return segments;
}

absl::StatusOr<std::vector<uint64_t>> ReadFreedSegments(KvStore& store) {
  std::vector<uint64_t> freed;
  SH_RETURN_IF_ERROR(ForEachEntry(store, kCacheMeta, std::string(kFreedPrefix), kFreedEnd,
                                  [&](const KvEntry& entry) -> absl::Status {
                                    SH_ASSIGN_OR_RETURN(freed.emplace_back(),
                                                        NumberOf(kFreedPrefix, entry.key));
                                    return absl::OkStatus();
                                  }));
  return freed;
}

absl::StatusOr<std::map<uint64_t, SegmentCounts>> CountSegments(KvStore& store) {
  std::map<uint64_t, SegmentCounts> segments;
  SH_RETURN_IF_ERROR(
      ForEachEntry(store, kCacheData, "", "", [&](const KvEntry& entry) -> absl::Status {
        SH_ASSIGN_OR_RETURN(const Place place, ParsePlaceKey(entry.key));
        SegmentCounts& counts = segments[place.segment];
        const uint64_t bytes = entry.key.size() + entry.value.size();
        if (IsOriginRecord(entry.value)) {
          counts.origin_bytes += bytes;
        } else {
          counts.dead_bytes += bytes;  // until the index claims it
        }
        return absl::OkStatus();
      }));
  SH_RETURN_IF_ERROR(
      ForEachEntry(store, kCacheIndex, "", "", [&](const KvEntry& entry) -> absl::Status {
        SH_ASSIGN_OR_RETURN(const IndexEntry named, ParseIndexEntry(entry.value));
        SegmentCounts& counts = segments[named.place.segment];
        const uint64_t bytes = kPlaceKeyBytes + named.record_bytes;
        counts.live_bytes += bytes;
        counts.dead_bytes -= std::min(counts.dead_bytes, bytes);
        return absl::OkStatus();
      }));
  return segments;
}

absl::Status PutSegmentRows(KvStore& store, KvBatch* batch) {
  SH_ASSIGN_OR_RETURN(const auto segments, CountSegments(store));
  batch->DeleteRange(kCacheMeta, std::string(kRowPrefix), std::string(kRowsEnd));
  for (const auto& [segment, counts] : segments) {
    batch->Put(kCacheMeta, SegmentRowKey(segment), EncodeSegmentCounts(counts));
  }
  batch->Put(kCacheMeta, std::string(kSegmentsCountedKey), "1");
  return absl::OkStatus();
}

absl::Status SegmentChanges::AddTo(KvStore& store, KvBatch* batch) const {
  for (const auto& [segment, change] : changes_) {
    const std::string key = SegmentRowKey(segment);
    SH_ASSIGN_OR_RETURN(const auto bytes, store.Get(kCacheMeta, key));
    SegmentCounts counts;
    if (bytes.has_value()) {
      SH_ASSIGN_OR_RETURN(counts, ParseSegmentCounts(*bytes));
    }
    counts.live_bytes = Changed(counts.live_bytes, change.live);
    counts.dead_bytes = Changed(counts.dead_bytes, change.dead);
    counts.origin_bytes = Changed(counts.origin_bytes, change.origin);
    batch->Put(kCacheMeta, key, EncodeSegmentCounts(counts));
  }
  return absl::OkStatus();
}

}  // namespace stillhouse
