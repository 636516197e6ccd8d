#include "formats/gguf.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <utility>

#include "common/status.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kMagic = "GGUF";
constexpr int64_t kAlignmentDefault = 32;
constexpr int64_t kAlignmentMax = 1 << 20;

// Those with blocks of 0 are known by name only.
constexpr std::array<GgmlType, 34> kTypes = {{
    {0, "F32", 1, 4},       {1, "F16", 1, 2},       {30, "BF16", 1, 2},     {8, "Q8_0", 32, 34},
    {2, "Q4_0", 32, 18},    {3, "Q4_1", 32, 20},    {6, "Q5_0", 32, 22},    {7, "Q5_1", 32, 24},
    {12, "Q4_K", 256, 144}, {13, "Q5_K", 256, 176}, {14, "Q6_K", 256, 210}, {9, "Q8_1", 0, 0},
    {10, "Q2_K", 0, 0},     {11, "Q3_K", 0, 0},     {15, "Q8_K", 0, 0},     {16, "IQ2_XXS", 0, 0},
    {17, "IQ2_XS", 0, 0},   {18, "IQ3_XXS", 0, 0},  {19, "IQ1_S", 0, 0},    {20, "IQ4_NL", 0, 0},
    {21, "IQ3_S", 0, 0},    {22, "IQ2_S", 0, 0},    {23, "IQ4_XS", 0, 0},   {24, "I8", 0, 0},
    {25, "I16", 0, 0},      {26, "I32", 0, 0},      {27, "I64", 0, 0},      {28, "F64", 0, 0},
    {29, "IQ1_M", 0, 0},    {34, "TQ1_0", 0, 0},    {35, "TQ2_0", 0, 0},    {39, "MXFP4", 0, 0},
    {40, "NVFP4", 0, 0},    {41, "Q1_0", 0, 0},
}};

// Bytes of a metadata element of fixed size; 0 for strings, arrays and unknown types.
uint64_t FixedSize(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return 0;
}

absl::Status Broken(absl::string_view what) { return absl::InvalidArgumentError(what); }

// A name cut to a length fit for a message, control characters replaced.
std::string Shown(absl::string_view name) {
  std::string shown(name.substr(0, 80));
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return shown;
}

bool GetString(ByteReader& reader, absl::string_view* text) {
  uint64_t size = 0;
  return reader.Get(&size) && reader.GetRaw(size, text);
}

absl::Status ReadValue(ByteReader& reader, absl::string_view key, GgufValue& value) {
  const auto truncated = [&] {
    return Broken(absl::StrCat("truncated in the value of \"", Shown(key), "\""));
  };
  uint32_t type = 0;
  if (!reader.Get(&type)) return truncated();
  value.type = static_cast<GgufType>(type);
  if (value.type == GgufType::kString) {
    return GetString(reader, &value.bytes) ? absl::OkStatus() : truncated();
  }
  if (value.type != GgufType::kArray) {
    const uint64_t size = FixedSize(value.type);
    if (size == 0) {
      return Broken(absl::StrCat("\"", Shown(key), "\" has unknown type ", type));
    }
    return reader.GetRaw(size, &value.bytes) ? absl::OkStatus() : truncated();
  }
  uint32_t element = 0;
  if (!reader.Get(&element) || !reader.Get(&value.count)) return truncated();
  value.element = static_cast<GgufType>(element);
  const absl::string_view start = reader.rest();
  if (value.element == GgufType::kString) {
    absl::string_view text;
    for (uint64_t i = 0; i < value.count; ++i) {
      if (!GetString(reader, &text)) return truncated();
    }
  } else {
    const uint64_t size = FixedSize(value.element);
    uint64_t bytes = 0;
    if (size == 0) {
      return Broken(absl::StrCat("\"", Shown(key), "\" is an array of type ", element,
                                 ", which is unknown or nested"));
    }
    absl::string_view skipped;
    if (__builtin_mul_overflow(size, value.count, &bytes) || !reader.GetRaw(bytes, &skipped)) {
      return truncated();
    }
  }
  value.bytes = start.substr(0, start.size() - reader.rest().size());
  return absl::OkStatus();
}

