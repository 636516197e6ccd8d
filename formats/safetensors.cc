#include "formats/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "common/byte_io.h"
#include "common/fd.h"
#include "common/status.h"
#include "formats/float_codec.h"
#include "formats/json.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kMetadataKey = "__metadata__";
constexpr size_t kConversionBlock = 1 << 16;  // values converted at once when writing

absl::Status Refused(absl::string_view what) { return absl::InvalidArgumentError(what); }

// Bytes of a tensor: the dtype's size times the dimensions, nullopt on overflow.
std::optional<uint64_t> ByteCount(uint64_t element, const std::vector<int64_t>& shape) {
  uint64_t bytes = element;
  for (const int64_t dimension : shape) {
    if (dimension < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(dimension), &bytes)) {
      return std::nullopt;
    }
  }
  return bytes;
}

absl::StatusOr<uint64_t> Offset(const Json& value, absl::string_view name) {
  if (!value.is_number_unsigned()) {
    return Refused(absl::StrCat("tensor \"", name, "\": data_offsets must be two natural numbers"));
  }
  return value.get<uint64_t>();
}

absl::StatusOr<SafetensorsTensor> ParseTensor(const std::string& name, const Json& entry) {
  const std::string label = absl::StrCat("tensor \"", name.substr(0, 200), "\"");
  if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") ||
      !entry.contains("shape") || !entry.contains("data_offsets")) {
    return Refused(absl::StrCat(label, ": needs exactly dtype, shape and data_offsets"));
  }
  SafetensorsTensor tensor;
  tensor.name = name;
  const Json& dtype = entry["dtype"];
  if (!dtype.is_string()) return Refused(absl::StrCat(label, ": dtype must be a string"));
  tensor.dtype = dtype.get<std::string>();
  const uint64_t element = SafetensorsDtypeSize(tensor.dtype);
  if (element == 0) {
    return absl::UnimplementedError(
        absl::StrCat(label, ": unknown dtype \"", tensor.dtype.substr(0, 40), "\""));
  }
  const Json& shape = entry["shape"];
  if (!shape.is_array() || shape.size() > kSafetensorsRankMax) {
    return Refused(
        absl::StrCat(label, ": shape must be a list of at most ", kSafetensorsRankMax, " numbers"));
  }
  for (const Json& dimension : shape) {
    if (!dimension.is_number_unsigned() || dimension.get<uint64_t>() > (uint64_t{1} << 62)) {
      return Refused(absl::StrCat(label, ": shape must be natural numbers"));
    }
    tensor.shape.push_back(dimension.get<int64_t>());
  }
  const Json& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2) {
    return Refused(absl::StrCat(label, ": data_offsets must be two natural numbers"));
  }
  SH_ASSIGN_OR_RETURN(tensor.begin, Offset(offsets[0], name));
  SH_ASSIGN_OR_RETURN(tensor.end, Offset(offsets[1], name));
  const std::optional<uint64_t> bytes = ByteCount(element, tensor.shape);
  if (!bytes.has_value() || tensor.end < tensor.begin || tensor.end - tensor.begin != *bytes) {
    return Refused(absl::StrCat(label, ": data_offsets do not match its shape and dtype"));
  }
  return tensor;
}

std::string HeaderFor(const std::vector<SafetensorsTensor>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  OrderedJson header = OrderedJson::object();
  if (!metadata.empty()) header[std::string(kMetadataKey)] = metadata;
  for (const SafetensorsTensor& tensor : tensors) {
    header[tensor.name] = OrderedJson{{"dtype", tensor.dtype},
                                      {"shape", tensor.shape},
                                      {"data_offsets", {tensor.begin, tensor.end}}};
  }
  std::string text = header.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  text.append((8 - text.size() % 8) % 8, ' ');  // so that the data is aligned
  return text;
}

}  // namespace

uint64_t SafetensorsDtypeSize(absl::string_view dtype) {
  if (dtype == "F64" || dtype == "I64" || dtype == "U64") return 8;
  if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
  if (dtype == "F16" || dtype == "BF16" || dtype == "I16" || dtype == "U16") return 2;
  if (dtype == "I8" || dtype == "U8" || dtype == "BOOL" || dtype == "F8_E4M3" ||
      dtype == "F8_E5M2") {
    return 1;
  }
  return 0;
}

absl::StatusOr<std::shared_ptr<const SafetensorsFile>> SafetensorsFile::Open(
    const std::string& path) {
  std::shared_ptr<SafetensorsFile> opened(new SafetensorsFile);
  SH_ASSIGN_OR_RETURN(opened->file_, MapIdentified(path, opened->identity_));
  const absl::string_view bytes = opened->file_->bytes();
  ByteReader reader(bytes);
  uint64_t header_size = 0;
  if (!reader.Get(&header_size)) {
    return Refused(
        absl::StrCat(path, ": ", bytes.size(), " bytes are too few for a safetensors file"));
  }
  if (header_size > kSafetensorsHeaderMax) {
    return Refused(absl::StrCat(path, ": a header of ", header_size, " bytes is past the limit of ",
                                kSafetensorsHeaderMax, " (not a safetensors file?)"));
  }
  absl::string_view header;
  if (!reader.GetRaw(header_size, &header)) {
    return Refused(absl::StrCat(path, ": truncated: its header needs ", header_size + 8,
                                " bytes, the file has ", bytes.size()));
  }
  opened->data_ = reader.rest();
  SH_RETURN_IF_ERROR_AT(opened->ParseHeader(header), path);
  return std::shared_ptr<const SafetensorsFile>(std::move(opened));
}

