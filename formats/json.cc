#include "formats/json.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "common/file.h"
#include "common/status.h"

namespace stillhouse {
namespace {

// Thrown through nlohmann's parser by the callback below, caught in ParseJson.
class RefusedJson : public std::exception {
 public:
  explicit RefusedJson(std::string what) : what_(std::move(what)) {}
  const char* what() const noexcept override { return what_.c_str(); }

 private:
  std::string what_;
};

// "LINE:COLUMN" of the byte that `byte`, which counts from 1, is; of the last one where it lies
// past the end. Columns count characters.
std::string PlaceOf(absl::string_view text, size_t byte, uint64_t line) {
  const absl::string_view before = text.substr(0, std::min(byte, text.size()));
  size_t column = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    if (i > 0 && before[i - 1] == '\n') {
      ++line;
      column = 0;
    }
    column += (static_cast<uint8_t>(before[i]) & 0xc0) == 0x80 ? 0 : 1;
  }
  return absl::StrCat(line, ":", std::max<size_t>(column, 1));
}

class StrictCallback {
 public:
  bool operator()(int depth, Json::parse_event_t event, Json& value) {
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        if (depth >= kJsonDepthMax) {
          throw RefusedJson(absl::StrCat("nested deeper than ", kJsonDepthMax, " levels"));
        }
        keys_.emplace_back();
        break;
      case Json::parse_event_t::object_end:
      case Json::parse_event_t::array_end:
        keys_.pop_back();
        break;
      case Json::parse_event_t::key: {
        const std::string& key = value.get_ref<const std::string&>();
        if (!keys_.back().insert(key).second) {
          throw RefusedJson(absl::StrCat("key \"", key.substr(0, 100), "\" stands twice"));
        }
        break;
      }
      case Json::parse_event_t::value:
        break;
    }
    return true;
  }

 private:
  std::vector<absl::flat_hash_set<std::string>> keys_;
};

}  // namespace

absl::StatusOr<Json> ParseJson(absl::string_view text, absl::string_view path,
                               std::optional<uint64_t> line) {
  const std::string where = line.has_value() ? absl::StrCat(path, ":", *line) : std::string(path);
  try {
    StrictCallback strict;
    return Json::parse(text.data(), text.data() + text.size(),
                       [&strict](int depth, Json::parse_event_t event, Json& value) {
                         return strict(depth, event, value);
                       });
  } catch (const RefusedJson& refused) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", refused.what()));
  } catch (const Json::parse_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ":", PlaceOf(text, error.byte, line.value_or(1)), ": not valid JSON",
                     error.byte > text.size() ? ", which ends here" : ""));
  } catch (const std::exception&) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": not valid JSON (a number is out of range)"));
  }
}

absl::StatusOr<Json> ReadJsonFile(const std::string& path, uint64_t bytes_max) {
  SH_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, bytes_max));
  return ParseJson(text, path);
}

const Json* JsonFields::Find(absl::string_view key) const {
  if (!object_.is_object()) return nullptr;
  const auto found = object_.find(std::string(key));
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool JsonFields::Has(absl::string_view key) const {
  return object_.is_object() && object_.contains(std::string(key));
}

absl::Status JsonFields::WrongType(absl::string_view key, absl::string_view wanted) const {
  return absl::InvalidArgumentError(absl::StrCat(path_, ": `", key, "` must be ", wanted));
}

absl::StatusOr<std::optional<int64_t>> JsonFields::Int(absl::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr) return std::optional<int64_t>();
  const bool fits =
      value->is_number_integer() &&
      (!value->is_number_unsigned() ||
       value->get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
  if (!fits) return WrongType(key, "an integer");
  return std::optional<int64_t>(value->get<int64_t>());
}

absl::StatusOr<std::optional<double>> JsonFields::Number(absl::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr) return std::optional<double>();
  if (!value->is_number()) return WrongType(key, "a number");
  return std::optional<double>(value->get<double>());
}

absl::StatusOr<std::optional<bool>> JsonFields::Bool(absl::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr) return std::optional<bool>();
  if (!value->is_boolean()) return WrongType(key, "true or false");
  return std::optional<bool>(value->get<bool>());
}

absl::StatusOr<std::optional<std::string>> JsonFields::String(absl::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr) return std::optional<std::string>();
  if (!value->is_string()) return WrongType(key, "a string");
  return std::optional<std::string>(value->get<std::string>());
}

absl::StatusOr<std::string> JsonFields::RequiredString(absl::string_view key) const {
  SH_ASSIGN_OR_RETURN(std::optional<std::string> value, String(key));
  if (!value.has_value()) return WrongType(key, "there, a string");
  return *std::move(value);
}

}  // namespace stillhouse