template <typename T>
T Load(absl::string_view bytes, uint64_t index = 0) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

// The integer at `index` of packed elements; nullopt for other types and for values past int64.
std::optional<int64_t> LoadInt(GgufType type, absl::string_view bytes, uint64_t index) {
  switch (type) {
    case GgufType::kU8:
      return Load<uint8_t>(bytes, index);
    case GgufType::kI8:
      return Load<int8_t>(bytes, index);
    case GgufType::kU16:
      return Load<uint16_t>(bytes, index);
    case GgufType::kI16:
      return Load<int16_t>(bytes, index);
    case GgufType::kU32:
      return Load<uint32_t>(bytes, index);
    case GgufType::kI32:
      return Load<int32_t>(bytes, index);
    case GgufType::kI64:
      return Load<int64_t>(bytes, index);
    case GgufType::kU64: {
      const uint64_t value = Load<uint64_t>(bytes, index);
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

// The double of the shortest decimal that gives this float: 1e-05, where a plain widening would say
// 9.999999747378752e-06, which no config.json has.
double Widen(float value) {
  std::array<char, 32> text;
  const auto written = std::to_chars(text.data(), text.data() + text.size(), value);
  double wide = value;
  std::from_chars(text.data(), written.ptr, wide);
  return wide;
}

absl::StatusOr<const GgmlType*> TypeOf(uint32_t number, absl::string_view tensor) {
  for (const GgmlType& known : kTypes) {
    if (known.number != number) continue;
    if (known.block != 0) return &known;
    return absl::UnimplementedError(
        absl::StrCat("tensor \"", Shown(tensor), "\" has type ", known.name,
                     ", only F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K are "
                     "implemented"));
  }
  return Broken(absl::StrCat("tensor \"", Shown(tensor), "\" has unknown type ", number));
}

}  // namespace

const GgmlType* FindGgmlType(absl::string_view name) {
  for (const GgmlType& known : kTypes) {
    if (known.name == name && known.block != 0) return &known;
  }
  return nullptr;
}

absl::StatusOr<std::shared_ptr<const GgufFile>> GgufFile::Open(const std::string& path) {
  std::shared_ptr<GgufFile> opened(new GgufFile);
  SH_ASSIGN_OR_RETURN(opened->file_, MapIdentified(path, opened->identity_));
  SH_RETURN_IF_ERROR_AT(opened->Parse(), path);
  return std::shared_ptr<const GgufFile>(std::move(opened));
}

absl::Status GgufFile::Parse() {
  ByteReader reader(file_->bytes());
  absl::string_view magic;
  uint32_t version = 0;
  if (!reader.GetRaw(kMagic.size(), &magic) || magic != kMagic) {
    return Broken("not a GGUF file (it does not begin with \"GGUF\")");
  }
  if (!reader.Get(&version)) return Broken("truncated in its header");
  if (version != 2 && version != 3) {
    return absl::UnimplementedError(
        absl::StrCat("GGUF version ", version, " is not implemented, only little-endian 2 and 3"));
  }
  uint64_t tensors = 0;
  uint64_t keys = 0;
  if (!reader.Get(&tensors) || !reader.Get(&keys)) return Broken("truncated in its header");
  if (tensors > kGgufTensorsMax || keys > kGgufMetadataMax) {
    return Broken(absl::StrCat("announces ", tensors, " tensors and ", keys,
                               " metadata keys; the limits are ", kGgufTensorsMax, " and ",
                               kGgufMetadataMax));
  }
  SH_RETURN_IF_ERROR(ParseMetadata(reader, keys));
  return ParseTensors(reader, tensors);
}

absl::Status GgufFile::ParseMetadata(ByteReader& reader, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    absl::string_view key;
    if (!GetString(reader, &key)) {
      return Broken(absl::StrCat("truncated at metadata key ", i + 1, " of ", count));
    }
    if (key.empty() || key.size() > kGgufNameBytesMax) {
      return Broken(absl::StrCat("metadata key ", i + 1, " has ", key.size(), " bytes"));
    }
    GgufValue value;
    SH_RETURN_IF_ERROR(ReadValue(reader, key, value));
    if (!metadata_.emplace(key, value).second) {
      return Broken(absl::StrCat("metadata key \"", Shown(key), "\" stands twice"));
    }
  }
  return absl::OkStatus();
}

absl::Status GgufFile::ParseTensor(ByteReader& reader, GgufTensor& tensor, uint64_t& offset) {
  absl::string_view name;
  uint32_t rank = 0;
  if (!GetString(reader, &name) || !reader.Get(&rank))
    return Broken("truncated in its tensor list");
  if (name.empty() || name.size() > kGgufNameBytesMax) {
    return Broken(absl::StrCat("a tensor's name has ", name.size(), " bytes"));
  }
  const std::string label = absl::StrCat("tensor \"", Shown(name), "\"");
  tensor.name = std::string(name);
  if (rank == 0 || rank > kGgufRankMax) {
    return Broken(
        absl::StrCat(label, " has ", rank, " dimensions; 1 to ", kGgufRankMax, " are possible"));
  }
  uint64_t count = 1;
  for (uint32_t i = 0; i < rank; ++i) {
    uint64_t dimension = 0;
    if (!reader.Get(&dimension)) return Broken("truncated in its tensor list");
    if (dimension == 0) return Broken(absl::StrCat(label, " has a dimension of 0"));
    if (__builtin_mul_overflow(count, dimension, &count) || count > (uint64_t{1} << 48)) {
      return Broken(absl::StrCat(label, " is larger than any memory"));
    }
    tensor.shape.push_back(static_cast<int64_t>(dimension));
  }
  uint32_t type = 0;
  if (!reader.Get(&type) || !reader.Get(&offset)) return Broken("truncated in its tensor list");
  SH_ASSIGN_OR_RETURN(tensor.type, TypeOf(type, name));
  if (tensor.shape.front() % tensor.type->block != 0) {
    return Broken(absl::StrCat(label, ": rows of ", tensor.shape.front(),
                               " values are not whole blocks of ", tensor.type->block));
  }
  std::reverse(tensor.shape.begin(), tensor.shape.end());
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(count / tensor.type->block, uint64_t{tensor.type->bytes}, &bytes)) {
    return Broken(absl::StrCat(label, " is larger than any memory"));
  }
  // Only the size for now: where the data begins is known after the last entry.
  tensor.bytes = absl::string_view(nullptr, bytes);
  return absl::OkStatus();
}