absl::Status SafetensorsFile::ParseHeader(absl::string_view header) {
  if (header.empty() || header.front() != '{') return Refused("the header is not a JSON object");
  SH_ASSIGN_OR_RETURN(const Json root, ParseJson(header, "header"));
  for (const auto& [name, entry] : root.items()) {
    if (name == std::string(kMetadataKey)) {
      if (!entry.is_object()) return Refused("__metadata__ must be an object of strings");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) return Refused("__metadata__ must be an object of strings");
        metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    SH_ASSIGN_OR_RETURN(SafetensorsTensor tensor, ParseTensor(name, entry));
    tensors_.push_back(std::move(tensor));
  }
  std::sort(tensors_.begin(), tensors_.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t next = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const SafetensorsTensor& tensor = tensors_[i];
    if (tensor.begin != next) {
      return Refused(absl::StrCat("tensor \"", tensor.name.substr(0, 200), "\" starts at ",
                                  tensor.begin, " where ", next,
                                  " was expected: a hole or an overlap"));
    }
    next = tensor.end;
    by_name_[tensor.name] = i;
  }
  if (next != data_.size()) {
    return Refused(absl::StrCat(next > data_.size() ? "truncated" : "bytes after the last tensor",
                                ": the header describes ", next, " bytes of data, the file has ",
                                data_.size()));
  }
  return absl::OkStatus();
}

const SafetensorsTensor* SafetensorsFile::Find(absl::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

absl::string_view SafetensorsFile::Bytes(const SafetensorsTensor& tensor) const {
  return data_.substr(tensor.begin, tensor.end - tensor.begin);
}

absl::Status SafetensorsFile::DecodeF32(const SafetensorsTensor& tensor, absl::string_view bytes,
                                        absl::Span<float> out) const {
  SH_CHECK(out.size() * SafetensorsDtypeSize(tensor.dtype) == bytes.size());
  if (tensor.dtype == "F32") {
    stillhouse::DecodeF32(bytes, out);
  } else if (tensor.dtype == "BF16") {
    DecodeBf16(bytes, out);
  } else if (tensor.dtype == "F16") {
    DecodeF16(bytes, out);
  } else if (tensor.dtype == "F64") {
    DecodeF64(bytes, out);
  } else {
    return absl::UnimplementedError(absl::StrCat(path(), ": tensor \"", tensor.name, "\": dtype ",
                                                 tensor.dtype, " cannot be read as numbers"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::string& path, std::vector<SafetensorsTensor> tensors,
    const std::map<std::string, std::string>& metadata) {
  uint64_t next = 0;
  absl::flat_hash_set<std::string> names;
  for (SafetensorsTensor& tensor : tensors) {
    if (!names.insert(tensor.name).second || tensor.name == kMetadataKey) {
      return Refused(
          absl::StrCat(path, ": tensor \"", tensor.name, "\" twice, or a reserved name"));
    }
    const uint64_t element = SafetensorsDtypeSize(tensor.dtype);
    const std::optional<uint64_t> bytes = ByteCount(element, tensor.shape);
    if (element == 0 || !bytes.has_value()) {
      return Refused(absl::StrCat(path, ": tensor \"", tensor.name, "\": dtype \"", tensor.dtype,
                                  "\" or its shape is impossible"));
    }
    tensor.begin = next;
    if (__builtin_add_overflow(next, *bytes, &next)) {
      return Refused(absl::StrCat(path, ": too large"));
    }
    tensor.end = next;
  }
  const std::string header = HeaderFor(tensors, metadata);
  if (header.size() > kSafetensorsHeaderMax) {
    return Refused(absl::StrCat(path, ": a header of ", header.size(), " bytes is past the limit"));
  }
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus("creating", path);
  std::unique_ptr<SafetensorsWriter> writer(new SafetensorsWriter(path, fd, next));
  ByteWriter head;
  head.Put<uint64_t>(header.size());
  head.PutRaw(header);
  SH_RETURN_IF_ERROR(WriteAll(fd, head.bytes(), path));
  return writer;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ >= 0) ::close(fd_);
}

absl::Status SafetensorsWriter::Append(absl::string_view bytes) {
  SH_CHECK(fd_ >= 0, "closed");
  if (bytes.size() > expected_ - written_) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": more data than its header announces (", expected_, " bytes)"));
  }
  written_ += bytes.size();
  return WriteAll(fd_, bytes, path_);
}

absl::Status SafetensorsWriter::AppendF32(absl::Span<const float> values, absl::string_view dtype) {
  if (dtype == "F32") {
    return Append({reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)});
  }
  if (FloatBytes(dtype) == 0) {
    return absl::UnimplementedError(absl::StrCat(path_, ": cannot write dtype ", dtype));
  }
  std::vector<char> block(std::min(values.size(), kConversionBlock) * FloatBytes(dtype));
  while (!values.empty()) {
    const size_t count = std::min(values.size(), kConversionBlock);
    const absl::Span<char> bytes(block.data(), count * FloatBytes(dtype));
    SH_RETURN_IF_ERROR_AT(EncodeFloats(values.subspan(0, count), dtype, bytes), path_);
    SH_RETURN_IF_ERROR(Append({bytes.data(), bytes.size()}));
    values.remove_prefix(count);
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Close() {
  SH_CHECK(fd_ >= 0, "closed");
  if (written_ != expected_) {
    return absl::FailedPreconditionError(absl::StrCat(
        path_, ": ", written_, " bytes of data were given, its header announces ", expected_));
  }
  if (::fsync(fd_) != 0) return ErrnoStatus("syncing", path_);
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0) return ErrnoStatus("closing", path_);
  return absl::OkStatus();
}

}  // namespace stillhouse
