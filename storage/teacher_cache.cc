#include "storage/teacher_cache.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "common/byte_io.h"
#include "common/log.h"
#include "common/status.h"
#include "storage/codec.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kCacheFormat = "1";
constexpr absl::string_view kFormatKey = "format";
constexpr absl::string_view kTotalsPrefix = "totals/";
constexpr uint64_t kSegmentsSkipped = 1 << 20;  // more than one opening makes

std::string Describe(const PartKey& key) {
  return absl::StrCat("section ", key.section.ShortHex(), " row ", key.row_begin);
}

std::string EncodeTotals(const SpecTotals& totals) {
  ByteWriter out;
  for (const uint64_t value : {totals.sections, totals.parts, totals.rows, totals.record_bytes,
                               totals.payload_bytes, totals.index_bytes}) {
    out.Put(value);
  }
  return out.Take();
}

absl::StatusOr<SpecTotals> ParseTotals(absl::string_view bytes) {
  ByteReader reader(bytes);
  SpecTotals totals;
  for (uint64_t* value : {&totals.sections, &totals.parts, &totals.rows, &totals.record_bytes,
                          &totals.payload_bytes, &totals.index_bytes}) {
    reader.Get(value);
  }
  if (!reader.AtEnd()) return absl::DataLossError("the totals of the cache are malformed");
  return totals;
}

absl::Status CheckPart(const SectionSpec& spec, const Part& part) {
  const uint32_t rows_max = spec.RowsPerPart();
  if (part.key.row_begin % rows_max != 0 || part.row_count == 0 || part.row_count > rows_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("rows ", part.key.row_begin, " + ", part.row_count, " are no part of ",
                     spec.Canonical(), ", which has ", rows_max, " rows a part"));
  }
  return CanonicalValues(spec, part.payload, part.row_count).status();
}

bool SameValues(const SectionSpec& spec, absl::string_view a, absl::string_view b, uint32_t rows) {
  if (a == b) return true;
  const absl::StatusOr<std::string> left = CanonicalValues(spec, a, rows);
  const absl::StatusOr<std::string> right = CanonicalValues(spec, b, rows);
  return left.ok() && right.ok() && *left == *right;
}

// Above every segment in `data`.
absl::StatusOr<uint64_t> NextSegment(KvStore& store) {
  const absl::StatusOr<KvScanResult> last =
      store.Scan(kCacheData, {.entries_max = 1, .reverse = true, .keys_only = true});
  if (last.ok()) {
    if (last->entries.empty()) return 1;
    SH_ASSIGN_OR_RETURN(const Place place, ParsePlaceKey(last->entries[0].key));
    return place.segment + 1;
  }
  if (!absl::IsDataLoss(last.status())) return last.status();
  // The last block is damaged. It holds few segments, and numbers are not scarce.
  uint64_t highest = 0;
  std::string from;
  for (bool more = true; more;) {
    SH_ASSIGN_OR_RETURN(const KvScanResult found, store.Scan(kCacheIndex, {.begin = from}));
    more = found.more;
    for (const KvEntry& entry : found.entries) {
      from = entry.key + '\0';
      SH_ASSIGN_OR_RETURN(const IndexEntry indexed, ParseIndexEntry(entry.value));
      highest = std::max(highest, indexed.place.segment);
    }
  }
  return highest + kSegmentsSkipped;
}

}  // namespace

void AddPartTotals(const PartKey& key, const IndexEntry& entry, SpecTotals* totals) {
  totals->sections += key.row_begin == 0;
  totals->parts += 1;
  totals->rows += entry.row_count;
  totals->record_bytes += kPlaceKeyBytes + entry.record_bytes;
  totals->payload_bytes += entry.record_bytes - kRecordOverheadBytes;
  totals->index_bytes += kIndexKeyBytes + EncodeIndexEntry(entry).size();
}

void SubtractPartTotals(const PartKey& key, const IndexEntry& entry, SpecTotals* totals) {
  SpecTotals part;
  AddPartTotals(key, entry, &part);
  const auto take = [&](uint64_t SpecTotals::*field) {
    totals->*field -= std::min(totals->*field, part.*field);
  };
  take(&SpecTotals::sections);
  take(&SpecTotals::parts);
  take(&SpecTotals::rows);
  take(&SpecTotals::record_bytes);
  take(&SpecTotals::payload_bytes);
  take(&SpecTotals::index_bytes);
}

