#include "formats/gguf_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <limits>
#include <utility>

#include "common/fd.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/float_codec.h"

namespace stillhouse {
namespace {

constexpr uint64_t kAlignment = 32;  // the default, which needs no key
constexpr size_t kBlock = 32;        // of Q8_0

uint64_t Padded(uint64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

void PutString(ByteWriter& out, absl::string_view text) {
  out.Put<uint64_t>(text.size());
  out.PutRaw(text);
}

// d = largest / 127 in half precision, then 32 signed bytes: each value times 127 / largest (in
// fp32), rounded half away from zero.
absl::Status EncodeQ8_0(absl::Span<const float> values, char* out) {
  for (size_t at = 0; at < values.size(); at += kBlock, out += kBlock + 2) {
    float largest = 0;
    bool finite = true;
    for (size_t j = 0; j < kBlock; ++j) {
      finite &= std::isfinite(values[at + j]);
      largest = std::max(largest, std::abs(values[at + j]));
    }
    const float d = largest / 127;
    const float inverse = d == 0 ? 0 : 1 / d;
    const uint16_t half = FloatToHalf(d);
    if (!finite || std::isinf(HalfToFloat(half))) {
      return absl::OutOfRangeError("a value is too large for Q8_0, or no number");
    }
    std::memcpy(out, &half, sizeof(half));
    for (size_t j = 0; j < kBlock; ++j) {
      out[2 + j] = static_cast<char>(static_cast<int8_t>(std::round(values[at + j] * inverse)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status GgmlEncode(const GgmlType& type, absl::Span<const float> values,
                        absl::Span<char> out) {
  SH_CHECK(values.size() % type.block == 0 &&
           out.size() == values.size() / type.block * type.bytes);
  if (FloatBytes(type.name) != 0) return EncodeFloats(values, type.name, out);
  SH_CHECK(type.name == "Q8_0", type.name);
  return EncodeQ8_0(values, out.data());
}

void GgufMetadata::AddKey(absl::string_view key, GgufType type) {
  PutString(bytes_, key);
  bytes_.Put<uint32_t>(static_cast<uint32_t>(type));
  ++keys_;
}

void GgufMetadata::AddArray(absl::string_view key, GgufType element, uint64_t count) {
  AddKey(key, GgufType::kArray);
  bytes_.Put<uint32_t>(static_cast<uint32_t>(element));
  bytes_.Put<uint64_t>(count);
}

void GgufMetadata::AddU32(absl::string_view key, int64_t value) {
  SH_CHECK(value >= 0 && value <= std::numeric_limits<uint32_t>::max(), key);
  AddKey(key, GgufType::kU32);
  bytes_.Put<uint32_t>(static_cast<uint32_t>(value));
}

void GgufMetadata::AddF32(absl::string_view key, double value) {
  AddKey(key, GgufType::kF32);
  bytes_.Put<float>(static_cast<float>(value));
}

void GgufMetadata::AddBool(absl::string_view key, bool value) {
  AddKey(key, GgufType::kBool);
  bytes_.Put<uint8_t>(value ? 1 : 0);
}

void GgufMetadata::AddString(absl::string_view key, absl::string_view value) {
  AddKey(key, GgufType::kString);
  PutString(bytes_, value);
}

void GgufMetadata::AddStrings(absl::string_view key, const std::vector<std::string>& values) {
  AddArray(key, GgufType::kString, values.size());
  for (const std::string& value : values) PutString(bytes_, value);
}

void GgufMetadata::AddI32s(absl::string_view key, const std::vector<int32_t>& values) {
  AddArray(key, GgufType::kI32, values.size());
  for (const int32_t value : values) bytes_.Put<int32_t>(value);
}

void GgufMetadata::AddF32s(absl::string_view key, const std::vector<float>& values) {
  AddArray(key, GgufType::kF32, values.size());
  for (const float value : values) bytes_.Put<float>(value);
}

absl::StatusOr<std::unique_ptr<GgufWriter>> GgufWriter::Create(
    const std::string& path, const GgufMetadata& metadata, std::vector<GgufTensorInfo> tensors) {
  ByteWriter head;
  head.PutRaw("GGUF");
  head.Put<uint32_t>(3);
  head.Put<uint64_t>(tensors.size());
  head.Put<uint64_t>(metadata.keys());
  head.PutRaw(metadata.bytes());
  std::vector<uint64_t> sizes;
  uint64_t offset = 0;
  for (const GgufTensorInfo& tensor : tensors) {
    PutString(head, tensor.name);
    head.Put<uint32_t>(static_cast<uint32_t>(tensor.shape.size()));
    uint64_t count = 1;
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size) {
      head.Put<int64_t>(*size);
      count *= static_cast<uint64_t>(*size);
    }
    SH_CHECK(static_cast<uint64_t>(tensor.shape.back()) % tensor.type->block == 0, tensor.name);
    head.Put<uint32_t>(tensor.type->number);
    head.Put<uint64_t>(offset);
    sizes.push_back(count / tensor.type->block * tensor.type->bytes);
    offset += Padded(sizes.back());
  }
  const uint64_t start = Padded(head.size());
  std::string bytes = head.Take();
  bytes.resize(start);
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus("creating", path);
  std::unique_ptr<GgufWriter> writer(new GgufWriter(path, fd));
  writer->sizes_ = std::move(sizes);
  SH_RETURN_IF_ERROR(WriteAll(fd, bytes, path));
  if (::ftruncate(fd, static_cast<off_t>(start + offset)) != 0) return ErrnoStatus("writing", path);
  return writer;
}

GgufWriter::~GgufWriter() {
  if (fd_ >= 0) ::close(fd_);
}

absl::Status GgufWriter::Append(absl::string_view bytes) {
  SH_CHECK(fd_ >= 0, "closed");
  if (tensor_ == sizes_.size() || bytes.size() > sizes_[tensor_] - written_) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": more data than its header announces"));
  }
  SH_RETURN_IF_ERROR(WriteAll(fd_, bytes, path_));
  written_ += bytes.size();
  if (written_ < sizes_[tensor_]) return absl::OkStatus();
  const uint64_t padding = Padded(written_) - written_;
  ++tensor_;
  written_ = 0;
  return WriteAll(fd_, std::string(padding, '\0'), path_);
}

absl::Status GgufWriter::DropReserved() {
  SH_CHECK(fd_ >= 0, "closed");
  const off_t written = ::lseek(fd_, 0, SEEK_CUR);
  if (written < 0 || ::ftruncate(fd_, written) != 0) return ErrnoStatus("writing", path_);
  return absl::OkStatus();
}

absl::Status GgufWriter::Close() {
  SH_CHECK(fd_ >= 0, "closed");
  if (tensor_ != sizes_.size()) {
    return absl::FailedPreconditionError(absl::StrCat(path_, ": only ", tensor_, " of ",
                                                      sizes_.size(), " tensors were given whole"));
  }
  if (::fsync(fd_) != 0) return ErrnoStatus("syncing", path_);
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0) return ErrnoStatus("closing", path_);
  return absl::OkStatus();
}

}  // namespace stillhouse
