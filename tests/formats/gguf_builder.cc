#include "tests/formats/gguf_builder.h"

#include <algorithm>

namespace stillhouse {
namespace {

void PutString(ByteWriter& out, absl::string_view text) {
  out.Put<uint64_t>(text.size());
  out.PutRaw(text);
}

}  // namespace

void GgufBuilder::Key(absl::string_view key, uint32_t type) {
  PutString(metadata_, key);
  metadata_.Put<uint32_t>(type);
  ++keys_;
}

void GgufBuilder::AddU32(absl::string_view key, uint32_t value) {
  Key(key, 4);
  metadata_.Put<uint32_t>(value);
}

void GgufBuilder::AddF32(absl::string_view key, float value) {
  Key(key, 6);
  metadata_.Put<float>(value);
}

void GgufBuilder::AddBool(absl::string_view key, bool value) {
  Key(key, 7);
  metadata_.Put<uint8_t>(value ? 1 : 0);
}

void GgufBuilder::AddString(absl::string_view key, absl::string_view value) {
  Key(key, 8);
  PutString(metadata_, value);
}

void GgufBuilder::AddStrings(absl::string_view key, const std::vector<std::string>& values) {
  Key(key, 9);
  metadata_.Put<uint32_t>(8);
  metadata_.Put<uint64_t>(values.size());
  for (const std::string& value : values) PutString(metadata_, value);
}

void GgufBuilder::AddI32s(absl::string_view key, const std::vector<int32_t>& values) {
  Key(key, 9);
  metadata_.Put<uint32_t>(5);
  metadata_.Put<uint64_t>(values.size());
  for (const int32_t value : values) metadata_.Put<int32_t>(value);
}

void GgufBuilder::AddRaw(absl::string_view key, uint32_t type, absl::string_view value) {
  Key(key, type);
  metadata_.PutRaw(value);
}

void GgufBuilder::AddTensor(absl::string_view name, const std::vector<int64_t>& shape,
                            uint32_t type, absl::string_view data, int64_t offset_error) {
  PutString(infos_, name);
  infos_.Put<uint32_t>(static_cast<uint32_t>(shape.size()));
  for (auto it = shape.rbegin(); it != shape.rend(); ++it) infos_.Put<int64_t>(*it);
  infos_.Put<uint32_t>(type);
  infos_.Put<uint64_t>(data_.size() + offset_error);
  ++tensors_;
  data_.append(data.data(), data.size());
  data_.resize((data_.size() + 31) / 32 * 32);
}

std::string GgufBuilder::Build(uint32_t version, int64_t tensors, int64_t keys) const {
  ByteWriter out;
  out.PutRaw("GGUF");
  out.Put<uint32_t>(version);
  out.Put<uint64_t>(tensors >= 0 ? tensors : tensors_);
  out.Put<uint64_t>(keys >= 0 ? keys : keys_);
  out.PutRaw(metadata_.bytes());
  out.PutRaw(infos_.bytes());
  std::string file = out.Take();
  file.resize((file.size() + 31) / 32 * 32);
  return file + data_;
}

}  // namespace stillhouse