void PutTotals(absl::string_view spec, const SpecTotals& totals, KvBatch* batch) {
  batch->Put(kCacheMeta, absl::StrCat(kTotalsPrefix, spec), EncodeTotals(totals));
}

std::vector<KvFamilyOptions> CacheFamilies() {
  return {
      {.name = "data", .automatic_compaction = false, .point_lookups = true},
      {.name = "index", .automatic_compaction = false, .point_lookups = true, .derived = true},
      {.name = std::string(kObjectsFamily), .automatic_compaction = false, .point_lookups = false},
      {.name = "meta",
       .automatic_compaction = true,
       .point_lookups = false,
       .memtable_bytes = 1 << 20},
  };
}

absl::Status CheckPut(const PutItem& item) {
  if (item.parts.empty() || item.parts.size() > kPutPartsMax) {
    return absl::InvalidArgumentError(absl::StrCat("a put of ", item.parts.size(), " parts"));
  }
  if (item.provenance.producer_class.size() > kProducerClassBytesMax) {
    return absl::InvalidArgumentError("the producer class is longer than 4096 bytes");
  }
  for (const Part& part : item.parts) {
    SH_RETURN_IF_ERROR_AT(CheckPart(item.provenance.spec, part), Describe(part.key));
  }
  return absl::OkStatus();
}

absl::Status TeacherCache::ReadIdentity(bool* found) {
  SH_ASSIGN_OR_RETURN(
      const auto values,
      store_.MultiGet(kCacheMeta, {std::string(kFormatKey), std::string(kStoreIdKey),
                                   std::string(kIncarnationKey)}));
  *found = values[0].has_value();
  if (!*found) return absl::OkStatus();
  if (*values[0] != kCacheFormat) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the cache has format ", *values[0], "; this program reads format ", kCacheFormat));
  }
  if (!values[1].has_value() || !values[2].has_value() || values[2]->size() != 8) {
    return absl::DataLossError("the identity of the cache is malformed");
  }
  identity_.store_id = *values[1];
  ByteReader(*values[2]).Get(&identity_.incarnation);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<TeacherCache>> TeacherCache::Open(KvStore& store,
                                                                 const std::string& new_store_id) {
  auto cache = std::unique_ptr<TeacherCache>(new TeacherCache(store));
  bool found = false;
  SH_RETURN_IF_ERROR(cache->ReadIdentity(&found));
  SH_ASSIGN_OR_RETURN(cache->next_segment_, NextSegment(store));
  // A number whose segment was freed is not used again as long as anything remembers it.
  SH_ASSIGN_OR_RETURN(const auto rows, ReadSegments(store));
  if (!rows.empty()) {
    cache->next_segment_ = std::max(cache->next_segment_, rows.rbegin()->first + 1);
  }
  SH_ASSIGN_OR_RETURN(const auto freed, ReadFreedSegments(store));
  if (!freed.empty()) cache->next_segment_ = std::max(cache->next_segment_, freed.back() + 1);
  if (!found) cache->identity_.store_id = new_store_id;
  ++cache->identity_.incarnation;
  ByteWriter incarnation;
  incarnation.Put(cache->identity_.incarnation);
  KvBatch batch;
  batch.Put(kCacheMeta, std::string(kFormatKey), std::string(kCacheFormat));
  batch.Put(kCacheMeta, std::string(kStoreIdKey), cache->identity_.store_id);
  batch.Put(kCacheMeta, std::string(kIncarnationKey), incarnation.Take());
  if (!found) batch.Put(kCacheMeta, std::string(kSegmentsCountedKey), "1");
  SH_RETURN_IF_ERROR(store.Write(batch, KvStore::Sync::kSync));
  SH_RETURN_IF_ERROR(cache->damaged_.Load(store));
  cache->writable_ = true;
  return cache;
}

absl::StatusOr<std::unique_ptr<TeacherCache>> TeacherCache::OpenReadOnly(KvStore& store) {
  auto cache = std::unique_ptr<TeacherCache>(new TeacherCache(store));
  bool found = false;
  SH_RETURN_IF_ERROR(cache->ReadIdentity(&found));
  if (!found) return absl::NotFoundError("the database holds no cache");
  SH_RETURN_IF_ERROR(cache->damaged_.Load(store));
  return cache;
}

