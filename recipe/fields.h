// Fields: a map of the recipe, read key by key into plain structs, strictly.
//
// Every key is declared by the call that reads it; Finish() then refuses the others, with the
// nearest declared key as a suggestion. Reading goes on after a problem, so that the one reported
// is the one that explains the others: see Report::First.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "recipe/yaml_tree.h"

namespace stillhouse {

// What was found wrong, and where everything stood.
class Report {
 public:
  void Add(YamlProblem problem) { problems_.push_back(std::move(problem)); }
  void AddMissing(YamlProblem problem) { missing_.push_back(std::move(problem)); }
  // A problem of the key at dotted `path`, placed at its value, or at the nearest map around it.
  void AddAt(const std::string& path, std::string what);

  void Remember(const std::string& path, const YamlNode& node) {
    places_[path] = {node.line, node.column};
  }
  bool Has(const std::string& path) const { return places_.contains(path); }

  bool ok() const { return problems_.empty() && missing_.empty(); }
  // The first in the text; missing keys only when nothing else is wrong, since a misspelt key is
  // one unknown key and one missing. REQUIRES: !ok().
  YamlProblem First() const;

 private:
  std::vector<YamlProblem> problems_, missing_;
  std::map<std::string, std::pair<int, int>> places_;
};

enum class Need { kOptional, kRequired };

class Fields {
 public:
  // `map` and `report` must outlive the object. `path` is the map's own dotted path, "" at the top.
  Fields(const YamlNode& map, std::string path, Report& report)
      : map_(map), path_(std::move(path)), report_(report) {}

  template <typename T>
  using Choices = std::vector<std::pair<absl::string_view, T>>;

  void Text(absl::string_view key, Need need, std::string* out);
  // Names that become parts of paths and ids: [a-z0-9_-], at most 64 of them.
  void Name(absl::string_view key, Need need, std::string* out);
  void Integer(absl::string_view key, Need need, std::pair<int64_t, int64_t> range, int64_t* out);
  void Integer(absl::string_view key, std::pair<int64_t, int64_t> range,
               std::optional<int64_t>* out);
  void Seed(absl::string_view key, uint64_t* out);
  struct Range {
    double min = -std::numeric_limits<double>::infinity();
    double max = std::numeric_limits<double>::infinity();
    bool min_open = false, max_open = false;  // the limit itself is not allowed
  };
  void Real(absl::string_view key, Need need, Range range, double* out);
  void Truth(absl::string_view key, bool* out);
  template <typename T>
  void Choice(absl::string_view key, Need need, const Choices<T>& choices, T* out) {
    std::vector<absl::string_view> words;
    for (const auto& choice : choices) words.push_back(choice.first);
    const int index = ChooseWord(key, need, words);
    if (index >= 0) *out = choices[index].second;
  }

  // How a scalar stands for a map: as the value of one of its keys ("teacher: x.gguf" is
  // "teacher: {model: x.gguf}"), or not at all.
  void Map(absl::string_view key, Need need, absl::string_view scalar_key,
           const std::function<void(Fields&)>& read);
  // A single value that is no list stands for a list of one, if `one_allowed`.
  void List(absl::string_view key, Need need, bool one_allowed,
            const std::function<void(const YamlNode&, const std::string& path)>& read);
  // Several numbers.
  void Integers(absl::string_view key, std::pair<int64_t, int64_t> range,
                std::vector<int64_t>* out);
  void Reals(absl::string_view key, size_t count, Range range, std::vector<double>* out);

  // A key that later versions know, and what it is for.
  void Later(absl::string_view key, absl::string_view what);
  // The same for a word that is the value of `key`.
  void LaterWord(absl::string_view key, absl::string_view word, absl::string_view what);
  void Finish();

  const YamlNode* Find(absl::string_view key);  // declares it; null if absent
  std::string PathOf(absl::string_view key) const;
  Report& report() { return report_; }

 private:
  const YamlNode* Get(absl::string_view key, Need need);
  int ChooseWord(absl::string_view key, Need need, const std::vector<absl::string_view>& words);
  void Mistyped(absl::string_view key, const YamlNode& node, absl::string_view expected);

  const YamlNode& map_;
  const std::string path_;
  Report& report_;
  std::vector<std::string> declared_;
};

// Runs `read` over the fields of `node`, at `path`, and refuses what it did not declare. A scalar
// becomes {scalar_key: scalar} first, unless scalar_key is "".
void ReadMap(const YamlNode& node, const std::string& path, absl::string_view scalar_key,
             Report& report, const std::function<void(Fields&)>& read);

// "; did you mean x" for the word nearest to `word`, or "" when none is near.
std::string DidYouMean(absl::string_view word, const std::vector<std::string>& words);

}  // namespace stillhouse
