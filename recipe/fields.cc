#include "recipe/fields.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"

namespace stillhouse {
namespace {

constexpr size_t kNameBytesMax = 64;
constexpr size_t kSuggestBytesMax = 64;  // longer words get no suggestion

bool IsPlainScalar(const YamlNode& node) {
  return node.kind == YamlNode::Kind::kScalar && !node.quoted;
}

// 010 is ten to one reader of YAML and eight to another.
bool HasLeadingZero(const YamlNode& node) {
  if (!IsPlainScalar(node)) return false;
  absl::string_view text = node.text;
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.remove_prefix(1);
  return text.size() > 1 && text[0] == '0' && absl::ascii_isdigit(text[1]);
}

// What a node is, for "expected x, got y".
std::string Describe(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      return "nothing";
    case YamlNode::Kind::kScalar:
      return absl::StrCat(node.quoted ? "the text " : "", "\"", Printable(node.text), "\"",
                          HasLeadingZero(node) ? " with a leading zero" : "");
    case YamlNode::Kind::kList:
      return "a list";
    case YamlNode::Kind::kMap:
      return "a map";
  }
  return "";
}

bool ParseReal(const YamlNode& node, double* value) {
  if (!IsPlainScalar(node) || HasLeadingZero(node) || !absl::SimpleAtod(node.text, value)) {
    return false;
  }
  // SimpleAtod also takes "nan", "inf" and spaces, which YAML spells otherwise.
  return std::isfinite(*value) &&
         std::all_of(node.text.begin(), node.text.end(), [](unsigned char c) {
           return absl::ascii_isdigit(c) || c == '.' || c == '-' || c == '+' || c == 'e' ||
                  c == 'E';
         });
}

bool ParseInteger(const YamlNode& node, int64_t* value) {
  if (!IsPlainScalar(node) || HasLeadingZero(node) || node.text.empty()) return false;
  const absl::string_view digits = absl::string_view(node.text).substr(node.text[0] == '-' ? 1 : 0);
  return std::all_of(digits.begin(), digits.end(), absl::ascii_isdigit) &&
         absl::SimpleAtoi(node.text, value);
}

std::string RangeText(const Fields::Range& range) {
  std::vector<std::string> parts;
  if (std::isfinite(range.min)) {
    parts.push_back(absl::StrCat(range.min_open ? "above " : "at least ", range.min));
  }
  if (std::isfinite(range.max)) {
    parts.push_back(absl::StrCat(range.max_open ? "below " : "at most ", range.max));
  }
  return absl::StrJoin(parts, " and ");
}

bool InRange(const Fields::Range& range, double value) {
  const bool low = range.min_open ? value > range.min : value >= range.min;
  const bool high = range.max_open ? value < range.max : value <= range.max;
  return low && high;
}

// Levenshtein distance, also counting two neighbours that changed places as one.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<std::vector<size_t>> cost(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) cost[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) cost[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      cost[i][j] = std::min({cost[i - 1][j] + 1, cost[i][j - 1] + 1,
                             cost[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        cost[i][j] = std::min(cost[i][j], cost[i - 2][j - 2] + 1);
      }
    }
  }
  return cost[a.size()][b.size()];
}

}  // namespace

std::string DidYouMean(absl::string_view word, const std::vector<std::string>& words) {
  if (word.size() > kSuggestBytesMax) return "";
  std::string folded = absl::AsciiStrToLower(word);
  std::replace(folded.begin(), folded.end(), '-', '_');
  const std::string* best = nullptr;
  size_t best_distance = std::max<size_t>(1, word.size() / 3) + 1;
  for (const std::string& candidate : words) {
    const size_t distance = EditDistance(folded, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = &candidate;
    }
  }
  return best == nullptr ? "" : absl::StrCat("; did you mean \"", *best, "\"?");
}

void Report::AddAt(const std::string& path, std::string what) {
  absl::string_view around = path;
  auto place = places_.find(path);
  while (place == places_.end() && !around.empty()) {
    const size_t end = around.find_last_of(".[");
    around = around.substr(0, end == absl::string_view::npos ? 0 : end);
    place = places_.find(std::string(around));
  }
  const auto [line, column] = place == places_.end() ? std::make_pair(1, 1) : place->second;
  Add({line, column, path, std::move(what)});
}

YamlProblem Report::First() const {
  SH_CHECK(!ok());
  const std::vector<YamlProblem>& from = problems_.empty() ? missing_ : problems_;
  return *std::min_element(from.begin(), from.end(), [](const auto& a, const auto& b) {
    return std::make_pair(a.line, a.column) < std::make_pair(b.line, b.column);
  });
}

