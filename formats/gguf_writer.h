// Writing GGUF (version 3, little endian) front to back.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/byte_io.h"
#include "formats/gguf.h"

namespace stillhouse {

// `values` as `type`, as llama.cpp's reference rounds them. OutOfRange for values that the type
// does not hold (what is not finite, in Q8_0; what would become infinite, in F16 and BF16).
// REQUIRES: `type` is F32, F16, BF16 or Q8_0; whole blocks; `out` is what they take.
absl::Status GgmlEncode(const GgmlType& type, absl::Span<const float> values, absl::Span<char> out);

// Keys and values in the order in which they are added. No key twice.
class GgufMetadata {
 public:
  void AddU32(absl::string_view key, int64_t value);  // REQUIRES: it fits
  void AddF32(absl::string_view key, double value);
  void AddBool(absl::string_view key, bool value);
  void AddString(absl::string_view key, absl::string_view value);
  void AddStrings(absl::string_view key, const std::vector<std::string>& values);
  void AddI32s(absl::string_view key, const std::vector<int32_t>& values);
  void AddF32s(absl::string_view key, const std::vector<float>& values);

  uint64_t keys() const { return keys_; }
  const std::string& bytes() const { return bytes_.bytes(); }

 private:
  void AddKey(absl::string_view key, GgufType type);
  void AddArray(absl::string_view key, GgufType element, uint64_t count);

  ByteWriter bytes_;
  uint64_t keys_ = 0;
};

struct GgufTensorInfo {
  std::string name;
  const GgmlType* type;
  std::vector<int64_t> shape;  // row-major; rows are whole blocks
};

// From Create on the file has its full size, of zeros where nothing was appended, so that its
// header can be opened and checked before the data take the time. From DropReserved on it grows as
// they come, and one that a crash cut short is refused when it is opened. Nothing is durable before
// Close returns OK. Not thread-safe.
class GgufWriter {
 public:
  // AlreadyExists if `path` is there.
  static absl::StatusOr<std::unique_ptr<GgufWriter>> Create(const std::string& path,
                                                            const GgufMetadata& metadata,
                                                            std::vector<GgufTensorInfo> tensors);
  ~GgufWriter();
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  // The next bytes of the data, in pieces of any size that end where a tensor does.
  absl::Status Append(absl::string_view bytes);
  // Gives up the zeros behind what was appended. To be called once the header is checked.
  absl::Status DropReserved();
  // Fsyncs and closes. FailedPrecondition if bytes are missing.
  absl::Status Close();

 private:
  GgufWriter(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

  const std::string path_;
  int fd_;
  std::vector<uint64_t> sizes_;  // of the tensors, in bytes without padding
  size_t tensor_ = 0;            // that the next bytes belong to
  uint64_t written_ = 0;         // of it
};

}  // namespace stillhouse