// Records of one group on their way into the store: some into a file, some into the batch.
class TeacherCache::Group {
 public:
  explicit Group(TeacherCache& cache) : cache_(cache) {}

  absl::Status AddToFile(const NewPart& part) {
    if (file_ == nullptr) {
      SH_ASSIGN_OR_RETURN(file_, cache_.store_.NewSortedFile(kCacheData));
      file_segment_ = cache_.next_segment_++;
    }
    const std::string origin = EncodeOriginRecord(part.item->provenance);
    const auto [known, added] = file_origins_.try_emplace(origin, file_slot_);
    if (added) {
      SH_RETURN_IF_ERROR(file_->Add(PlaceKey({file_segment_, file_slot_++}), origin));
      segments_.AddOrigin(file_segment_, origin.size());
    }
    const Place place{file_segment_, file_slot_++};
    const std::string record = Encode(*part.part, known->second);
    SH_RETURN_IF_ERROR(file_->Add(PlaceKey(place), record));
    AddIndex(part, place, record.size());
    return absl::OkStatus();
  }

  void AddToBatch(const NewPart& part) {
    if (cache_.segment_ == 0 || cache_.segment_bytes_ >= cache_.segment_bytes_min_) {
      cache_.segment_ = cache_.next_segment_++;
      cache_.next_slot_ = 0;
      cache_.segment_bytes_ = 0;
      cache_.origins_.clear();
    }
    std::string origin = EncodeOriginRecord(part.item->provenance);
    const auto [known, added] = cache_.origins_.try_emplace(origin, cache_.next_slot_);
    if (added) {
      segments_.AddOrigin(cache_.segment_, origin.size());
      batch_.Put(kCacheData, PlaceKey({cache_.segment_, cache_.next_slot_++}), std::move(origin));
    }
    const Place place{cache_.segment_, cache_.next_slot_++};
    std::string record = Encode(*part.part, known->second);
    AddIndex(part, place, record.size());
    cache_.segment_bytes_ += record.size();
    batch_.Put(kCacheData, PlaceKey(place), std::move(record));
  }

  absl::Status Commit() {
    SH_RETURN_IF_ERROR(segments_.AddTo(cache_.store_, &batch_));
    if (file_ != nullptr) SH_RETURN_IF_ERROR(cache_.store_.Ingest(std::move(file_)));
    return cache_.store_.Write(batch_, KvStore::Sync::kSync);
  }

  KvBatch* batch() { return &batch_; }
  // In order of the parts added.
  const std::vector<IndexEntry>& entries() const { return entries_; }

 private:
  static std::string Encode(const Part& part, uint32_t origin) {
    return EncodePartRecord({.key = part.key,
                             .row_count = part.row_count,
                             .codec = static_cast<uint8_t>(part.payload[0]),
                             .table = kTableNone,
                             .origin = origin,
                             .payload = part.payload});
  }
  void AddIndex(const NewPart& added, const Place& place, uint64_t record_bytes) {
    const Part& part = *added.part;
    entries_.push_back({place, part.row_count, static_cast<uint32_t>(record_bytes)});
    batch_.Put(kCacheIndex, IndexKey(part.key), EncodeIndexEntry(entries_.back()));
    segments_.AddLive(place.segment, record_bytes);
    if (added.moved_from != nullptr) Kill(*added.moved_from);
    if (added.replaces.has_value()) Kill(*added.replaces);
  }

  void Kill(const IndexEntry& entry) { segments_.Kill(entry.place.segment, entry.record_bytes); }

  TeacherCache& cache_;
  KvBatch batch_;
  SegmentChanges segments_;
  std::vector<IndexEntry> entries_;
  std::unique_ptr<KvSortedFile> file_;
  uint64_t file_segment_ = 0;
  uint32_t file_slot_ = 0;
  std::map<std::string, uint32_t> file_origins_;
};

