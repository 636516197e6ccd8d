// Strict JSON for files that other people wrote: config.json, tokenizer.json, safetensors headers.
//
// On top of the grammar: no duplicate keys (two readers of one file must see one model), no nesting
// past kJsonDepthMax. Errors are InvalidArgument "PATH: what"; "PATH:LINE:COLUMN: what" for what is
// no JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace stillhouse {

using Json = nlohmann::json;                 // keys sorted
using OrderedJson = nlohmann::ordered_json;  // keys in the order they were put

inline constexpr int kJsonDepthMax = 64;  // the files we read nest to about 8

// `line`: the text is this line of a file of many, which errors name after the path.
absl::StatusOr<Json> ParseJson(absl::string_view text, absl::string_view path,
                               std::optional<uint64_t> line = std::nullopt);
// ParseJson of a file, refused when it is larger than `bytes_max`. NotFound if it is not there.
absl::StatusOr<Json> ReadJsonFile(const std::string& path, uint64_t bytes_max);

// A member of an object, typed. A missing or null member gives nullopt; another type is
// InvalidArgument "PATH: `key` must be …". `object` may be any value.
class JsonFields {
 public:
  // Both must outlive *this.
  JsonFields(const Json& object, absl::string_view path) : object_(object), path_(path) {}

  absl::StatusOr<std::optional<int64_t>> Int(absl::string_view key) const;
  absl::StatusOr<std::optional<double>> Number(absl::string_view key) const;
  absl::StatusOr<std::optional<bool>> Bool(absl::string_view key) const;
  absl::StatusOr<std::optional<std::string>> String(absl::string_view key) const;
  absl::StatusOr<std::string> RequiredString(absl::string_view key) const;
  const Json* Find(absl::string_view key) const;  // null where missing or null
  bool Has(absl::string_view key) const;          // also where it is null
  absl::string_view path() const { return path_; }
  absl::Status WrongType(absl::string_view key, absl::string_view wanted) const;

 private:
  const Json& object_;
  absl::string_view path_;
};

}  // namespace stillhouse
