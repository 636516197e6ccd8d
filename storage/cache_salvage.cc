#include "storage/cache_salvage.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <set>

#include "absl/strings/match.h"
#include "common/file.h"
#include "common/status.h"
#include "storage/codec.h"
#include "storage/rocks_tables.h"

namespace stillhouse {
namespace {

constexpr uint64_t kPutBytesMax = 16ull << 20;   // of the parts put together
constexpr uint64_t kTableBytesMax = 4ull << 30;  // searched byte by byte
constexpr uint64_t kUnknownSegment = std::numeric_limits<uint64_t>::max();
constexpr char kUnknownProducer[] = "unknown: the origin of this part was damaged";
constexpr char kHeaderPrefix = 'h', kPiecePrefix = 'p';  // keys of the family `objects`

std::string PieceKey(uint64_t generation, uint32_t index) {
  return absl::StrCat(std::string(1, kPiecePrefix), PlaceKey({generation, index}));
}

bool DecodesAs(const Provenance& origin, const PartRecord& record) {
  return CheckPut({{Part{record.key, record.row_count, std::string(record.payload)}}, origin}).ok();
}

std::string SectionOf(const Provenance& origin) {
  return absl::StrCat(origin.spec.Canonical(), " of chunk ", origin.chunk, " of plan ",
                      origin.plan.ShortHex());
}

}  // namespace

void CacheSalvage::Describe(absl::string_view damaged_record, const std::string& place_key) {
  PartRecord record;
  const auto place = ParsePlaceKey(place_key);
  if (!place.ok() || !PeekPartRecord(damaged_record, &record)) return;
  CountHead(record);
  const auto bytes = store_.Get(kCacheData, PlaceKey({place->segment, record.origin}));
  if (!bytes.ok() || !bytes->has_value()) return;
  const auto origin = ParseOriginRecord(**bytes);
  if (origin.ok()) described_[record.key] = SectionOf(*origin);
}

void CacheSalvage::CountHead(const PartRecord& head) {
  if (!count_heads_ || head.table != 0 || head.row_count == 0) return;
  missed_.try_emplace(head.key, IndexEntry{{kUnknownSegment, 0}, head.row_count});
}

absl::StatusOr<CacheSalvage::Origins> CacheSalvage::OriginsOf(const SalvageSource& source) {
  Origins origins;
  for (const std::string& path : source.tables) {
    ScanTable(path, [&](absl::string_view key, absl::string_view value) {
      const auto place = ParsePlaceKey(key);
      if (!place.ok() || !IsOriginRecord(value)) return absl::OkStatus();
      const auto origin = ParseOriginRecord(value);
      if (origin.ok()) origins.emplace(*place, *origin);
      return absl::OkStatus();
    }).IgnoreError();
    if (!source.search_bytes) continue;
    // Those behind the damage: their places are not known, but what decodes under them is.
    SH_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path, kTableBytesMax));
    size_t at = 0;
    for (absl::string_view found; !(found = FindOriginRecord(bytes, &at)).empty();) {
      const auto origin = ParseOriginRecord(found);
      if (origin.ok()) {
        origins.emplace(Place{kUnknownSegment, static_cast<uint32_t>(origins.size())}, *origin);
      }
      at += found.size();
    }
  }
  return origins;
}

// The origin at the place that the record names, in its own segment or in the one where the index
// had it; failing that, any of the source, or of the cache, under whose section it decodes.
std::optional<Provenance> CacheSalvage::OriginFor(const PartRecord& record,
                                                  std::optional<uint64_t> segment,
                                                  const Origins& origins) {
  std::vector<uint64_t> segments;
  if (segment.has_value()) segments.push_back(*segment);
  const auto missed = missed_.find(record.key);
  if (missed != missed_.end()) segments.push_back(missed->second.place.segment);
  for (const uint64_t candidate : segments) {
    const Place place{candidate, record.origin};
    const auto found = origins.find(place);
    if (found != origins.end() && DecodesAs(found->second, record)) return found->second;
    const auto bytes = store_.Get(kCacheData, PlaceKey(place));
    if (!bytes.ok() || !bytes->has_value()) continue;
    const auto origin = ParseOriginRecord(**bytes);
    if (origin.ok() && DecodesAs(*origin, record)) return *origin;
  }
  for (const auto& [place, origin] : origins) {
    if (DecodesAs(origin, record)) return origin;
  }
  for (const auto& [spec, origin] : known_) {
    if (!DecodesAs(origin, record)) continue;
    Provenance some = origin;
    some.producer_class = kUnknownProducer;
    return some;
  }
  return std::nullopt;
}