absl::Status TeacherCache::AddTotals(const std::vector<NewPart>& parts, Group* group) {
  SH_ASSIGN_OR_RETURN(auto totals, Totals());
  std::map<std::string, SpecTotals> changed;
  for (size_t i = 0; i < parts.size(); ++i) {
    const NewPart& added = parts[i];
    const std::string spec = added.item->provenance.spec.Canonical();
    SpecTotals& total = changed.try_emplace(spec, totals[spec]).first->second;
    const PartKey& key = added.part->key;
    // Of one that is moved too: an entry's length depends on the place.
    if (added.moved_from != nullptr) SubtractPartTotals(key, *added.moved_from, &total);
    if (added.replaces.has_value()) SubtractPartTotals(key, *added.replaces, &total);
    AddPartTotals(key, group->entries()[i], &total);
    if (added.moved_from == nullptr && damaged_.Contains(key)) {
      DamageList::Release(key, group->batch());
    }
  }
  for (const auto& [spec, total] : changed) PutTotals(spec, total, group->batch());
  return absl::OkStatus();
}

absl::Status TeacherCache::Commit(const std::vector<NewPart>& parts) {
  uint64_t bytes = 0, large_bytes = 0;
  for (const NewPart& added : parts) {
    if (added.replaces.has_value()) SH_RETURN_IF_ERROR(CountOldSegments());
    bytes += added.part->payload.size();
    if (added.part->payload.size() >= kLargePartBytes) large_bytes += added.part->payload.size();
  }
  // Small ones that fill a segment need no log: in a file each byte is written once.
  const bool all_in_file = bytes >= segment_bytes_min_;
  const bool large_in_file = large_bytes >= kIngestBytesMin;
  Group group(*this);
  absl::Status status;
  for (const NewPart& added : parts) {
    if (!status.ok()) break;
    const bool large = added.part->payload.size() >= kLargePartBytes;
    if (all_in_file || (large && large_in_file)) {
      status = group.AddToFile(added);
    } else {
      group.AddToBatch(added);
    }
  }
  if (status.ok()) status = AddTotals(parts, &group);
  if (status.ok()) status = group.Commit();
  // Slots and origins given out to a group that failed may or may not be on disk: begin a new
  // segment.
  if (!status.ok()) segment_ = 0;
  if (status.ok() && damaged_.size() > 0) {
    for (const NewPart& added : parts) damaged_.Forget(added.part->key);
  }
  return status;
}

