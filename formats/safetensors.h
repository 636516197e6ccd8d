// safetensors: reading (memory-mapped, hostile headers refused) and writing (tensor by tensor).
//
// Format: u64 length of the header, little endian; the header, a JSON object from tensor names to
// {dtype, shape, data_offsets}, padded with spaces; the data. The tensors must tile the data
// exactly: no hole (a place to hide bytes), no overlap (a small file that fills memory), nothing
// after.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/file.h"
#include "formats/weights.h"

namespace stillhouse {

inline constexpr uint64_t kSafetensorsHeaderMax = 100'000'000;  // the limit of the Rust library
inline constexpr int kSafetensorsRankMax = 8;

struct SafetensorsTensor {
  std::string name;
  std::string dtype;           // "F32", "BF16", "I64", …
  std::vector<int64_t> shape;  // row-major; empty for a scalar
  uint64_t begin = 0;          // of its data, from the start of the data
  uint64_t end = 0;
};

// Immutable and thread-safe once open.
class SafetensorsFile {
 public:
  // InvalidArgument "PATH: what" for a header that breaks the format; NotFound if there is no file.
  static absl::StatusOr<std::shared_ptr<const SafetensorsFile>> Open(const std::string& path);

  const std::string& path() const { return file_->path(); }
  const FileIdentity& identity() const { return identity_; }
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }  // by offset
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const SafetensorsTensor* Find(absl::string_view name) const;
  // The stored bytes; they need not be aligned for their dtype.
  absl::string_view Bytes(const SafetensorsTensor& tensor) const;
  // REQUIRES: out.size() is the tensor's count. Unimplemented for dtypes other than F32, F16, BF16,
  // F64.
  absl::Status ReadF32(const SafetensorsTensor& tensor, absl::Span<float> out) const {
    return DecodeF32(tensor, Bytes(tensor), out);
  }
  // The same for a part of its Bytes. REQUIRES: `bytes` holds out.size() values.
  absl::Status DecodeF32(const SafetensorsTensor& tensor, absl::string_view bytes,
                         absl::Span<float> out) const;
  // Copies a part of its Bytes (MappedFile::CopyOut).
  absl::Status Copy(absl::string_view bytes, absl::Span<char> out) const {
    return file_->CopyOut(bytes, out);
  }
  // Lets go of the memory behind a part of the map, which stays readable.
  void GiveBack(absl::string_view bytes) const { file_->GiveBack(bytes); }

 private:
  SafetensorsFile() = default;
  absl::Status ParseHeader(absl::string_view header);

  std::shared_ptr<const MappedFile> file_;
  FileIdentity identity_;
  absl::string_view data_;
  std::vector<SafetensorsTensor> tensors_;
  absl::flat_hash_map<std::string, size_t> by_name_;
  std::map<std::string, std::string> metadata_;
};

// Bytes of one element: 0 for a dtype the format does not have.
uint64_t SafetensorsDtypeSize(absl::string_view dtype);

// Writes a file front to back, so that no more than one tensor need be in memory. The file is not
// durable, nor even complete, before Close returns OK. Not thread-safe.
class SafetensorsWriter {
 public:
  // `tensors` in the order in which their data will come; begin and end are worked out here.
  // AlreadyExists if `path` is there; InvalidArgument for a double name or an unknown dtype.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(
      const std::string& path, std::vector<SafetensorsTensor> tensors,
      const std::map<std::string, std::string>& metadata = {{"format", "pt"}});
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // The next bytes of the data, in pieces of any size.
  absl::Status Append(absl::string_view bytes);
  // `values` as `dtype` ("F32", "BF16", "F16"), as EncodeFloats.
  absl::Status AppendF32(absl::Span<const float> values, absl::string_view dtype);
  // Fsyncs and closes. FailedPrecondition if bytes are missing.
  absl::Status Close();

 private:
  SafetensorsWriter(std::string path, int fd, uint64_t expected)
      : path_(std::move(path)), fd_(fd), expected_(expected) {}

  std::string path_;
  int fd_;
  uint64_t expected_;     // data bytes in all
  uint64_t written_ = 0;  // data bytes so far
};

}  // namespace stillhouse
