#include "storage/cache_verify.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>

#include "absl/strings/escaping.h"
#include "absl/strings/str_split.h"
#include "common/status.h"
#include "storage/codec.h"

namespace stillhouse {
namespace {

// A cursor is a phase and a key in hexadecimal, "records:00ab…"; a share's cursor also has the key
// that it ends before, "records:00ab…:01" (nothing: the end of the family).
constexpr absl::string_view kFiles = "files";
constexpr absl::string_view kRecords = "records";
constexpr absl::string_view kIndex = "index";
constexpr absl::string_view kObjects = "objects";
constexpr absl::string_view kPhases[] = {kFiles, kRecords, kIndex, kObjects};
constexpr uint64_t kStepBytesMax = 32ull << 20;
constexpr int kFilesOfAStep = 4;
// A scan that met a damaged block goes on behind it: this many slots are tried, then a segment.
constexpr uint32_t kSlotsTriedMax = 4096;

struct Cursor {
  absl::string_view phase = kFiles;
  std::string key;
  std::optional<std::string> end;  // of a share

  std::string Text() const {
    std::string text = absl::StrCat(phase, ":", absl::BytesToHexString(key));
    if (end.has_value()) absl::StrAppend(&text, ":", absl::BytesToHexString(*end));
    return text;
  }
};

absl::StatusOr<Cursor> ParseCursor(const std::string& text) {
  Cursor cursor;
  if (text.empty()) return cursor;
  const std::vector<std::string> words = absl::StrSplit(text, ':');
  const auto phase = std::find(std::begin(kPhases), std::end(kPhases), words[0]);
  if (phase == std::end(kPhases) || words.size() > 3) {
    return absl::InvalidArgumentError(
        absl::StrCat("no phase of verification is called ", words[0]));
  }
  cursor.phase = *phase;
  if (words.size() > 1) cursor.key = absl::HexStringToBytes(words[1]);
  if (words.size() > 2) cursor.end = absl::HexStringToBytes(words[2]);
  return cursor;
}

class Step {
 public:
  Step(TeacherCache& sections, ObjectStore& objects, Cursor cursor, int limit)
      : sections_(sections), objects_(objects), cursor_(std::move(cursor)), limit_(limit) {}

  absl::StatusOr<VerifyStep> Run() {
    if (cursor_.phase == kFiles) {
      SH_RETURN_IF_ERROR(Files());
    } else if (cursor_.phase == kRecords) {
      Records();
    } else if (cursor_.phase == kIndex) {
      Index();
    } else {
      SH_RETURN_IF_ERROR(Objects());
    }
    return std::move(result_);
  }

 private:
  void Problem(absl::string_view where, const absl::Status& status) {
    result_.problems.push_back(absl::StrCat(where, ": ", status.message()));
  }
  // What was removed or moved since it was read is no problem.
  bool StillThere(KvFamily family, const KvEntry& entry) {
    const auto now = sections_.store().Get(family, entry.key);
    return !now.ok() || *now == entry.value;
  }

  void GoOnAt(std::string key) {
    Cursor next = cursor_;
    next.key = std::move(key);
    result_.next = next.Text();
  }
  // The share ends, or the next phase begins.
  void EndPhase() {
    result_.next.clear();
    if (cursor_.end.has_value()) return;
    const auto phase = std::find(std::begin(kPhases), std::end(kPhases), cursor_.phase);
    if (std::next(phase) != std::end(kPhases))
      result_.next = Cursor{*std::next(phase), "", {}}.Text();
  }