std::string Fields::PathOf(absl::string_view key) const {
  return path_.empty() ? std::string(key) : absl::StrCat(path_, ".", key);
}

const YamlNode* Fields::Find(absl::string_view key) {
  declared_.emplace_back(key);
  for (const auto& [name, value] : map_.entries) {
    if (name.text != key) continue;
    report_.Remember(PathOf(key), value);
    return &value;
  }
  return nullptr;
}

const YamlNode* Fields::Get(absl::string_view key, Need need) {
  const YamlNode* node = Find(key);
  if (node == nullptr && need == Need::kRequired) {
    report_.AddMissing({map_.line, map_.column, PathOf(key), "is required"});
  }
  return node;
}

void Fields::Mistyped(absl::string_view key, const YamlNode& node, absl::string_view expected) {
  report_.Add({node.line, node.column, PathOf(key),
               absl::StrCat("expected ", expected, ", got ", Describe(node))});
}

void Fields::Text(absl::string_view key, Need need, std::string* out) {
  const YamlNode* node = Get(key, need);
  if (node == nullptr) return;
  if (node->kind != YamlNode::Kind::kScalar || node->text.empty()) {
    Mistyped(key, *node, "text");
  } else {
    *out = node->text;
  }
}

void Fields::Name(absl::string_view key, Need need, std::string* out) {
  const YamlNode* node = Get(key, need);
  if (node == nullptr) return;
  const std::string& text = node->text;
  const bool fits =
      node->kind == YamlNode::Kind::kScalar && !text.empty() && text.size() <= kNameBytesMax &&
      std::all_of(text.begin(), text.end(), [](unsigned char c) {
        return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_' || c == '-';
      });
  if (!fits) {
    Mistyped(key, *node,
             absl::StrCat("a name of a-z, 0-9, _ and -, at most ", kNameBytesMax, " long"));
  } else if (text[0] == '-' || text[0] == '_') {
    Mistyped(key, *node, "a name that begins with a letter or digit");
  } else {
    *out = text;
  }
}

void Fields::Integer(absl::string_view key, Need need, std::pair<int64_t, int64_t> range,
                     int64_t* out) {
  const YamlNode* node = Get(key, need);
  if (node == nullptr) return;
  int64_t value = 0;
  if (!ParseInteger(*node, &value)) {
    Mistyped(key, *node, "a whole number");
  } else if (value < range.first || value > range.second) {
    Mistyped(key, *node, absl::StrCat("a whole number from ", range.first, " to ", range.second));
  } else {
    *out = value;
  }
}

void Fields::Integer(absl::string_view key, std::pair<int64_t, int64_t> range,
                     std::optional<int64_t>* out) {
  constexpr int64_t kUnset = std::numeric_limits<int64_t>::min();
  int64_t value = kUnset;
  Integer(key, Need::kOptional, range, &value);
  if (value != kUnset) *out = value;
}

void Fields::Seed(absl::string_view key, uint64_t* out) {
  const YamlNode* node = Find(key);
  if (node == nullptr) return;
  const bool digits = IsPlainScalar(*node) && !HasLeadingZero(*node) && !node->text.empty() &&
                      std::all_of(node->text.begin(), node->text.end(), absl::ascii_isdigit);
  if (!digits || !absl::SimpleAtoi(node->text, out)) {
    Mistyped(key, *node, "a whole number from 0 to 2^64 - 1");
  }
}

void Fields::Real(absl::string_view key, Need need, Range range, double* out) {
  const YamlNode* node = Get(key, need);
  if (node == nullptr) return;
  double value = 0;
  if (!ParseReal(*node, &value)) {
    Mistyped(key, *node, "a number");
  } else if (!InRange(range, value)) {
    Mistyped(key, *node, absl::StrCat("a number ", RangeText(range)));
  } else {
    *out = value;
  }
}

void Fields::Truth(absl::string_view key, bool* out) {
  const YamlNode* node = Find(key);
  if (node == nullptr) return;
  if (IsPlainScalar(*node) && (node->text == "true" || node->text == "false")) {
    *out = node->text == "true";
  } else {
    Mistyped(key, *node, "true or false");
  }
}

int Fields::ChooseWord(absl::string_view key, Need need,
                       const std::vector<absl::string_view>& words) {
  const YamlNode* node = Get(key, need);
  if (node == nullptr) return -1;
  const auto it = std::find(words.begin(), words.end(), node->text);
  if (node->kind == YamlNode::Kind::kScalar && it != words.end()) {
    return static_cast<int>(it - words.begin());
  }
  Mistyped(key, *node, absl::StrJoin(words, " or "));
  return -1;
}