void CacheSalvage::DescribeHeads(absl::string_view bytes, const Origins& origins, bool served) {
  std::set<std::string> sections;  // that the file tells of
  size_t next = 0;
  for (absl::string_view found; !(found = FindOriginRecord(bytes, &next)).empty();) {
    const auto origin = ParseOriginRecord(found);
    if (origin.ok()) sections.insert(SectionOf(*origin));
    next += found.size();
  }
  for (size_t at = bytes.find(kPartMagic); at != absl::string_view::npos;
       at = bytes.find(kPartMagic, at + 1)) {
    PartRecord head;
    if (!PeekPartRecord(bytes.substr(at), &head)) continue;
    if (served) CountHead(head);
    const auto missed = missed_.find(head.key);
    if (missed == missed_.end()) continue;
    const auto origin = origins.find({missed->second.place.segment, head.origin});
    if (origin != origins.end()) {
      described_[head.key] = SectionOf(origin->second);
    } else if (sections.size() == 1) {
      described_[head.key] = *sections.begin();
    }
  }
}

absl::StatusOr<uint64_t> CacheSalvage::TakeItems(std::vector<PutItem> items,
                                                 TeacherCache& sections) {
  uint64_t stored = 0;
  if (items.empty()) return stored;
  SH_ASSIGN_OR_RETURN(const auto counts, sections.Put(items));
  for (const PutCounts& count : counts) stored += count.stored;
  return stored;
}

absl::StatusOr<uint64_t> CacheSalvage::TakeParts(const SalvageSource& source,
                                                 TeacherCache& sections) {
  SH_ASSIGN_OR_RETURN(const Origins origins, OriginsOf(source));
  uint64_t taken = 0, bytes_waiting = 0;
  std::vector<PutItem> waiting;
  const auto put = [&]() -> absl::Status {
    SH_ASSIGN_OR_RETURN(const uint64_t stored, TakeItems(std::move(waiting), sections));
    taken += stored;
    bytes_waiting = 0;
    waiting.clear();
    return absl::OkStatus();
  };
  const auto take = [&](const PartRecord& record, std::optional<uint64_t> segment) -> absl::Status {
    SH_ASSIGN_OR_RETURN(const auto found, sections.Find({record.key}));
    if (found[0].has_value()) return absl::OkStatus();
    const std::optional<Provenance> origin = OriginFor(record, segment, origins);
    if (!origin.has_value()) return absl::OkStatus();
    waiting.push_back({{Part{record.key, record.row_count, std::string(record.payload)}}, *origin});
    bytes_waiting += record.payload.size();
    return bytes_waiting >= kPutBytesMax ? put() : absl::OkStatus();
  };
  for (const std::string& path : source.tables) {
    SH_RETURN_IF_ERROR(ScanTable(path, [&](absl::string_view key, absl::string_view value) {
      const auto place = ParsePlaceKey(key);
      if (!place.ok() || IsOriginRecord(value)) return absl::OkStatus();
      const auto record = ParsePartRecord(value);
      if (record.ok()) return take(*record, place->segment);
      Describe(value, std::string(key));
      return absl::OkStatus();
    }));
    SH_RETURN_IF_ERROR(put());
    if (!source.search_bytes) continue;
    SH_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path, kTableBytesMax));
    size_t at = 0;
    for (absl::string_view found; !(found = FindPartRecord(bytes, &at)).empty();) {
      SH_ASSIGN_OR_RETURN(const PartRecord record, ParsePartRecord(found));
      SH_RETURN_IF_ERROR(take(record, std::nullopt));
      at += found.size();
    }
    SH_RETURN_IF_ERROR(put());
    DescribeHeads(bytes, origins, source.served);
  }
  // Of what was not found: where all origins of its segment are of one section, that is its.
  for (const auto& [key, entry] : missed_) {
    if (described_.contains(key)) continue;
    std::set<std::string> sections_there;
    for (auto it = origins.lower_bound({entry.place.segment, 0});
         it != origins.end() && it->first.segment == entry.place.segment; ++it) {
      sections_there.insert(SectionOf(it->second));
    }
    if (sections_there.size() == 1) described_[key] = *sections_there.begin();
  }
  return taken;
}

