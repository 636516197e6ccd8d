#include "storage/index_builder.h"

#include <map>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "common/log.h"
#include "common/status.h"
#include "storage/codec.h"
#include "storage/segments.h"

namespace stillhouse {
namespace {

constexpr int kEntriesOfAStep = 2000;
constexpr uint64_t kStepBytesMax = 32ull << 20;
constexpr size_t kOriginsMax = 4096;  // remembered at once

class Builder {
 public:
  Builder(KvStore& store, const IndexBuildOptions& options) : store_(store), options_(options) {}

  absl::StatusOr<IndexBuilt> Run() {
    SH_RETURN_IF_ERROR(ForEachStep(kCacheData, [this](auto& entries) { return Records(entries); }));
    if (options_.thorough) {
      SH_RETURN_IF_ERROR(
          ForEachStep(kCacheIndex, [this](auto& entries) { return Entries(entries); }));
    }
    KvBatch batch;
    batch.DeleteRange(kCacheMeta, "totals/", "totals0");
    for (const auto& [spec, totals] : totals_) PutTotals(spec, totals, &batch);
    SH_RETURN_IF_ERROR(PutSegmentRows(store_, &batch));
    SH_RETURN_IF_ERROR(store_.Write(batch, KvStore::Sync::kSync));
    return result_;
  }

 private:
  struct Found {
    const KvEntry* entry;
    Place place;
    PartRecord record;
    Provenance origin;
  };

  template <typename Work>
  absl::Status ForEachStep(KvFamily family, Work work) {
    std::string from;
    for (bool more = true; more;) {
      SH_ASSIGN_OR_RETURN(
          const KvScanResult found,
          store_.Scan(family,
                      {.begin = from, .entries_max = kEntriesOfAStep, .bytes_max = kStepBytesMax}));
      more = found.more;
      if (!found.entries.empty()) from = found.entries.back().key + '\0';
      SH_RETURN_IF_ERROR(work(found.entries));
    }
    return absl::OkStatus();
  }

  absl::Status Records(const std::vector<KvEntry>& entries) {
    KvBatch batch;
    std::vector<Found> parts;
    for (const KvEntry& entry : entries) {
      ++result_.records;
      Found found{&entry, {}, {}, {}};
      const absl::Status status = Check(entry, &found);
      if (!status.ok()) {
        SH_RETURN_IF_ERROR(Damaged(entry, status, &batch));
      } else if (!IsOriginRecord(entry.value)) {
        parts.push_back(std::move(found));
      }
    }
    SH_RETURN_IF_ERROR(Index(parts, &batch));
    SH_RETURN_IF_ERROR(store_.Write(batch, KvStore::Sync::kNoSync));
    if (options_.on_progress) options_.on_progress(result_.records);
    return absl::OkStatus();
  }

  absl::Status Damaged(const KvEntry& entry, const absl::Status& damage, KvBatch* batch) {
    ++result_.damaged;
    if (!options_.thorough) {
      LogWarning("a record gets no index entry: ", damage.message());
      return absl::OkStatus();
    }
    SH_RETURN_IF_ERROR(options_.on_damaged(entry, damage));
    batch->Delete(kCacheData, entry.key);
    return absl::OkStatus();
  }

  // Does the record hold by itself? One that lies apart from its origin is told by Index.
  absl::Status Check(const KvEntry& entry, Found* found) {
    SH_ASSIGN_OR_RETURN(found->place, ParsePlaceKey(entry.key));
    if (IsOriginRecord(entry.value)) {
      SH_ASSIGN_OR_RETURN(Provenance origin, ParseOriginRecord(entry.value));
      const std::string spec = origin.spec.Canonical();
      result_.origins.try_emplace(spec, std::move(origin));
      return absl::OkStatus();
    }
    SH_ASSIGN_OR_RETURN(found->record, ParsePartRecord(entry.value));
    if (found->record.payload.empty() ||
        static_cast<uint8_t>(found->record.payload[0]) != found->record.codec) {
      return absl::DataLossError("its header names another codec than its payload");
    }
    return absl::OkStatus();
  }

  // The origin in `segment` under which the record's values are sound.
  absl::StatusOr<Provenance> OriginIn(uint64_t segment, const PartRecord& record) {
    if (origins_.size() >= kOriginsMax) origins_.clear();
    const auto [known, added] = origins_.try_emplace({segment, record.origin});
    if (added) {
      SH_ASSIGN_OR_RETURN(const std::optional<std::string> bytes,
                          store_.Get(kCacheData, PlaceKey({segment, record.origin})));
      absl::StatusOr<Provenance> origin = absl::DataLossError("its origin is gone");
      if (bytes.has_value()) origin = ParseOriginRecord(*bytes);
      known->second = std::move(origin);
    }
    SH_RETURN_IF_ERROR(known->second.status());
    if (options_.thorough) {
      SH_RETURN_IF_ERROR(
          CanonicalValues((*known->second).spec, record.payload, record.row_count).status());
    }
    return *known->second;
  }