  // Names of files, in order. A share holds those behind its key up to its end.
  absl::Status Files() {
    SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, sections_.store().Files());
    EndPhase();
    int checked = 0;
    for (auto name = std::upper_bound(names.begin(), names.end(), cursor_.key); name != names.end();
         ++name) {
      if (cursor_.end.has_value() && !cursor_.end->empty() && *name > *cursor_.end) break;
      if (checked++ == kFilesOfAStep) {
        GoOnAt(*std::prev(name));
        break;
      }
      const absl::Status status = sections_.store().VerifyFile(*name);
      if (!status.ok()) Problem("file", status);
    }
    return absl::OkStatus();
  }
  bool Scan(KvFamily family, std::vector<KvEntry>* entries) {
    KvScanOptions scan{.begin = cursor_.key, .entries_max = limit_, .bytes_max = kStepBytesMax};
    if (cursor_.end.has_value() && !cursor_.end->empty()) scan.end = cursor_.end;
    auto found = sections_.store().Scan(family, scan);
    EndPhase();
    if (!found.ok()) {
      Problem(absl::StrCat(cursor_.phase, " after ", absl::BytesToHexString(cursor_.key)),
              found.status());
      SkipDamage(family, scan);
      return false;
    }
    *entries = std::move(found->entries);
    if (found->more) GoOnAt(entries->back().key + '\0');
    result_.records += entries->size();
    return true;
  }

  // Goes on behind the damaged block. What lies in it is named where the index names it.
  void SkipDamage(KvFamily family, KvScanOptions scan) {
    if (family != kCacheData) return;
    scan.entries_max = 1;
    scan.keys_only = true;
    Place place;
    // Up to the damage entries can still be read one by one.
    for (absl::StatusOr<KvScanResult> found; (found = sections_.store().Scan(family, scan)).ok();) {
      if (found->entries.empty()) return;
      scan.begin = found->entries[0].key + '\0';
      if (!found->more) return;
    }
    const auto begin = ParsePlaceKey(absl::string_view(scan.begin).substr(0, kPlaceKeyBytes));
    if (begin.ok()) place = *begin;
    for (uint32_t tried = 0; tried < 2 * kSlotsTriedMax; ++tried) {
      if (tried < kSlotsTriedMax) {
        ++place.slot;
      } else {
        place = {place.segment + 1, 0};
      }
      scan.begin = PlaceKey(place);
      if (scan.end.has_value() && scan.begin >= *scan.end) return;
      const auto found = sections_.store().Scan(family, scan);
      if (!found.ok()) continue;
      if (!found->entries.empty()) GoOnAt(found->entries[0].key);
      return;
    }
  }

  void Records() {
    std::vector<KvEntry> entries;
    if (!Scan(kCacheData, &entries)) return;
    for (const KvEntry& entry : entries) {
      const absl::Status status = Record(entry);
      if (!status.ok() && StillThere(kCacheData, entry)) {
        Problem(absl::StrCat("record ", absl::BytesToHexString(entry.key)), status);
      }
    }
  }

  absl::Status Record(const KvEntry& entry) {
    SH_ASSIGN_OR_RETURN(const Place place, ParsePlaceKey(entry.key));
    if (IsOriginRecord(entry.value)) return ParseOriginRecord(entry.value).status();
    SH_ASSIGN_OR_RETURN(const PartRecord record, ParsePartRecord(entry.value));
    const auto known = origins_.find({place.segment, record.origin});
    SectionSpec spec;
    if (known != origins_.end()) {
      spec = known->second;
    } else {
      SH_ASSIGN_OR_RETURN(const Provenance origin, sections_.OriginOf(place, record.origin));
      spec = origins_[{place.segment, record.origin}] = origin.spec;
    }
    if (record.payload.empty() || static_cast<uint8_t>(record.payload[0]) != record.codec) {
      return absl::DataLossError("its header names another codec than its payload");
    }
    SH_RETURN_IF_ERROR(CanonicalValues(spec, record.payload, record.row_count).status());
    SH_ASSIGN_OR_RETURN(const auto indexed, sections_.FindAll({record.key}));
    if (!indexed[0].has_value() || indexed[0]->place != place) {
      ++result_.unreferenced;
    } else if (indexed[0]->row_count != record.row_count ||
               indexed[0]->record_bytes != entry.value.size()) {
      return absl::DataLossError("the index states another length");
    }
    return absl::OkStatus();
  }

  void Index() {
    std::vector<KvEntry> entries;
    if (!Scan(kCacheIndex, &entries)) return;
    for (const KvEntry& entry : entries) {
      const absl::Status status = IndexEntryOf(entry);
      if (status.ok() || !StillThere(kCacheIndex, entry)) continue;
      Problem(absl::StrCat("index ", absl::BytesToHexString(entry.key)), status);
      const auto key = ParseIndexKey(entry.key);
      if (key.ok() && absl::IsDataLoss(status)) sections_.NoteDamage(*key, status);
    }
  }

