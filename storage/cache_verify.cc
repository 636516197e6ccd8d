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
constexpr int kObjectsOfAStep = 4;  // each is read whole
// A scan that met a damaged block goes on behind it. Where that is, is found by trying keys, as
// numbers of at least this many bytes.
constexpr size_t kTriedBytesMin = 16;
constexpr int kHalvingsMax = 64;  // of the distance, once it is found within a factor of two

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

// `key` + 2^exponent, both as big endian numbers of `bytes` bytes; nothing where that is too large.
std::optional<std::string> Beyond(std::string key, size_t exponent, size_t bytes) {
  key.resize(bytes, '\0');
  if (exponent / 8 >= bytes) return std::nullopt;
  size_t at = bytes - 1 - exponent / 8;
  for (unsigned carry = 1u << (exponent % 8); carry != 0; --at) {
    carry += static_cast<uint8_t>(key[at]);
    key[at] = static_cast<char>(carry & 0xff);
    carry >>= 8;
    if (at == 0) return carry == 0 ? std::make_optional(key) : std::nullopt;
  }
  return key;
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
      Objects();
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
  // Entries from the cursor on. In front of a damaged block they are fewer; where it stops every
  // scan there are none, and the next step goes on behind it. What was passed over is named where
  // the index names it.
  std::vector<KvEntry> Scan(KvFamily family) {
    KvScanOptions scan{.begin = cursor_.key, .entries_max = limit_, .bytes_max = kStepBytesMax};
    if (cursor_.end.has_value() && !cursor_.end->empty()) scan.end = cursor_.end;
    if (family == kCacheObjects) {
      scan.begin = std::max(scan.begin, std::string("h"));  // headers
      scan.end = "i";
      scan.entries_max = std::min(limit_, kObjectsOfAStep);
    }
    auto found = sections_.store().Scan(family, scan);
    while (!found.ok() && scan.entries_max > 1) {
      scan.entries_max /= 2;
      found = sections_.store().Scan(family, scan);
    }
    EndPhase();
    if (!found.ok()) {
      Problem(absl::StrCat(cursor_.phase, " from ", absl::BytesToHexString(cursor_.key)),
              found.status());
      const auto behind = BehindDamage(family, scan);
      if (behind.has_value()) GoOnAt(*behind);
      return {};
    }
    if (found->more) GoOnAt(found->entries.back().key + '\0');
    result_.records += found->entries.size();
    return std::move(found->entries);
  }

  // The first entry that can be read behind the damage at `scan.begin`.
  std::optional<std::string> BehindDamage(KvFamily family, KvScanOptions scan) {
    scan.entries_max = 1;
    scan.keys_only = true;
    const size_t bytes = std::max(scan.begin.size(), kTriedBytesMin);
    std::string damaged = scan.begin;
    std::optional<std::string> behind;
    const auto readable = [&](const std::optional<std::string>& key) {
      if (!key.has_value()) return false;
      scan.begin = *key;
      const auto found = sections_.store().Scan(family, scan);
      if (!found.ok()) return false;
      behind = found->entries.empty() ? std::nullopt : std::make_optional(found->entries[0].key);
      return true;
    };
    size_t exponent = 0;
    while (!readable(Beyond(damaged, exponent, bytes))) {
      if (++exponent == 8 * bytes) return std::nullopt;
    }
    // Between half of that and all of it.
    for (int halvings = 0; exponent > 0 && halvings < kHalvingsMax; ++halvings) {
      const auto middle = Beyond(damaged, --exponent, bytes);
      if (!readable(middle)) damaged = *middle;
    }
    return behind;
  }

  void Records() {
    const std::vector<KvEntry> entries = Scan(kCacheData);
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
    const std::vector<KvEntry> entries = Scan(kCacheIndex);
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
      sections_.NoteDamage(key, record.status());
      // A problem of the phase before, unless damage beside it kept that from the record.
      const std::string place = PlaceKey(indexed.place);
      const auto scanned =
          sections_.store().Scan(kCacheData, {.begin = place, .entries_max = 1, .keys_only = true});
      if (!scanned.ok()) {
        Problem(absl::StrCat("record ", absl::BytesToHexString(place)), record.status());
      }
      return absl::OkStatus();
    }
    if (record->key != key) {
      return absl::DataLossError("a record of another part lies in its place");
    }
    return absl::OkStatus();
  }

  void Objects() {
    for (const KvEntry& entry : Scan(kCacheObjects)) {
      const absl::Status status = objects_.Verify(entry.key.substr(1));
      if (!status.ok() && StillThere(kCacheObjects, entry)) Problem("object", status);
    }
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
