#include "formats/json.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

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

// Builds the tree, one node at a time. (The library's own parser with a callback looks at all of an
// object again after each of its values that is an object.)
class StrictBuilder final : public nlohmann::json_sax<Json> {
 public:
  explicit StrictBuilder(Json& root) : next_(&root) {}

  std::optional<size_t> error_byte() const { return error_byte_; }  // of what is no JSON

  bool null() override { return Put(nullptr); }
  bool boolean(bool value) override { return Put(value); }
  bool number_integer(number_integer_t value) override { return Put(value); }
  bool number_unsigned(number_unsigned_t value) override { return Put(value); }
  bool number_float(number_float_t value, const string_t&) override { return Put(value); }
  bool string(string_t& value) override { return Put(std::move(value)); }
  bool binary(binary_t&) override { return false; }  // JSON has none
  bool start_object(size_t) override { return Open(Json::object()); }
  bool start_array(size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(string_t& key) override {
    const auto [place, is_new] = open_.back()->get_ref<Json::object_t&>().try_emplace(key);
    if (!is_new) throw RefusedJson(absl::StrCat("key \"", key.substr(0, 100), "\" stands twice"));
    next_ = &place->second;
    return true;
  }
  bool parse_error(size_t byte, const std::string&, const Json::exception& error) override {
    constexpr int kOutOfRange = 406;  // the library's number for what no double holds
    if (error.id == kOutOfRange) throw RefusedJson("not valid JSON (a number is out of range)");
    error_byte_ = byte;
    return false;
  }

 private:
  template <typename T>
  bool Put(T&& value) {
    *Next() = std::forward<T>(value);
    return true;
  }
  bool Open(Json empty) {
    if (open_.size() >= static_cast<size_t>(kJsonDepthMax)) {
      throw RefusedJson(absl::StrCat("nested deeper than ", kJsonDepthMax, " levels"));
    }
    Json* const node = Next();
    *node = std::move(empty);
    open_.push_back(node);
    return true;
  }
  bool Close() {
    open_.pop_back();
    return true;
  }
  // Where the next value belongs. An open node is the last of its parent, so none moves.
  Json* Next() {
    if (open_.empty() || open_.back()->is_object()) return next_;
    auto& list = open_.back()->get_ref<Json::array_t&>();
    return &list.emplace_back();
  }

  Json* next_;               // the root, or the value of the last key
  std::vector<Json*> open_;  // objects and arrays around the next value
  std::optional<size_t> error_byte_;
};

}  // namespace

absl::StatusOr<Json> ParseJson(absl::string_view text, absl::string_view path,
                               std::optional<uint64_t> line) {
  const std::string where = line.has_value() ? absl::StrCat(path, ":", *line) : std::string(path);
  Json root;
  StrictBuilder builder(root);
  try {
    Json::sax_parse(text.data(), text.data() + text.size(), &builder);
  } catch (const RefusedJson& refused) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", refused.what()));
  }
  if (!builder.error_byte().has_value()) return root;
  const size_t byte = *builder.error_byte();
  return absl::InvalidArgumentError(absl::StrCat(path, ":", PlaceOf(text, byte, line.value_or(1)),
                                                 ": not valid JSON",
                                                 byte > text.size() ? ", which ends here" : ""));
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
