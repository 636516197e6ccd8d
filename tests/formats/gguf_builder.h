// Writes GGUF files for tests, well-formed ones and, on request, broken ones.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/byte_io.h"

namespace stillhouse {

class GgufBuilder {
 public:
  void AddU32(absl::string_view key, uint32_t value);
  void AddF32(absl::string_view key, float value);
  void AddBool(absl::string_view key, bool value);
  void AddString(absl::string_view key, absl::string_view value);
  void AddStrings(absl::string_view key, const std::vector<std::string>& values);
  void AddI32s(absl::string_view key, const std::vector<int32_t>& values);
  // A key with a type and value bytes of the test's choosing.
  void AddRaw(absl::string_view key, uint32_t type, absl::string_view value);
  // `shape` row-major; `type` is ggml's number; the data is padded to 32 bytes. `offset_error` is
  // added to the offset that belongs there.
  void AddTensor(absl::string_view name, const std::vector<int64_t>& shape, uint32_t type,
                 absl::string_view data, int64_t offset_error = 0);

  // The file. The overrides stand in the header instead of the true counts.
  std::string Build(uint32_t version = 3, int64_t tensors = -1, int64_t keys = -1) const;

 private:
  void Key(absl::string_view key, uint32_t type);

  ByteWriter metadata_;
  uint64_t keys_ = 0;
  ByteWriter infos_;
  uint64_t tensors_ = 0;
  std::string data_;
};

}  // namespace stillhouse
