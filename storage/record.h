// Records: the bytes under which parts, their origins and pieces of objects lie in the cache.
// Grammar in docs/formats.md.
//
// Parsing never trusts its input: DataLoss names what is wrong, views point into the bytes given.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/digest.h"
#include "storage/part.h"

namespace stillhouse {

inline constexpr uint8_t kRecordVersion = 1;
inline constexpr uint64_t kRecordOverheadBytes = 68;  // header and checksum of a part's record

// Where a record lies in the family of records. Segments are numbered upwards, slots from 0.
struct Place {
  uint64_t segment = 0;
  uint32_t slot = 0;
  friend auto operator<=>(const Place&, const Place&) = default;
};
inline constexpr uint64_t kPlaceKeyBytes = 12;
std::string PlaceKey(const Place& place);  // big endian, so that keys sort as places
absl::StatusOr<Place> ParsePlaceKey(absl::string_view key);

// A part as stored. `origin` is the slot, in the same segment, of the record of its origin.
struct PartRecord {
  PartKey key;
  uint32_t row_count = 0;
  uint8_t codec = 0;
  uint32_t table = 0;
  uint32_t origin = 0;
  absl::string_view payload;
};
std::string EncodePartRecord(const PartRecord& record);
absl::StatusOr<PartRecord> ParsePartRecord(absl::string_view bytes);

inline constexpr char kPartMagic[5] = "SHrc";  // what a part's record begins with
// The head of a part's record that may be damaged: nothing of it is checked. False where it is not
// even that long or has another magic.
bool PeekPartRecord(absl::string_view bytes, PartRecord* record);
// The first record of a part within `bytes`, at or after `*offset`, that matches its checksum; it
// then lies at `*offset`. Nothing: there is none.
absl::string_view FindPartRecord(absl::string_view bytes, size_t* offset);
// The same of an origin's record.
absl::string_view FindOriginRecord(absl::string_view bytes, size_t* offset);

// Parts and origins share a family: which is it?
bool IsOriginRecord(absl::string_view bytes);
std::string EncodeOriginRecord(const Provenance& origin);
absl::StatusOr<Provenance> ParseOriginRecord(absl::string_view bytes);

// What the index holds of a part.
struct IndexEntry {
  Place place;
  uint32_t row_count = 0;
  uint32_t record_bytes = 0;
};
std::string IndexKey(const PartKey& key);
absl::StatusOr<PartKey> ParseIndexKey(absl::string_view key);
std::string EncodeIndexEntry(const IndexEntry& entry);
absl::StatusOr<IndexEntry> ParseIndexEntry(absl::string_view bytes);

// An object: its pieces lie under its generation, all of kPartBytesMax but the last.
struct ObjectHeader {
  uint64_t size = 0;
  uint64_t generation = 0;
  Digest digest;  // SHA-256 of its bytes
};
std::string EncodeObjectHeader(const ObjectHeader& header);
absl::StatusOr<ObjectHeader> ParseObjectHeader(absl::string_view bytes);

struct PieceRecord {
  uint64_t generation = 0;
  uint32_t index = 0;
  absl::string_view payload;
};
std::string EncodePieceRecord(const PieceRecord& record);
absl::StatusOr<PieceRecord> ParsePieceRecord(absl::string_view bytes);

}  // namespace stillhouse
