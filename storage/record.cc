#include "storage/record.h"

#include "common/byte_io.h"
#include "common/status.h"

namespace stillhouse {
namespace {

constexpr char kOriginMagic[5] = "SHor";
constexpr char kObjectMagic[5] = "SHob";
constexpr char kPieceMagic[5] = "SHpc";
constexpr uint64_t kMagicBytes = 4;
constexpr uint64_t kChecksumBytes = 8;

// A record of any kind: magic, version, body, XXH3-64 of all before.
std::string Seal(absl::string_view magic, absl::string_view body) {
  ByteWriter out;
  out.PutRaw(magic);
  out.Put(kRecordVersion);
  out.PutRaw(body);
  out.Put(Xxh3(out.bytes()));
  return out.Take();
}

absl::StatusOr<absl::string_view> Unseal(absl::string_view magic, absl::string_view what,
                                         absl::string_view bytes) {
  if (bytes.size() < kMagicBytes + 1 + kChecksumBytes) {
    return absl::DataLossError(absl::StrCat(what, " is cut short: ", bytes.size(), " bytes"));
  }
  if (bytes.substr(0, kMagicBytes) != magic) {
    return absl::DataLossError(absl::StrCat(what, " does not begin with its magic"));
  }
  uint64_t checksum = 0;
  ByteReader tail(bytes.substr(bytes.size() - kChecksumBytes));
  tail.Get(&checksum);
  bytes.remove_suffix(kChecksumBytes);
  if (Xxh3(bytes) != checksum) {
    return absl::DataLossError(absl::StrCat(what, " does not match its checksum"));
  }
  const uint8_t version = static_cast<uint8_t>(bytes[kMagicBytes]);
  if (version != kRecordVersion) {
    return absl::DataLossError(absl::StrCat(what, " has version ", static_cast<int>(version),
                                            "; this program reads ",
                                            static_cast<int>(kRecordVersion)));
  }
  return bytes.substr(kMagicBytes + 1);
}

absl::Status CutShort(absl::string_view what) {
  return absl::DataLossError(absl::StrCat(what, " has another length than it states"));
}

void PutBigEndian32(uint32_t value, std::string* out) {
  for (int shift = 24; shift >= 0; shift -= 8) out->push_back(static_cast<char>(value >> shift));
}
uint32_t GetBigEndian32(absl::string_view bytes) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

}  // namespace

std::string PlaceKey(const Place& place) {
  std::string key;
  PutBigEndian32(static_cast<uint32_t>(place.segment >> 32), &key);
  PutBigEndian32(static_cast<uint32_t>(place.segment), &key);
  PutBigEndian32(place.slot, &key);
  return key;
}

absl::StatusOr<Place> ParsePlaceKey(absl::string_view key) {
  if (key.size() != 12) return absl::DataLossError("the key of a record is not 12 bytes long");
  return Place{static_cast<uint64_t>(GetBigEndian32(key)) << 32 | GetBigEndian32(key.substr(4)),
               GetBigEndian32(key.substr(8))};
}

std::string EncodePartRecord(const PartRecord& record) {
  ByteWriter out;
  out.Reserve(kRecordOverheadBytes + record.payload.size());
  out.PutRaw(kPartMagic);
  out.Put(kRecordVersion);
  out.Put(record.codec);
  out.Put<uint16_t>(0);  // reserved
  out.Put(record.table);
  out.Put(record.origin);
  out.PutDigest(record.key.section);
  out.Put(record.key.row_begin);
  out.Put(record.row_count);
  out.Put(static_cast<uint32_t>(record.payload.size()));
  out.PutRaw(record.payload);
  out.Put(Xxh3(out.bytes()));
  return out.Take();
}

absl::StatusOr<PartRecord> ParsePartRecord(absl::string_view bytes) {
  SH_ASSIGN_OR_RETURN(const absl::string_view body, Unseal(kPartMagic, "the record", bytes));
  ByteReader reader(body);
  PartRecord record;
  uint16_t reserved = 0;
  uint32_t payload_bytes = 0;
  reader.Get(&record.codec);
  reader.Get(&reserved);
  reader.Get(&record.table);
  reader.Get(&record.origin);
  reader.GetDigest(&record.key.section);
  reader.Get(&record.key.row_begin);
  reader.Get(&record.row_count);
  reader.Get(&payload_bytes);
  reader.GetRaw(payload_bytes, &record.payload);
  if (!reader.AtEnd() || reserved != 0) return CutShort("the record");
  return record;
}

bool PeekPartRecord(absl::string_view bytes, PartRecord* record) {
  if (bytes.size() < kRecordOverheadBytes || bytes.substr(0, kMagicBytes) != kPartMagic) {
    return false;
  }
  ByteReader reader(bytes.substr(kMagicBytes + 1));
  uint16_t reserved = 0;
  reader.Get(&record->codec);
  reader.Get(&reserved);
  reader.Get(&record->table);
  reader.Get(&record->origin);
  reader.GetDigest(&record->key.section);
  reader.Get(&record->key.row_begin);
  reader.Get(&record->row_count);
  record->payload = absl::string_view();
  return true;
}

absl::string_view FindPartRecord(absl::string_view bytes, size_t* offset) {
  constexpr size_t kLengthAt = kRecordOverheadBytes - kChecksumBytes - sizeof(uint32_t);
  for (size_t at = bytes.find(kPartMagic, *offset); at != absl::string_view::npos;
       at = bytes.find(kPartMagic, at + 1)) {
    const absl::string_view rest = bytes.substr(at);
    if (rest.size() < kRecordOverheadBytes) break;
    uint32_t payload_bytes = 0;
    ByteReader(rest.substr(kLengthAt)).Get(&payload_bytes);
    const absl::string_view record = rest.substr(0, kRecordOverheadBytes + uint64_t{payload_bytes});
    if (!ParsePartRecord(record).ok()) continue;
    *offset = at;
    return record;
  }
  return {};
}

bool IsOriginRecord(absl::string_view bytes) {
  return bytes.substr(0, kMagicBytes) == kOriginMagic;
}

std::string EncodeOriginRecord(const Provenance& origin) {
  ByteWriter body;
  body.PutField(origin.spec.Canonical());
  body.PutDigest(origin.teacher);
  body.PutDigest(origin.plan);
  body.Put(origin.chunk);
  body.PutField(origin.producer_class);
  return Seal(kOriginMagic, body.bytes());
}

absl::string_view FindOriginRecord(absl::string_view bytes, size_t* offset) {
  for (size_t at = bytes.find(kOriginMagic, *offset); at != absl::string_view::npos;
       at = bytes.find(kOriginMagic, at + 1)) {
    // Nothing states its length: it follows from the fields.
    const absl::string_view rest = bytes.substr(at);
    if (rest.size() <= kMagicBytes + 1) break;
    ByteReader reader(rest.substr(kMagicBytes + 1));
    absl::string_view field;
    Digest digest;
    uint32_t chunk = 0;
    uint64_t checksum = 0;
    reader.GetField(&field);
    reader.GetDigest(&digest);
    reader.GetDigest(&digest);
    reader.Get(&chunk);
    reader.GetField(&field);
    if (!reader.Get(&checksum)) continue;
    const absl::string_view record = rest.substr(0, rest.size() - reader.rest().size());
    if (!ParseOriginRecord(record).ok()) continue;
    *offset = at;
    return record;
  }
  return {};
}

absl::StatusOr<Provenance> ParseOriginRecord(absl::string_view bytes) {
  SH_ASSIGN_OR_RETURN(const absl::string_view body, Unseal(kOriginMagic, "the origin", bytes));
  ByteReader reader(body);
  Provenance origin;
  absl::string_view spec, producer_class;
  reader.GetField(&spec);
  reader.GetDigest(&origin.teacher);
  reader.GetDigest(&origin.plan);
  reader.Get(&origin.chunk);
  reader.GetField(&producer_class);
  if (!reader.AtEnd()) return CutShort("the origin");
  absl::StatusOr<SectionSpec> parsed = ParseSectionSpec(spec);
  if (!parsed.ok()) return absl::DataLossError(parsed.status().message());
  origin.spec = *parsed;
  origin.producer_class = std::string(producer_class);
  return origin;
}

std::string IndexKey(const PartKey& key) {
  std::string bytes(key.section.AsStringView());
  PutBigEndian32(key.row_begin, &bytes);
  return bytes;
}

absl::StatusOr<PartKey> ParseIndexKey(absl::string_view key) {
  if (key.size() != 36)
    return absl::DataLossError("the key of an index entry is not 36 bytes long");
  PartKey part;
  SH_ASSIGN_OR_RETURN(part.section, DigestFromBytes(key.substr(0, 32)));
  part.row_begin = GetBigEndian32(key.substr(32));
  return part;
}

std::string EncodeIndexEntry(const IndexEntry& entry) {
  ByteWriter out;
  out.PutVarint(entry.place.segment);
  out.PutVarint(entry.place.slot);
  out.PutVarint(entry.row_count);
  out.PutVarint(entry.record_bytes);
  return out.Take();
}

absl::StatusOr<IndexEntry> ParseIndexEntry(absl::string_view bytes) {
  ByteReader reader(bytes);
  IndexEntry entry;
  uint64_t slot = 0, row_count = 0, record_bytes = 0;
  reader.GetVarint(&entry.place.segment);
  reader.GetVarint(&slot);
  reader.GetVarint(&row_count);
  reader.GetVarint(&record_bytes);
  if (!reader.AtEnd() || (slot | row_count | record_bytes) >> 32 != 0) {
    return absl::DataLossError("an index entry is malformed");
  }
  entry.place.slot = static_cast<uint32_t>(slot);
  entry.row_count = static_cast<uint32_t>(row_count);
  entry.record_bytes = static_cast<uint32_t>(record_bytes);
  return entry;
}

std::string EncodeObjectHeader(const ObjectHeader& header) {
  ByteWriter body;
  body.Put(header.size);
  body.Put(header.generation);
  body.PutDigest(header.digest);
  return Seal(kObjectMagic, body.bytes());
}

absl::StatusOr<ObjectHeader> ParseObjectHeader(absl::string_view bytes) {
  SH_ASSIGN_OR_RETURN(const absl::string_view body, Unseal(kObjectMagic, "the object", bytes));
  ByteReader reader(body);
  ObjectHeader header;
  reader.Get(&header.size);
  reader.Get(&header.generation);
  reader.GetDigest(&header.digest);
  if (!reader.AtEnd()) return CutShort("the object");
  return header;
}

std::string EncodePieceRecord(const PieceRecord& record) {
  ByteWriter body;
  body.Put(record.generation);
  body.Put(record.index);
  body.Put(static_cast<uint32_t>(record.payload.size()));
  body.PutRaw(record.payload);
  return Seal(kPieceMagic, body.bytes());
}

absl::StatusOr<PieceRecord> ParsePieceRecord(absl::string_view bytes) {
  SH_ASSIGN_OR_RETURN(const absl::string_view body, Unseal(kPieceMagic, "the piece", bytes));
  ByteReader reader(body);
  PieceRecord record;
  uint32_t payload_bytes = 0;
  reader.Get(&record.generation);
  reader.Get(&record.index);
  reader.Get(&payload_bytes);
  reader.GetRaw(payload_bytes, &record.payload);
  if (!reader.AtEnd()) return CutShort("the piece");
  return record;
}

}  // namespace stillhouse