  absl::Status IndexEntryOf(const KvEntry& entry) {
    SH_ASSIGN_OR_RETURN(const PartKey key, ParseIndexKey(entry.key));
    SH_ASSIGN_OR_RETURN(const IndexEntry indexed, ParseIndexEntry(entry.value));
    SH_ASSIGN_OR_RETURN(const auto bytes,
                        sections_.store().Get(kCacheData, PlaceKey(indexed.place)));
    if (!bytes.has_value()) return absl::DataLossError("its record is gone");
    const auto record = ParsePartRecord(*bytes);
    if (!record.ok()) {
      // The record itself is a problem of the phase before.
      sections_.NoteDamage(key, record.status());
      return absl::OkStatus();
    }
    if (record->key != key) {
      return absl::DataLossError("a record of another part lies in its place");
    }
    return absl::OkStatus();
  }

  absl::Status Objects() {
    constexpr int kObjectsOfAStep = 4;  // each is read whole
    SH_ASSIGN_OR_RETURN(const auto found, objects_.List("", cursor_.key, kObjectsOfAStep));
    EndPhase();
    for (const ObjectInfo& object : found) {
      ++result_.records;
      const absl::Status status = objects_.Verify(object.name);
      if (!status.ok()) Problem("object", status);
    }
    if (std::ssize(found) == kObjectsOfAStep) GoOnAt(found.back().name);
    return absl::OkStatus();
  }

  TeacherCache& sections_;
  ObjectStore& objects_;
  const Cursor cursor_;
  const int limit_;
  VerifyStep result_;
  std::map<std::pair<uint64_t, uint32_t>, SectionSpec> origins_;  // seen in this step
};

// Shares of a family: from each of `begins` to the next.
void AddShares(absl::string_view phase, const std::vector<std::string>& begins,
               std::vector<std::string>* shares) {
  for (size_t i = 0; i < begins.size(); ++i) {
    shares->push_back(Cursor{phase, begins[i], i + 1 < begins.size() ? begins[i + 1] : ""}.Text());
  }
}

}  // namespace

absl::StatusOr<VerifyStep> VerifyCache(TeacherCache& sections, ObjectStore& objects,
                                       const std::string& after, int limit) {
  SH_ASSIGN_OR_RETURN(Cursor cursor, ParseCursor(after));
  if (limit < 1 || limit > kVerifyStepRecords) limit = kVerifyStepRecords;
  return Step(sections, objects, std::move(cursor), limit).Run();
}

absl::StatusOr<std::vector<std::string>> VerifyShares(TeacherCache& sections) {
  constexpr size_t kSharesOfAPhase = kVerifySharesMax / 4;
  std::vector<std::string> shares;
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> files, sections.store().Files());
  std::vector<std::string> begins = {""};
  const size_t step = files.size() / kSharesOfAPhase + 1;
  for (size_t i = step; i < files.size(); i += step) begins.push_back(files[i - 1]);
  AddShares(kFiles, begins, &shares);

  // Segments are of about one size.
  begins = {""};
  const absl::StatusOr<KvScanResult> last =
      sections.store().Scan(kCacheData, {.entries_max = 1, .reverse = true, .keys_only = true});
  if (!last.ok() && !absl::IsDataLoss(last.status())) return last.status();
  if (last.ok() && !last->entries.empty()) {
    SH_ASSIGN_OR_RETURN(const Place place, ParsePlaceKey(last->entries[0].key));
    const uint64_t segments = place.segment / (kSharesOfAPhase - 1) + 1;
    for (uint64_t s = segments; s <= place.segment; s += segments) {
      begins.push_back(PlaceKey({s, 0}));
    }
  }
  AddShares(kRecords, begins, &shares);

  begins = {""};
  for (size_t i = 1; i < kSharesOfAPhase / 4; ++i) {
    begins.push_back(std::string(1, static_cast<char>(i * 256 / (kSharesOfAPhase / 4))));
  }
  AddShares(kIndex, begins, &shares);
  AddShares(kObjects, {""}, &shares);
  return shares;
}

}  // namespace stillhouse
