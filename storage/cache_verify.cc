#include "storage/cache_verify.h"

#include <map>

#include "absl/strings/escaping.h"
#include "common/status.h"
#include "storage/codec.h"

namespace stillhouse {
namespace {

// A cursor is a phase and a key in hexadecimal: "records:00ab…".
constexpr absl::string_view kRecords = "records";
constexpr absl::string_view kIndex = "index";
constexpr absl::string_view kObjects = "objects";
constexpr uint64_t kStepBytesMax = 32ull << 20;

std::string Cursor(absl::string_view phase, absl::string_view key) {
  return absl::StrCat(phase, ":", absl::BytesToHexString(key));
}

class Step {
 public:
  Step(TeacherCache& sections, ObjectStore& objects, int limit)
      : sections_(sections), objects_(objects), limit_(limit) {}

  absl::StatusOr<VerifyStep> Run(absl::string_view phase, const std::string& key) {
    if (phase.empty()) {
      Files();
    } else if (phase == kRecords) {
      Records(key);
    } else if (phase == kIndex) {
      Index(key);
    } else {
      SH_RETURN_IF_ERROR(Objects(key));
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

  void Files() {
    const absl::Status status = sections_.store().VerifyChecksums();
    if (!status.ok()) Problem("files of the database", status);
    result_.next = Cursor(kRecords, "");
  }

  // A scan that meets a damaged block cannot see what lies behind it: say so and go on elsewhere.
  bool Scan(KvFamily family, absl::string_view phase, absl::string_view next_phase,
            const std::string& from, std::vector<KvEntry>* entries) {
    const auto found = sections_.store().Scan(
        family, {.begin = from, .entries_max = limit_, .bytes_max = kStepBytesMax});
    result_.next = Cursor(next_phase, "");
    if (!found.ok()) {
      Problem(absl::StrCat(phase, " after ", absl::BytesToHexString(from)), found.status());
      return false;
    }
    *entries = std::move(found->entries);
    if (found->more) result_.next = Cursor(phase, entries->back().key + '\0');
    result_.records += entries->size();
    return true;
  }

  void Records(const std::string& from) {
    std::vector<KvEntry> entries;
    if (!Scan(kCacheData, kRecords, kIndex, from, &entries)) return;
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
    SH_ASSIGN_OR_RETURN(const auto indexed, sections_.Find({record.key}));
    if (!indexed[0].has_value() || indexed[0]->place != place) {
      ++result_.unreferenced;
    } else if (indexed[0]->row_count != record.row_count ||
               indexed[0]->record_bytes != entry.value.size()) {
      return absl::DataLossError("the index states another length");
    }
    return absl::OkStatus();
  }

  void Index(const std::string& from) {
    std::vector<KvEntry> entries;
    if (!Scan(kCacheIndex, kIndex, kObjects, from, &entries)) return;
    for (const KvEntry& entry : entries) {
      const absl::Status status = IndexEntryOf(entry);
      if (!status.ok() && StillThere(kCacheIndex, entry)) {
        Problem(absl::StrCat("index ", absl::BytesToHexString(entry.key)), status);
      }
    }
  }

  absl::Status IndexEntryOf(const KvEntry& entry) {
    SH_ASSIGN_OR_RETURN(const PartKey key, ParseIndexKey(entry.key));
    SH_ASSIGN_OR_RETURN(const IndexEntry indexed, ParseIndexEntry(entry.value));
    SH_ASSIGN_OR_RETURN(const auto bytes,
                        sections_.store().Get(kCacheData, PlaceKey(indexed.place)));
    if (!bytes.has_value()) return absl::DataLossError("its record is gone");
    // The record itself was a problem of the phase before, where it is damaged.
    const auto record = ParsePartRecord(*bytes);
    if (record.ok() && record->key != key) {
      return absl::DataLossError("a record of another part lies in its place");
    }
    return absl::OkStatus();
  }

  absl::Status Objects(const std::string& after) {
    constexpr int kObjectsOfAStep = 4;  // each is read whole
    SH_ASSIGN_OR_RETURN(const auto found, objects_.List("", after, kObjectsOfAStep));
    for (const ObjectInfo& object : found) {
      ++result_.records;
      const absl::Status status = objects_.Verify(object.name);
      if (!status.ok()) Problem("object", status);
    }
    if (std::ssize(found) == kObjectsOfAStep) result_.next = Cursor(kObjects, found.back().name);
    return absl::OkStatus();
  }

  TeacherCache& sections_;
  ObjectStore& objects_;
  const int limit_;
  VerifyStep result_;
  std::map<std::pair<uint64_t, uint32_t>, SectionSpec> origins_;  // seen in this step
};

}  // namespace

absl::StatusOr<VerifyStep> VerifyCache(TeacherCache& sections, ObjectStore& objects,
                                       const std::string& after, int limit) {
  const absl::string_view cursor = after;
  const size_t colon = cursor.find(':');
  const absl::string_view phase = cursor.substr(0, colon);
  if (!phase.empty() && phase != kRecords && phase != kIndex && phase != kObjects) {
    return absl::InvalidArgumentError(absl::StrCat("no phase of verification is called ", phase));
  }
  if (limit < 1 || limit > kVerifyStepRecords) limit = kVerifyStepRecords;
  const std::string key =
      colon == absl::string_view::npos ? "" : absl::HexStringToBytes(cursor.substr(colon + 1));
  return Step(sections, objects, limit).Run(phase, key);
}

}  // namespace stillhouse
