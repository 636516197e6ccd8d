// Export files: parts of sections in one file that other programs can map and read without us.
// Grammar in docs/formats.md.
//
// Writer and reader know bytes only: they are handed a function that appends, or one that reads,
// and hold an index in memory (56 bytes a part). The reader trusts nothing: DataLoss names what is
// wrong, and nothing is allocated that the file's size does not bound. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "storage/part.h"

namespace stillhouse {

// So that a file can be copied, hashed and mapped in one go; a part never crosses two files.
inline constexpr uint64_t kExportFileBytesMax = 1ull << 30;
inline constexpr uint32_t kExportFileVersion = 1;

// Where a part lies: a row of the index.
struct ExportEntry {
  PartKey key;
  uint32_t row_count = 0;
  uint64_t offset = 0;
  uint32_t record_bytes = 0;
  uint32_t spec = 0;  // number of its section's canonical name in the file's list
};

class ExportFileWriter {
 public:
  // In order and completely, or an error, which Add and Finish then return.
  using Append = std::function<absl::Status(absl::string_view bytes)>;

  // `specs`: canonical names. Both are as for every other file of the same export.
  ExportFileWriter(const std::vector<std::string>& specs, Append append);

  // Bytes of the whole file if a part of so many bytes were added and then no other.
  uint64_t BytesWith(uint64_t payload_bytes) const;
  // REQUIRES: spec is below the number of specs; no part has its key twice.
  absl::Status Add(const Part& part, uint32_t spec);
  // REQUIRES: nothing follows.
  absl::Status Finish();

  bool empty() const { return entries_.empty(); }

 private:
  absl::Status Write(absl::string_view bytes);

  const std::string header_;
  const Append append_;
  bool begun_ = false;
  uint64_t offset_ = 0;
  std::vector<ExportEntry> entries_;
};

struct ExportPart {
  Part part;
  uint32_t spec = 0;
};

class ExportFileReader {
 public:
  // Puts bytes [offset, offset + size) into `out`, all or an error. Asked for bytes of the file
  // only.
  using ReadAt = std::function<absl::Status(uint64_t offset, size_t size, char* out)>;

  // Reads and checks header, footer and index.
  static absl::StatusOr<std::unique_ptr<ExportFileReader>> Open(uint64_t file_bytes, ReadAt read);

  const std::vector<std::string>& specs() const { return specs_; }
  // The next part in the order of the file, its record checked; nullopt after the last. By then
  // every byte has been read and the index was found to be what the parts give.
  absl::StatusOr<std::optional<ExportPart>> Next();

 private:
  ExportFileReader(uint64_t file_bytes, ReadAt read)
      : file_bytes_(file_bytes), read_(std::move(read)) {}
  absl::Status ReadHeader(std::string* header);
  absl::Status ReadIndex(absl::string_view header);
  absl::Status CheckIndex();
  absl::StatusOr<absl::string_view> Bytes(uint64_t offset, size_t size);

  const uint64_t file_bytes_;
  const ReadAt read_;
  std::vector<std::string> specs_;
  std::string index_;
  uint64_t records_ = 0;      // as the footer states
  uint64_t records_end_ = 0;  // where their bytes end
  uint64_t next_ = 0;         // offset of the next record
  std::vector<ExportEntry> seen_;
  std::string window_;  // bytes of the file from window_offset_ on
  uint64_t window_offset_ = 0;
};

}  // namespace stillhouse
