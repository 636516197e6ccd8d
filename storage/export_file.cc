#include "storage/export_file.h"

#include <algorithm>
#include <utility>

#include "common/byte_io.h"
#include "common/status.h"
#include "storage/record.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kMagic = "SHEXPT\r\n";
constexpr absl::string_view kEndMagic = "SHEXEND\n";
constexpr uint64_t kFixedHeaderBytes = 24;
constexpr uint64_t kHeaderBytesMax = 1 << 20;
constexpr uint32_t kSpecsMax = 1000;
constexpr uint64_t kEntryBytes = 56;
constexpr uint64_t kFooterBytes = 40;
constexpr uint64_t kAlignment = 8;
constexpr uint64_t kWindowBytes = 8ull << 20;
// A record's payload_bytes stand here (storage/record.h).
constexpr uint64_t kPayloadBytesAt = 56;
constexpr uint64_t kRecordHeaderBytes = 60;

uint64_t Aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::string EncodeHeader(const std::vector<std::string>& specs) {
  ByteWriter names;
  for (const std::string& spec : specs) names.PutField(spec);
  const uint64_t bytes = Aligned(kFixedHeaderBytes + names.size());
  ByteWriter out;
  out.PutRaw(kMagic);
  out.Put(kExportFileVersion);
  out.Put(static_cast<uint32_t>(bytes));
  out.Put(static_cast<uint32_t>(specs.size()));
  out.Put<uint32_t>(0);
  out.PutRaw(names.bytes());
  out.PutRaw(std::string(bytes - out.size(), '\0'));
  return out.Take();
}

// Sorted by key, so that a reader may search it.
std::string EncodeIndex(std::vector<ExportEntry>* entries) {
  std::sort(entries->begin(), entries->end(),
            [](const ExportEntry& a, const ExportEntry& b) { return a.key < b.key; });
  ByteWriter out;
  for (const ExportEntry& entry : *entries) {
    out.PutDigest(entry.key.section);
    out.Put(entry.key.row_begin);
    out.Put(entry.row_count);
    out.Put(entry.offset);
    out.Put(entry.record_bytes);
    out.Put(entry.spec);
  }
  return out.Take();
}

absl::Status Malformed(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("malformed export file: ", what));
}

}  // namespace

ExportFileWriter::ExportFileWriter(const std::vector<std::string>& specs, Append append)
    : header_(EncodeHeader(specs)), append_(std::move(append)) {
  SH_CHECK(specs.size() <= kSpecsMax && header_.size() <= kHeaderBytesMax);
}

uint64_t ExportFileWriter::BytesWith(uint64_t payload_bytes) const {
  const uint64_t records =
      (begun_ ? offset_ : header_.size()) + kRecordOverheadBytes + payload_bytes;
  return Aligned(records) + (entries_.size() + 1) * kEntryBytes + kFooterBytes;
}

absl::Status ExportFileWriter::Write(absl::string_view bytes) {
  offset_ += bytes.size();
  return append_(bytes);
}

absl::Status ExportFileWriter::Add(const Part& part, uint32_t spec) {
  SH_CHECK(!part.payload.empty());
  if (!std::exchange(begun_, true)) SH_RETURN_IF_ERROR(Write(header_));
  const std::string record = EncodePartRecord({.key = part.key,
                                               .row_count = part.row_count,
                                               .codec = static_cast<uint8_t>(part.payload[0]),
                                               .origin = spec,
                                               .payload = part.payload});
  entries_.push_back(
      {part.key, part.row_count, offset_, static_cast<uint32_t>(record.size()), spec});
  return Write(record);
}

absl::Status ExportFileWriter::Finish() {
  if (!std::exchange(begun_, true)) SH_RETURN_IF_ERROR(Write(header_));
  SH_RETURN_IF_ERROR(Write(std::string(Aligned(offset_) - offset_, '\0')));
  const uint64_t index_offset = offset_;
  const std::string index = EncodeIndex(&entries_);
  ByteWriter footer;
  footer.Put(index_offset);
  footer.Put<uint64_t>(entries_.size());
  footer.Put<uint64_t>(index_offset + index.size() + kFooterBytes);
  Xxh3Stream checksum;
  checksum.Add(header_);
  checksum.Add(index);
  checksum.Add(footer.bytes());
  footer.Put(checksum.Finish());
  footer.PutRaw(kEndMagic);
  SH_RETURN_IF_ERROR(Write(index));
  return Write(footer.bytes());
}

absl::StatusOr<std::unique_ptr<ExportFileReader>> ExportFileReader::Open(uint64_t file_bytes,
                                                                         ReadAt read) {
  auto reader =
      std::unique_ptr<ExportFileReader>(new ExportFileReader(file_bytes, std::move(read)));
  std::string header;
  SH_RETURN_IF_ERROR(reader->ReadHeader(&header));
  SH_RETURN_IF_ERROR(reader->ReadIndex(header));
  return reader;
}