absl::Status GgufFile::ParseTensors(ByteReader& reader, uint64_t count) {
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> given, Int("general.alignment"));
  const int64_t alignment = given.value_or(kAlignmentDefault);
  if (alignment < 8 || alignment > kAlignmentMax || (alignment & (alignment - 1)) != 0) {
    return Broken(absl::StrCat("general.alignment is ", alignment));
  }
  const uint64_t mask = static_cast<uint64_t>(alignment) - 1;
  std::vector<uint64_t> offsets;
  for (uint64_t i = 0; i < count; ++i) {
    GgufTensor tensor;
    uint64_t offset = 0;
    SH_RETURN_IF_ERROR(ParseTensor(reader, tensor, offset));
    if (!tensor_index_.emplace(tensor.name, tensors_.size()).second) {
      return Broken(absl::StrCat("tensor \"", Shown(tensor.name), "\" stands twice"));
    }
    tensors_.push_back(std::move(tensor));
    offsets.push_back(offset);
  }
  const absl::string_view file = file_->bytes();
  const uint64_t header = file.size() - reader.rest().size();
  const uint64_t padding = (mask + 1 - (header & mask)) & mask;
  const uint64_t start = std::min<uint64_t>(header + padding, file.size());
  const absl::string_view data = file.substr(start);
  uint64_t next = 0;  // tensors lie in the order of the list, each padded to the alignment
  for (size_t i = 0; i < tensors_.size(); ++i) {
    GgufTensor& tensor = tensors_[i];
    const uint64_t bytes = tensor.bytes.size();
    if (offsets[i] != next) {
      return Broken(absl::StrCat("tensor \"", Shown(tensor.name), "\" has offset ", offsets[i],
                                 " where ", next, " was expected"));
    }
    if (next > data.size() || bytes > data.size() - next) {
      return Broken(absl::StrCat("truncated: tensor \"", Shown(tensor.name),
                                 "\" ends past the end of the file"));
    }
    tensor.bytes = data.substr(next, bytes);
    next = (next + bytes + mask) & ~mask;
  }
  return absl::OkStatus();
}

