// Reading a TeacherCache: from keys to places, and from places to parts that were checked.
#include <algorithm>

#include "common/status.h"
#include "storage/teacher_cache.h"

namespace stillhouse {
namespace {

constexpr int kMovesMax = 3;  // of a record while one read looks for it

std::string Describe(const PartKey& key) {
  return absl::StrCat("section ", key.section.ShortHex(), " row ", key.row_begin);
}

}  // namespace

absl::StatusOr<PartView> ViewPart(std::optional<absl::string_view> record_bytes, const PartKey& key,
                                  const IndexEntry& entry) {
  if (!record_bytes.has_value()) {
    return absl::DataLossError(absl::StrCat(Describe(key), ": its record is gone"));
  }
  SH_ASSIGN_OR_RETURN_AT(const PartRecord record, ParsePartRecord(*record_bytes), Describe(key));
  if (record.key != key || record.row_count != entry.row_count) {
    return absl::DataLossError(
        absl::StrCat(Describe(key), ": the record in its place is of ", Describe(record.key)));
  }
  return PartView{record.row_count, record.payload};
}

absl::StatusOr<std::vector<std::optional<IndexEntry>>> TeacherCache::Find(
    absl::Span<const PartKey> keys) {
  SH_ASSIGN_OR_RETURN(auto entries, FindAll(keys));
  if (damaged_.size() == 0) return entries;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (damaged_.Contains(keys[i])) entries[i].reset();
  }
  return entries;
}

absl::StatusOr<std::vector<std::optional<IndexEntry>>> TeacherCache::FindAll(
    absl::Span<const PartKey> keys) {
  std::vector<std::string> index_keys;
  index_keys.reserve(keys.size());
  for (const PartKey& key : keys) index_keys.push_back(IndexKey(key));
  SH_ASSIGN_OR_RETURN(const auto values, store_.MultiGet(kCacheIndex, index_keys));
  std::vector<std::optional<IndexEntry>> entries(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    if (!values[i].has_value()) continue;
    SH_ASSIGN_OR_RETURN_AT(entries[i], ParseIndexEntry(*values[i]), Describe(keys[i]));
  }
  return entries;
}

absl::Status TeacherCache::VisitOne(const PartKey& key, const IndexEntry& entry,
                                    std::optional<absl::string_view> bytes,
                                    absl::FunctionRef<absl::Status(const PartView&)> visit) {
  if (bytes.has_value()) {
    SH_ASSIGN_OR_RETURN(const PartView part, ViewPart(bytes, key, entry));
    return visit(part);
  }
  SH_ASSIGN_OR_RETURN(const std::optional<Part> moved, GetMoved(key, entry));
  if (!moved.has_value()) return absl::OkStatus();
  return visit({moved->row_count, moved->payload});
}

absl::StatusOr<size_t> TeacherCache::Visit(absl::Span<const PartKey> keys, uint64_t bytes_max,
                                           PartVisitor visit) {
  SH_ASSIGN_OR_RETURN(const auto entries, Find(keys));
  std::vector<size_t> order;  // of the keys that are there, by place
  uint64_t bytes = 0;
  size_t answered = 0;
  for (; answered < keys.size(); ++answered) {
    if (!entries[answered].has_value()) continue;
    bytes += entries[answered]->record_bytes;
    if (bytes > bytes_max && answered > 0) break;
    order.push_back(answered);
  }
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return entries[a]->place < entries[b]->place; });
  std::vector<KvWanted> wanted;
  wanted.reserve(order.size());
  for (const size_t i : order) {
    wanted.push_back({PlaceKey(entries[i]->place), entries[i]->record_bytes});
  }
  // One damaged record must not hide the others: behind it the visit goes on.
  absl::Status first_damage, refused;
  for (size_t begin = 0; begin < wanted.size();) {
    size_t next = begin;
    const absl::Status status =
        store_.Visit(kCacheData, absl::MakeConstSpan(wanted).subspan(begin),
                     [&](size_t w, std::optional<absl::string_view> value) -> absl::Status {
                       const size_t i = order[begin + w];
                       const absl::Status seen =
                           VisitOne(keys[i], *entries[i], value, [&](const PartView& part) {
                             refused = visit(i, part);
                             return refused.ok() ? refused : absl::AbortedError("");
                           });
                       if (seen.ok()) next = begin + w + 1;
                       return seen;
                     });
    if (!refused.ok()) return refused;
    if (status.ok()) break;
    if (!absl::IsDataLoss(status) || next == wanted.size()) return status;
    if (order[next] <= answered) {
      answered = order[next];
      first_damage = status;
    }
    begin = next + 1;
  }
  if (answered > 0 || first_damage.ok()) return answered;
  // Noted when somebody is told: whoever asks for it later is told that it is not there.
  NoteDamageAt(keys[0], *entries[0], first_damage);
  return first_damage;
}

void TeacherCache::NoteDamageAt(const PartKey& key, const IndexEntry& entry,
                                const absl::Status& damage) {
  const auto now = FindAll({key});
  if (now.ok() && (*now)[0].has_value() && (*now)[0]->place == entry.place) NoteDamage(key, damage);
}

absl::StatusOr<std::vector<std::optional<Part>>> TeacherCache::Get(absl::Span<const PartKey> keys,
                                                                   uint64_t bytes_max) {
  std::vector<std::optional<Part>> parts(keys.size());
  SH_ASSIGN_OR_RETURN(const size_t answered,
                      Visit(keys, bytes_max, [&](size_t i, const PartView& part) {
                        parts[i] = Part{keys[i], part.row_count, std::string(part.payload)};
                        return absl::OkStatus();
                      }));
  parts.resize(answered);
  return parts;
}

// Segments are numbered upwards, so nothing else comes to lie in a place that was freed.
absl::StatusOr<std::optional<Part>> TeacherCache::GetMoved(const PartKey& key, IndexEntry before) {
  for (int moves = 0; moves < kMovesMax; ++moves) {
    SH_ASSIGN_OR_RETURN(const auto entries, Find({key}));
    if (!entries[0].has_value()) return std::nullopt;  // removed meanwhile
    if (entries[0]->place == before.place) break;
    before = *entries[0];
    SH_ASSIGN_OR_RETURN(const auto record, store_.Get(kCacheData, PlaceKey(before.place)));
    if (!record.has_value()) continue;
    SH_ASSIGN_OR_RETURN(const PartView part, ViewPart(*record, key, before));
    return Part{key, part.row_count, std::string(part.payload)};
  }
  return absl::DataLossError(absl::StrCat(Describe(key), ": its record is gone"));
}

}  // namespace stillhouse
