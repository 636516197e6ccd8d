// YamlTree: YAML text as a tree of plain nodes with their places, read more strictly than YAML
// asks.
//
// Refused: text that is not UTF-8 or holds control characters, more than one document, keys that
// are not text, duplicate keys, tags, depth over kYamlDepthMax, an alias inside what it names, and
// anything (aliases counted as often as they are used) over kYamlNodesMax. Bounded in time and
// memory for any input.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "absl/strings/string_view.h"

namespace stillhouse {

inline constexpr size_t kYamlBytesMax = 256 << 10;
inline constexpr int kYamlDepthMax = 32;
inline constexpr size_t kYamlNodesMax = 20'000;

struct YamlEntry;

struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  int line = 1, column = 1;        // of its first character, from 1
  int height = 1;                  // levels of nodes, this one included
  size_t nodes = 1;                // of this tree
  std::string text;                // of a scalar
  bool quoted = false;             // a quoted scalar is text, never a number or a truth value
  std::vector<YamlNode> items;     // of a list
  std::vector<YamlEntry> entries;  // of a map
};

struct YamlEntry {
  YamlNode key;  // a scalar
  YamlNode value;
};

// What is wrong, and where.
struct YamlProblem {
  int line = 1, column = 1;
  std::string key;   // dotted path of the key concerned, or "yaml"
  std::string what;  // one line
};

std::variant<YamlNode, YamlProblem> ParseYaml(absl::string_view text);

// `text` on one line, cut to a length for messages, with everything unprintable escaped.
std::string Printable(absl::string_view text);

}  // namespace stillhouse