absl::Status CacheSalvage::ForEachGone(
    TeacherCache& sections,
    const std::function<void(const PartKey& key, const IndexEntry& entry)>& visit) {
  for (const auto& [key, entry] : missed_) {
    SH_ASSIGN_OR_RETURN(const auto found, sections.Find({key}));
    if (!found[0].has_value()) visit(key, entry);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::set<Digest>> CacheSalvage::NotDescribed(TeacherCache& sections) {
  std::set<Digest> unknown;
  SH_RETURN_IF_ERROR(ForEachGone(sections, [&](const PartKey& key, const IndexEntry&) {
    if (!described_.contains(key)) unknown.insert(key.section);
  }));
  return unknown;
}

absl::StatusOr<uint64_t> CacheSalvage::ListGone(
    TeacherCache& sections, const std::function<void(const std::string&)>& line) {
  uint64_t gone = 0;
  SH_RETURN_IF_ERROR(ForEachGone(sections, [&](const PartKey& key, const IndexEntry& entry) {
    ++gone;
    std::string what;
    if (const auto described = described_.find(key); described != described_.end()) {
      what = absl::StrCat(described->second, ", ");
    } else if (const auto named = names_.find(key.section); named != names_.end()) {
      what = absl::StrCat(named->second, ", ");
    }
    line(absl::StrCat("part: section ", key.section.ShortHex(), " row ", key.row_begin, " (", what,
                      entry.row_count, " rows)"));
  }));
  return gone;
}

absl::StatusOr<std::optional<std::string>> CacheSalvage::PieceOf(const ObjectHeader& header,
                                                                 uint32_t index,
                                                                 const SalvageSource* source) {
  const std::string key = PieceKey(header.generation, index);
  const auto payload = [&](absl::string_view bytes) -> std::optional<std::string> {
    const auto piece = ParsePieceRecord(bytes);
    if (!piece.ok() || piece->generation != header.generation || piece->index != index) {
      return std::nullopt;
    }
    return std::string(piece->payload);
  };
  if (source != nullptr) {
    for (const std::string& path : source->tables) {
      const std::optional<std::string> bytes = FindInTable(path, key);
      if (!bytes.has_value()) continue;
      std::optional<std::string> found = payload(*bytes);
      if (found.has_value()) return found;
    }
  }
  SH_ASSIGN_OR_RETURN(const std::optional<std::string> bytes, store_.Get(kCacheObjects, key));
  return bytes.has_value() ? payload(*bytes) : std::nullopt;
}

// Copies an object whose pieces are all found, and match its hash, to a generation of its own.
absl::StatusOr<bool> CacheSalvage::Mend(const std::string& name, const ObjectHeader& header,
                                        const SalvageSource* source) {
  const uint32_t pieces = static_cast<uint32_t>((header.size + kPartBytesMax - 1) / kPartBytesMax);
  Sha256 sha;
  for (uint32_t i = 0; i < pieces; ++i) {
    SH_ASSIGN_OR_RETURN(const auto piece, PieceOf(header, i, source));
    if (!piece.has_value()) return false;
    sha.AddRaw(*piece);
  }
  if (sha.Finish() != header.digest) return false;
  const uint64_t generation = next_generation_++;
  for (uint32_t i = 0; i < pieces; ++i) {
    SH_ASSIGN_OR_RETURN(const auto piece, PieceOf(header, i, source));
    if (!piece.has_value()) return absl::InternalError("a piece of an object went away");
    KvBatch batch;
    batch.Put(kCacheObjects, PieceKey(generation, i), EncodePieceRecord({generation, i, *piece}));
    SH_RETURN_IF_ERROR(store_.Write(batch, KvStore::Sync::kNoSync));
  }
  KvBatch batch;
  batch.Put(kCacheObjects, absl::StrCat(std::string(1, kHeaderPrefix), name),
            EncodeObjectHeader({header.size, generation, header.digest}));
  SH_RETURN_IF_ERROR(store_.Write(batch, KvStore::Sync::kSync));
  return true;
}

// Names whose object does not hold, or whose header lies only in a source; `sound` are the others.
absl::Status CacheSalvage::FindObjects(const std::vector<SalvageSource>& sources,
                                       Candidates* candidates, std::set<std::string>* damaged) {
  std::set<std::string> sound;
  next_generation_ = 1;
  const auto seen = [this](uint64_t generation) {
    next_generation_ = std::max(next_generation_, generation + 1);
  };
  SH_ASSIGN_OR_RETURN(const auto objects, ObjectStore::Open(store_, /*writable=*/false));
  std::string from;
  for (bool more = true; more;) {
    SH_ASSIGN_OR_RETURN(const KvScanResult found,
                        store_.Scan(kCacheObjects, {.begin = from, .bytes_max = kPutBytesMax}));
    more = found.more;
    for (const KvEntry& entry : found.entries) {
      from = entry.key + '\0';
      const std::string name = entry.key.substr(1);
      if (entry.key[0] == kPiecePrefix) {
        const auto piece = ParsePlaceKey(name);
        if (piece.ok()) seen(piece->segment);
      } else if (entry.key[0] == kHeaderPrefix) {
        const auto header = ParseObjectHeader(entry.value);
        const bool holds = header.ok() && objects->Verify(name).ok();
        (holds ? sound : *damaged).insert(name);
        if (!header.ok()) continue;
        seen(header->generation);
        if (!holds) (*candidates)[name].push_back({*header, nullptr});
      }
    }
  }
  for (const SalvageSource& source : sources) {
    for (const std::string& path : source.tables) {
      SH_RETURN_IF_ERROR(ScanTable(path, [&](absl::string_view key, absl::string_view value) {
        if (!absl::StartsWith(key, "h")) return absl::OkStatus();
        const auto header = ParseObjectHeader(value);
        if (!header.ok()) return absl::OkStatus();
        const std::string name(key.substr(1));
        seen(header->generation);
        if (!sound.contains(name)) (*candidates)[name].push_back({*header, &source});
        return absl::OkStatus();
      }));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<CacheSalvage::Objects> CacheSalvage::MendObjects(
    const std::vector<SalvageSource>& sources) {
  Candidates candidates;
  std::set<std::string> damaged;
  SH_RETURN_IF_ERROR(FindObjects(sources, &candidates, &damaged));
  for (const std::string& name : damaged) {
    std::vector<Candidate>& all = candidates[name];
    if (all.empty()) continue;  // not even its header can be read
    // The pieces may lie in any of the sources.
    const ObjectHeader header = all[0].header;
    for (const SalvageSource& source : sources) all.push_back({header, &source});
  }
  Objects result;
  for (const auto& [name, all] : candidates) {
    bool mended = false;
    // The last of several is the youngest.
    for (auto it = all.rbegin(); it != all.rend() && !mended; ++it) {
      SH_ASSIGN_OR_RETURN(mended, Mend(name, it->header, it->source));
    }
    if (mended) {
      ++result.taken_back;
      continue;
    }
    const bool was_served =
        damaged.contains(name) || std::any_of(all.begin(), all.end(), [](const Candidate& one) {
          return one.source != nullptr && one.source->served;
        });
    if (!was_served) continue;
    result.gone.push_back(name);
    KvBatch batch;
    batch.Delete(kCacheObjects, absl::StrCat(std::string(1, kHeaderPrefix), name));
    SH_RETURN_IF_ERROR(store_.Write(batch, KvStore::Sync::kSync));
  }
  return result;
}

}  // namespace stillhouse