absl::Status ExportFileReader::ReadHeader(std::string* header) {
  if (file_bytes_ < kFixedHeaderBytes + kFooterBytes) return Malformed("it is cut short");
  header->resize(kFixedHeaderBytes);
  SH_RETURN_IF_ERROR(read_(0, header->size(), header->data()));
  if (absl::string_view(*header).substr(0, kMagic.size()) != kMagic) {
    return Malformed("it does not begin with its magic");
  }
  ByteReader fixed(absl::string_view(*header).substr(kMagic.size()));
  uint32_t version = 0, header_bytes = 0, count = 0, zero = 0;
  fixed.Get(&version);
  fixed.Get(&header_bytes);
  fixed.Get(&count);
  fixed.Get(&zero);
  if (version != kExportFileVersion) {
    return Malformed(
        absl::StrCat("version ", version, "; this program reads ", kExportFileVersion));
  }
  if (header_bytes > kHeaderBytesMax || header_bytes < kFixedHeaderBytes ||
      header_bytes > file_bytes_ - kFooterBytes || count > kSpecsMax) {
    return Malformed("its header states impossible sizes");
  }
  header->resize(header_bytes);
  SH_RETURN_IF_ERROR(read_(0, header->size(), header->data()));
  ByteReader names(absl::string_view(*header).substr(kFixedHeaderBytes));
  for (uint32_t i = 0; i < count; ++i) {
    absl::string_view name;
    if (!names.GetField(&name)) return Malformed("its header is cut short");
    specs_.emplace_back(name);
  }
  if (EncodeHeader(specs_) != *header) return Malformed("its header is not as it should be");
  return absl::OkStatus();
}

absl::Status ExportFileReader::ReadIndex(absl::string_view header) {
  std::string footer(kFooterBytes, '\0');
  SH_RETURN_IF_ERROR(read_(file_bytes_ - kFooterBytes, footer.size(), footer.data()));
  ByteReader reader(footer);
  uint64_t index_offset = 0, file_bytes = 0, checksum = 0;
  reader.Get(&index_offset);
  reader.Get(&records_);
  reader.Get(&file_bytes);
  reader.Get(&checksum);
  if (reader.rest() != kEndMagic || file_bytes != file_bytes_) {
    return Malformed("it is cut short");
  }
  const uint64_t room = file_bytes_ - kFooterBytes;
  if (index_offset > room || index_offset < header.size() || index_offset % kAlignment != 0 ||
      records_ != (room - index_offset) / kEntryBytes || (room - index_offset) % kEntryBytes != 0) {
    return Malformed("its index has another size than it states");
  }
  index_.resize(room - index_offset);
  SH_RETURN_IF_ERROR(read_(index_offset, index_.size(), index_.data()));
  Xxh3Stream expected;
  expected.Add(header);
  expected.Add(index_);
  expected.Add(absl::string_view(footer).substr(0, 3 * sizeof(uint64_t)));
  if (expected.Finish() != checksum) return Malformed("its index does not match its checksum");
  next_ = header.size();
  records_end_ = index_offset;
  return absl::OkStatus();
}

// A view of bytes below records_end_; valid until the next call.
absl::StatusOr<absl::string_view> ExportFileReader::Bytes(uint64_t offset, size_t size) {
  if (offset < window_offset_ || offset + size > window_offset_ + window_.size()) {
    window_offset_ = offset;
    window_.resize(std::min(records_end_ - offset, std::max<uint64_t>(size, kWindowBytes)));
    SH_RETURN_IF_ERROR(read_(offset, window_.size(), window_.data()));
  }
  return absl::string_view(window_).substr(offset - window_offset_, size);
}

absl::StatusOr<std::optional<ExportPart>> ExportFileReader::Next() {
  if (seen_.size() == records_) {
    SH_RETURN_IF_ERROR(CheckIndex());
    return std::nullopt;
  }
  const auto cut_short = [this] {
    return Malformed(absl::StrCat("record ", seen_.size(), " is cut short"));
  };
  if (records_end_ - next_ < kRecordOverheadBytes) return cut_short();
  SH_ASSIGN_OR_RETURN(const absl::string_view head, Bytes(next_, kRecordHeaderBytes));
  uint32_t payload_bytes = 0;
  ByteReader(head.substr(kPayloadBytesAt)).Get(&payload_bytes);
  const uint64_t record_bytes = kRecordOverheadBytes + payload_bytes;
  if (record_bytes > records_end_ - next_) return cut_short();
  SH_ASSIGN_OR_RETURN(const absl::string_view bytes, Bytes(next_, record_bytes));
  const absl::StatusOr<PartRecord> record = ParsePartRecord(bytes);
  if (!record.ok()) return Annotate(record.status(), absl::StrCat("record ", seen_.size()));
  if (record->payload.empty() || static_cast<uint8_t>(record->payload[0]) != record->codec ||
      record->table != 0 || record->origin >= specs_.size()) {
    return Malformed(absl::StrCat("record ", seen_.size(), " is of another kind than it states"));
  }
  seen_.push_back(
      {record->key, record->row_count, next_, static_cast<uint32_t>(record_bytes), record->origin});
  next_ += record_bytes;
  return ExportPart{{record->key, record->row_count, std::string(record->payload)}, record->origin};
}

absl::Status ExportFileReader::CheckIndex() {
  if (Aligned(next_) != records_end_) return Malformed("bytes lie between records and index");
  SH_ASSIGN_OR_RETURN(const absl::string_view zeros, Bytes(next_, records_end_ - next_));
  if (zeros.find_first_not_of('\0') != absl::string_view::npos) {
    return Malformed("bytes lie between records and index");
  }
  if (EncodeIndex(&seen_) != index_) return Malformed("its index names other parts than it holds");
  for (size_t i = 1; i < seen_.size(); ++i) {
    if (seen_[i].key == seen_[i - 1].key) return Malformed("it holds a part twice");
  }
  return absl::OkStatus();
}

}  // namespace stillhouse