void Fields::Map(absl::string_view key, Need need, absl::string_view scalar_key,
                 const std::function<void(Fields&)>& read) {
  const YamlNode* node = Get(key, need);
  if (node != nullptr) ReadMap(*node, PathOf(key), scalar_key, report_, read);
}

void Fields::List(absl::string_view key, Need need, bool one_allowed,
                  const std::function<void(const YamlNode&, const std::string& path)>& read) {
  const YamlNode* node = Get(key, need);
  if (node == nullptr) return;
  if (one_allowed &&
      (node->kind == YamlNode::Kind::kScalar || node->kind == YamlNode::Kind::kMap)) {
    read(*node, PathOf(key));
    return;
  }
  if (node->kind != YamlNode::Kind::kList || node->items.empty()) {
    Mistyped(key, *node, "a list of at least one");
    return;
  }
  for (size_t i = 0; i < node->items.size(); ++i) {
    const std::string path = absl::StrCat(PathOf(key), "[", i, "]");
    report_.Remember(path, node->items[i]);
    read(node->items[i], path);
  }
}

void Fields::Integers(absl::string_view key, std::pair<int64_t, int64_t> range,
                      std::vector<int64_t>* out) {
  List(key, Need::kOptional, /*one_allowed=*/false,
       [&](const YamlNode& node, const std::string& path) {
         int64_t value = 0;
         if (ParseInteger(node, &value) && value >= range.first && value <= range.second) {
           out->push_back(value);
           return;
         }
         report_.Add({node.line, node.column, path,
                      absl::StrCat("expected a whole number from ", range.first, " to ",
                                   range.second, ", got ", Describe(node))});
       });
}

void Fields::Reals(absl::string_view key, size_t count, Range range, std::vector<double>* out) {
  const YamlNode* list = Find(key);
  if (list == nullptr) return;
  if (list->kind != YamlNode::Kind::kList || list->items.size() != count) {
    Mistyped(key, *list, absl::StrCat("a list of ", count, " numbers"));
    return;
  }
  std::vector<double> values;
  for (size_t i = 0; i < count; ++i) {
    const YamlNode& node = list->items[i];
    double value = 0;
    if (ParseReal(node, &value) && InRange(range, value)) {
      values.push_back(value);
      continue;
    }
    report_.Add({node.line, node.column, absl::StrCat(PathOf(key), "[", i, "]"),
                 absl::StrCat("expected a number ", RangeText(range), ", got ", Describe(node))});
  }
  if (values.size() == count) *out = values;
}

void Fields::Later(absl::string_view key, absl::string_view what) {
  for (const auto& [name, value] : map_.entries) {
    if (name.text != key) continue;
    declared_.emplace_back(key);
    report_.Add({name.line, name.column, PathOf(key), absl::StrCat(what, ": not in this version")});
  }
}

void Fields::LaterWord(absl::string_view key, absl::string_view word, absl::string_view what) {
  for (const auto& [name, value] : map_.entries) {
    if (name.text != key || value.kind != YamlNode::Kind::kScalar || value.text != word) continue;
    report_.Add(
        {value.line, value.column, PathOf(key), absl::StrCat(what, ": not in this version")});
  }
}

void Fields::Finish() {
  for (const auto& [name, value] : map_.entries) {
    if (std::find(declared_.begin(), declared_.end(), name.text) != declared_.end()) continue;
    report_.Add({name.line, name.column, PathOf(Printable(name.text)),
                 absl::StrCat("unknown key", DidYouMean(name.text, declared_))});
  }
}

void ReadMap(const YamlNode& node, const std::string& path, absl::string_view scalar_key,
             Report& report, const std::function<void(Fields&)>& read) {
  YamlNode wrapped;
  const YamlNode* map = &node;
  if (node.kind == YamlNode::Kind::kScalar && !scalar_key.empty()) {
    wrapped.kind = YamlNode::Kind::kMap;
    wrapped.line = node.line;
    wrapped.column = node.column;
    YamlNode key = node;
    key.text = std::string(scalar_key);
    wrapped.entries.push_back({std::move(key), node});
    map = &wrapped;
  }
  if (map->kind != YamlNode::Kind::kMap) {
    report.Add({node.line, node.column, path.empty() ? "recipe" : path,
                absl::StrCat("expected a map of keys, got ", Describe(node))});
    return;
  }
  Fields fields(*map, path, report);
  read(fields);
  fields.Finish();
}

}  // namespace stillhouse