absl::Status TeacherCache::CompareStored(const PutItem& item, const Part& part,
                                         const IndexEntry& entry, PutCounts* counts) {
  SH_ASSIGN_OR_RETURN(const auto bytes, store_.Get(kCacheData, PlaceKey(entry.place)));
  SH_RETURN_IF_ERROR(ViewPart(bytes, part.key, entry).status());
  SH_ASSIGN_OR_RETURN(const PartRecord stored, ParsePartRecord(*bytes));
  if (stored.row_count == part.row_count &&
      SameValues(item.provenance.spec, stored.payload, part.payload, part.row_count)) {
    ++counts->already;
    return absl::OkStatus();
  }
  ++counts->mismatched;
  SH_ASSIGN_OR_RETURN(const Provenance origin, OriginOf(entry.place, stored.origin));
  const std::string line =
      absl::StrCat("other values for ", Describe(part.key), " (", item.provenance.spec.Canonical(),
                   ") of chunk ", item.provenance.chunk, ": the first write stays");
  if (origin.producer_class == item.provenance.producer_class) {
    LogError(line, "; both came from one producer class, which should give the same bytes");
  } else {
    LogWarning(line, "; they came from two producer classes");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<PutCounts>> TeacherCache::Put(absl::Span<const PutItem> items) {
  SH_CHECK(writable_, "a cache opened for reading was written to");
  std::vector<PutCounts> counts(items.size());
  std::vector<NewPart> fresh;
  absl::flat_hash_map<std::string, const Part*> in_flight;  // of this group, by index key
  for (size_t i = 0; i < items.size(); ++i) {
    std::vector<PartKey> keys;
    for (const Part& part : items[i].parts) keys.push_back(part.key);
    SH_ASSIGN_OR_RETURN(const auto found, FindAll(keys));
    for (size_t p = 0; p < keys.size(); ++p) {
      const Part& part = items[i].parts[p];
      if (found[p].has_value() && !damaged_.Contains(part.key)) {
        const absl::Status compared = CompareStored(items[i], part, *found[p], &counts[i]);
        if (!absl::IsDataLoss(compared)) {
          SH_RETURN_IF_ERROR(compared);
          continue;
        }
        NoteDamage(part.key, compared);  // and replaced now
      }
      const auto [other, added] = in_flight.try_emplace(IndexKey(part.key), &part);
      if (added) {
        fresh.push_back({&items[i], &part, nullptr, found[p]});
        ++counts[i].stored;
      } else if (other->second->row_count == part.row_count &&
                 SameValues(items[i].provenance.spec, other->second->payload, part.payload,
                            part.row_count)) {
        ++counts[i].already;
      } else {
        ++counts[i].mismatched;
        LogWarning("two values for ", Describe(part.key), " at the same time: the first stays");
      }
    }
  }
  if (!fresh.empty()) SH_RETURN_IF_ERROR(Commit(fresh));
  return counts;
}

absl::StatusOr<RemoveCounts> TeacherCache::Remove(absl::Span<const Removal> parts) {
  SH_CHECK(writable_, "a cache opened for reading was written to");
  SH_CHECK(parts.size() <= kRemovePartsMax, parts.size(), " parts");
  SH_RETURN_IF_ERROR(CountOldSegments());
  std::vector<PartKey> keys;
  for (const Removal& removal : parts) keys.push_back(removal.key);
  SH_ASSIGN_OR_RETURN(const auto found, FindAll(keys));
  SH_ASSIGN_OR_RETURN(auto totals, Totals());
  RemoveCounts counts;
  KvBatch batch;
  SegmentChanges segments;
  std::set<std::string> changed;
  absl::flat_hash_set<std::string> seen;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string index_key = IndexKey(keys[i]);
    if (!found[i].has_value() || !seen.insert(index_key).second) continue;
    const IndexEntry& entry = *found[i];
    const std::string spec = parts[i].spec.Canonical();
    const uint64_t record_bytes = kPlaceKeyBytes + entry.record_bytes;
    const uint64_t index_bytes = index_key.size() + EncodeIndexEntry(entry).size();
    SubtractPartTotals(keys[i], entry, &totals[spec]);
    changed.insert(spec);
    counts.sections += keys[i].row_begin == 0;
    counts.parts += 1;
    counts.bytes += record_bytes + index_bytes;
    segments.Kill(entry.place.segment, entry.record_bytes);
    batch.Delete(kCacheIndex, index_key);
    if (damaged_.Contains(keys[i])) DamageList::Release(keys[i], &batch);
  }
  if (batch.empty()) return counts;
  for (const std::string& spec : changed) {
    const std::string key = absl::StrCat(kTotalsPrefix, spec);
    if (totals[spec].parts > 0) {
      batch.Put(kCacheMeta, key, EncodeTotals(totals[spec]));
    } else {
      batch.Delete(kCacheMeta, key);
    }
  }
  SH_RETURN_IF_ERROR(segments.AddTo(store_, &batch));
  SH_RETURN_IF_ERROR(store_.Write(batch, KvStore::Sync::kSync));
  if (damaged_.size() > 0) {
    for (const PartKey& key : keys) damaged_.Forget(key);
  }
  return counts;
}

absl::StatusOr<std::map<std::string, SpecTotals>> TeacherCache::Totals() {
  SH_ASSIGN_OR_RETURN(const KvScanResult found,
                      store_.Scan(kCacheMeta, {.begin = std::string(kTotalsPrefix),
                                               .end = "totals0",  // '0' follows '/'
                                               .entries_max = kKvScanEntriesMax}));
  std::map<std::string, SpecTotals> totals;
  for (const KvEntry& entry : found.entries) {
    SH_ASSIGN_OR_RETURN(totals[entry.key.substr(kTotalsPrefix.size())], ParseTotals(entry.value));
  }
  return totals;
}

absl::StatusOr<Provenance> TeacherCache::OriginOf(const Place& place, uint32_t origin_slot) {
  SH_ASSIGN_OR_RETURN(const std::optional<std::string> bytes,
                      store_.Get(kCacheData, PlaceKey({place.segment, origin_slot})));
  if (!bytes.has_value()) return absl::DataLossError("the origin of a record is gone");
  return ParseOriginRecord(*bytes);
}

}  // namespace stillhouse