  absl::Status Index(std::vector<Found>& parts, KvBatch* batch) {
    std::vector<std::string> keys;
    for (const Found& part : parts) keys.push_back(IndexKey(part.record.key));
    SH_ASSIGN_OR_RETURN(const auto values, store_.MultiGet(kCacheIndex, keys));
    absl::flat_hash_map<std::string, Place> fresh;  // entries of this batch
    for (size_t i = 0; i < parts.size(); ++i) {
      Found& part = parts[i];
      std::optional<IndexEntry> entry;
      if (values[i].has_value()) {
        const auto parsed = ParseIndexEntry(*values[i]);
        if (parsed.ok()) entry = *parsed;
      }
      absl::StatusOr<Provenance> origin = OriginIn(part.place.segment, part.record);
      if (!origin.ok()) {
        SH_RETURN_IF_ERROR(WithoutOrigin(part, entry, origin.status(), batch));
        continue;
      }
      if (fresh.contains(keys[i])) continue;
      const IndexEntry own{part.place, part.record.row_count,
                           static_cast<uint32_t>(part.entry->value.size())};
      if (entry.has_value() && entry->place != part.place) {
        SH_ASSIGN_OR_RETURN(const bool stands, Stands(part.record.key, *entry));
        if (stands) continue;  // the other is the one that counts
      }
      AddPartTotals(part.record.key, own, &totals_[origin->spec.Canonical()]);
      const std::string value = EncodeIndexEntry(own);
      if (values[i] == value) continue;
      fresh[keys[i]] = part.place;
      batch->Put(kCacheIndex, keys[i], value);
      ++result_.indexed;
    }
    return absl::OkStatus();
  }

  // A record that was moved to another segment still names its origin's slot in the old one.
  absl::Status WithoutOrigin(const Found& part, const std::optional<IndexEntry>& entry,
                             const absl::Status& damage, KvBatch* batch) {
    if (options_.thorough && entry.has_value() && entry->place.segment != part.place.segment) {
      const auto origin = OriginIn(entry->place.segment, part.record);
      if (origin.ok()) {
        SH_RETURN_IF_ERROR(options_.on_moved(
            {{Part{part.record.key, part.record.row_count, std::string(part.record.payload)}},
             *origin}));
        batch->Delete(kCacheData, part.entry->key);
        return absl::OkStatus();
      }
    }
    return Damaged(*part.entry, damage, batch);
  }

  // Does a sound record of the part lie where the entry says?
  absl::StatusOr<bool> Stands(const PartKey& key, const IndexEntry& entry) {
    SH_ASSIGN_OR_RETURN(const std::optional<std::string> bytes,
                        store_.Get(kCacheData, PlaceKey(entry.place)));
    if (!bytes.has_value()) return false;
    const auto record = ParsePartRecord(*bytes);
    return record.ok() && record->key == key && record->row_count == entry.row_count &&
           bytes->size() == entry.record_bytes && OriginIn(entry.place.segment, *record).ok();
  }

  absl::Status Entries(const std::vector<KvEntry>& entries) {
    KvBatch batch;
    for (const KvEntry& entry : entries) {
      const auto key = ParseIndexKey(entry.key);
      const auto indexed = ParseIndexEntry(entry.value);
      bool stands = false;
      if (key.ok() && indexed.ok()) {
        SH_ASSIGN_OR_RETURN(stands, Stands(*key, *indexed));
      }
      if (stands) continue;
      if (key.ok()) {
        SH_RETURN_IF_ERROR(options_.on_gone(*key, indexed.ok() ? *indexed : IndexEntry{}));
      }
      batch.Delete(kCacheIndex, entry.key);
      ++result_.dropped;
    }
    return store_.Write(batch, KvStore::Sync::kNoSync);
  }

  KvStore& store_;
  const IndexBuildOptions& options_;
  std::map<std::pair<uint64_t, uint32_t>, absl::StatusOr<Provenance>> origins_;
  std::map<std::string, SpecTotals> totals_;  // by canonical spec
  IndexBuilt result_;
};

absl::StatusOr<bool> IsEmpty(KvStore& store, KvFamily family) {
  SH_ASSIGN_OR_RETURN(const KvScanResult found,
                      store.Scan(family, {.entries_max = 1, .keys_only = true}));
  return found.entries.empty();
}

}  // namespace

absl::StatusOr<IndexBuilt> BuildIndex(KvStore& store, const IndexBuildOptions& options) {
  return Builder(store, options).Run();
}

absl::StatusOr<bool> NeedsIndex(KvStore& store) {
  SH_ASSIGN_OR_RETURN(const auto building, store.Get(kCacheMeta, kIndexBuildingKey));
  if (building.has_value()) return true;
  SH_ASSIGN_OR_RETURN(const bool no_index, IsEmpty(store, kCacheIndex));
  if (!no_index) return false;
  SH_ASSIGN_OR_RETURN(const bool no_data, IsEmpty(store, kCacheData));
  return !no_data;
}

absl::StatusOr<IndexBuilt> RebuildIndex(KvStore& store) {
  KvBatch begin;
  begin.Put(kCacheMeta, std::string(kIndexBuildingKey), "1");
  SH_RETURN_IF_ERROR(store.Write(begin, KvStore::Sync::kSync));
  SH_ASSIGN_OR_RETURN(const bool empty, IsEmpty(store, kCacheIndex));
  if (!empty) SH_RETURN_IF_ERROR(store.EmptyFamily(kCacheIndex));
  SH_ASSIGN_OR_RETURN(const IndexBuilt built, BuildIndex(store, {}));
  KvBatch end;
  end.Delete(kCacheMeta, std::string(kIndexBuildingKey));
  SH_RETURN_IF_ERROR(store.Write(end, KvStore::Sync::kSync));
  return built;
}

}  // namespace stillhouse