std::vector<FileIdentity> GgufFile::identities() const {
  std::vector<FileIdentity> all = {identity_};
  for (const auto& other : others_) all.push_back(other->identity_);
  return all;
}

void GgufFile::GiveBack(absl::string_view bytes) const {
  file_->GiveBack(bytes);
  for (const auto& other : others_) other->file_->GiveBack(bytes);
}

const GgufTensor* GgufFile::FindTensor(absl::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

const GgufValue* GgufFile::Find(absl::string_view key) const {
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? nullptr : &found->second;
}

absl::StatusOr<std::optional<int64_t>> GgufFile::Int(absl::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::optional<int64_t>();
  const std::optional<int64_t> number = LoadInt(value->type, value->bytes, 0);
  if (!number.has_value()) return Broken(absl::StrCat("\"", Shown(key), "\" is not an integer"));
  return number;
}

absl::StatusOr<std::optional<double>> GgufFile::Number(absl::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::optional<double>();
  if (value->type == GgufType::kF32) return std::optional<double>(Widen(Load<float>(value->bytes)));
  if (value->type == GgufType::kF64) return std::optional<double>(Load<double>(value->bytes));
  return Broken(absl::StrCat("\"", Shown(key), "\" is not a floating-point number"));
}

absl::StatusOr<std::optional<bool>> GgufFile::Bool(absl::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::optional<bool>();
  if (value->type != GgufType::kBool || Load<uint8_t>(value->bytes) > 1) {
    return Broken(absl::StrCat("\"", Shown(key), "\" is not true or false"));
  }
  return std::optional<bool>(Load<uint8_t>(value->bytes) != 0);
}

absl::StatusOr<std::optional<absl::string_view>> GgufFile::String(absl::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::optional<absl::string_view>();
  if (value->type != GgufType::kString) {
    return Broken(absl::StrCat("\"", Shown(key), "\" is not a string"));
  }
  return std::optional<absl::string_view>(value->bytes);
}

absl::StatusOr<std::vector<absl::string_view>> GgufFile::Strings(absl::string_view key) const {
  std::vector<absl::string_view> all;
  const GgufValue* value = Find(key);
  if (value == nullptr) return all;
  if (value->type != GgufType::kArray || value->element != GgufType::kString) {
    return Broken(absl::StrCat("\"", Shown(key), "\" is not an array of strings"));
  }
  ByteReader reader(value->bytes);
  all.resize(value->count);  // each took eight bytes of the file at least
  for (absl::string_view& text : all) SH_CHECK(GetString(reader, &text));
  return all;
}

absl::StatusOr<std::vector<int64_t>> GgufFile::Ints(absl::string_view key) const {
  std::vector<int64_t> all;
  const GgufValue* value = Find(key);
  if (value == nullptr) return all;
  for (uint64_t i = 0; value->type == GgufType::kArray && i < value->count; ++i) {
    const std::optional<int64_t> number = LoadInt(value->element, value->bytes, i);
    if (!number.has_value()) break;
    all.push_back(*number);
  }
  if (value->type != GgufType::kArray || all.size() != value->count) {
    return Broken(absl::StrCat("\"", Shown(key), "\" is not an array of integers"));
  }
  return all;
}

absl::StatusOr<std::vector<double>> GgufFile::Numbers(absl::string_view key) const {
  std::vector<double> all;
  const GgufValue* value = Find(key);
  if (value == nullptr) return all;
  if (value->type != GgufType::kArray || value->element != GgufType::kF32) {
    return Broken(
        absl::StrCat("\"", Shown(key), "\" is not an array of 32-bit floating-point numbers"));
  }
  all.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) all.push_back(Load<float>(value->bytes, i));
  return all;
}

}  // namespace stillhouse
