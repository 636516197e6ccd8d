// Reads what the Python scripts of these tests recorded: numbers and strings, one after another.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/byte_io.h"
#include "common/file.h"
#include "common/status.h"

namespace stillhouse {

// Any read past the end ends the test program. Views live as long as *this.
class Recording {
 public:
  explicit Recording(const std::string& path) {
    auto bytes = ReadFile(path);
    SH_CHECK_OK(bytes);
    bytes_ = *std::move(bytes);
    reader_.emplace(bytes_);
  }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  bool AtEnd() const { return reader_->AtEnd(); }
  template <typename Value>
  Value Get() {
    Value value{};
    SH_CHECK(reader_->Get(&value));
    return value;
  }
  absl::string_view Raw(size_t size) {
    absl::string_view raw;
    SH_CHECK(reader_->GetRaw(size, &raw));
    return raw;
  }
  // A u32 size and so many bytes.
  absl::string_view Field() { return Raw(Get<uint32_t>()); }
  template <typename Value>
  std::vector<Value> Many(size_t count) {
    const absl::string_view raw = Raw(count * sizeof(Value));
    std::vector<Value> values(count);
    if (count > 0) std::memcpy(values.data(), raw.data(), raw.size());
    return values;
  }
  // The sizes of all, then their bytes.
  std::vector<absl::string_view> Strings(size_t count) {
    std::vector<absl::string_view> strings;
    for (const uint32_t size : Many<uint32_t>(count)) strings.push_back(Raw(size));
    return strings;
  }

 private:
  std::string bytes_;
  std::optional<ByteReader> reader_;
};

}  // namespace stillhouse
