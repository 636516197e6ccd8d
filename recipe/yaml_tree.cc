#include "recipe/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <exception>
#include <map>
#include <optional>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/utf8.h"

namespace stillhouse {
namespace {

constexpr size_t kPrintableBytesMax = 60;

// Leaves the parser through yaml-cpp, which throws itself; never leaves this file.
struct Refused {
  YamlProblem problem;
};

// yaml-cpp takes U+0004 for the end of the text, and replaces what is not UTF-8: refuse both.
std::optional<YamlProblem> CheckText(absl::string_view text) {
  int line = 1, column = 1;
  while (!text.empty()) {
    const size_t length = Utf8Length(text);
    if (length == 0) return YamlProblem{line, column, "yaml", "the text is not UTF-8"};
    const unsigned char c = static_cast<unsigned char>(text[0]);
    if ((c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7f) {
      return YamlProblem{line, column, "yaml",
                         absl::StrCat("control character 0x", absl::Hex(c, absl::kZeroPad2))};
    }
    ++column;
    if (c == '\n') {
      ++line;
      column = 1;
    }
    text.remove_prefix(length);
  }
  return std::nullopt;
}

class TreeBuilder final : public YAML::EventHandler {
 public:
  const std::optional<YamlNode>& root() const { return root_; }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (root_.has_value()) Refuse(mark, "a second document: a recipe is one");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Add(NodeAt(mark, YamlNode::Kind::kNull), anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    auto it = anchors_.find(anchor);
    if (it == anchors_.end()) Refuse(mark, "an alias inside the very thing it names");
    Count(it->second, it->second.nodes);
    Add(it->second, YAML::NullAnchor);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode node = NodeAt(mark, YamlNode::Kind::kScalar);
    if (tag != "?" && tag != "!" && !tag.empty()) RefuseTag(mark, tag);
    node.quoted = tag == "!";
    node.text = value;
    Add(std::move(node), anchor);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value /*style*/) override {
    Open(mark, tag, anchor, YamlNode::Kind::kList);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value /*style*/) override {
    Open(mark, tag, anchor, YamlNode::Kind::kMap);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapEnd() override { Close(); }

 private:
  struct Level {
    YamlNode node;
    YAML::anchor_t anchor;
    std::optional<YamlNode> key;       // of a map: read, its value not yet
    std::map<std::string, int> lines;  // of the keys so far
  };

  YamlNode NodeAt(const YAML::Mark& mark, YamlNode::Kind kind) {
    YamlNode node;
    node.kind = kind;
    node.line = mark.line + 1;
    node.column = mark.column + 1;
    Count(node, 1);
    return node;
  }
  std::string KeyHere() const {
    std::string key;
    for (const Level& level : levels_) {
      if (level.node.kind == YamlNode::Kind::kList) {
        absl::StrAppend(&key, "[", level.node.items.size(), "]");
      } else if (level.key.has_value()) {
        absl::StrAppend(&key, key.empty() ? "" : ".", Printable(level.key->text));
      }
    }
    return key.empty() ? "yaml" : key;
  }
  [[noreturn]] void Refuse(const YAML::Mark& mark, std::string what) const {
    throw Refused{{mark.line + 1, mark.column + 1, KeyHere(), std::move(what)}};
  }
  [[noreturn]] void RefuseAt(const YamlNode& node, std::string what) const {
    throw Refused{{node.line, node.column, KeyHere(), std::move(what)}};
  }
  [[noreturn]] void RefuseTag(const YAML::Mark& mark, const std::string& tag) const {
    Refuse(mark, absl::StrCat("tag ", Printable(tag), ": tags have no meaning here"));
  }

  void Open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            YamlNode::Kind kind) {
    if (tag != "?" && !tag.empty()) RefuseTag(mark, tag);
    if (levels_.size() >= kYamlDepthMax) {
      Refuse(mark, absl::StrCat("more than ", kYamlDepthMax, " levels deep"));
    }
    levels_.push_back({NodeAt(mark, kind), anchor, std::nullopt, {}});
  }
  void Close() {
    Level level = std::move(levels_.back());
    levels_.pop_back();
    Add(std::move(level.node), level.anchor);
  }

  void Count(const YamlNode& node, size_t nodes) {
    nodes_ += nodes;
    if (nodes_ > kYamlNodesMax) {
      RefuseAt(node, absl::StrCat("more than ", kYamlNodesMax, " values in all"));
    }
  }
  void Add(YamlNode node, YAML::anchor_t anchor) {
    if (static_cast<int>(levels_.size()) + node.height > kYamlDepthMax + 1) {
      RefuseAt(node, absl::StrCat("more than ", kYamlDepthMax, " levels deep"));
    }
    if (anchor != YAML::NullAnchor) anchors_[anchor] = node;
    if (levels_.empty()) {
      root_ = std::move(node);
      return;
    }
    AddToLevel(levels_.back(), std::move(node));
  }
  void AddToLevel(Level& level, YamlNode node) {
    YamlNode& parent = level.node;
    if (parent.kind == YamlNode::Kind::kMap && !level.key.has_value()) {
      AddKey(level, std::move(node));
      return;
    }
    if (node.kind == YamlNode::Kind::kNull && level.key.has_value()) {
      // yaml-cpp places what is not there at the next thing that is.
      node.line = level.key->line;
      node.column = level.key->column;
    }
    parent.height = std::max(parent.height, node.height + 1);
    parent.nodes += node.nodes;
    if (parent.kind == YamlNode::Kind::kList) {
      parent.items.push_back(std::move(node));
    } else {
      parent.entries.push_back({*std::exchange(level.key, std::nullopt), std::move(node)});
    }
  }
  void AddKey(Level& level, YamlNode key) {
    if (key.kind != YamlNode::Kind::kScalar) RefuseAt(key, "a key must be plain text");
    const auto [it, inserted] = level.lines.emplace(key.text, key.line);
    level.key = std::move(key);
    if (!inserted) {
      RefuseAt(*level.key, absl::StrCat("written twice, first in line ", it->second));
    }
    ++level.node.nodes;
  }

  std::vector<Level> levels_;
  std::map<YAML::anchor_t, YamlNode> anchors_;
  size_t nodes_ = 0;
  std::optional<YamlNode> root_;
};

}  // namespace

std::string Printable(absl::string_view text) {
  const bool cut = text.size() > kPrintableBytesMax;
  if (cut) text = text.substr(0, kPrintableBytesMax);
  while (cut && !text.empty() && (static_cast<unsigned char>(text.back()) & 0x80) != 0) {
    text.remove_suffix(1);  // never half a character
  }
  return absl::StrCat(absl::Utf8SafeCEscape(text), cut ? "..." : "");
}

std::variant<YamlNode, YamlProblem> ParseYaml(absl::string_view text) {
  if (text.size() > kYamlBytesMax) {
    return YamlProblem{1, 1, "yaml",
                       absl::StrCat(text.size(), " bytes of text; at most ", kYamlBytesMax)};
  }
  if (auto problem = CheckText(text)) return *problem;
  TreeBuilder builder;
  try {
    // Without its last line ends: after one, yaml-cpp takes an unfinished quoted text for finished.
    std::istringstream stream{std::string(absl::StripTrailingAsciiWhitespace(text))};
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const Refused& refused) {
    return refused.problem;
  } catch (const YAML::Exception& error) {
    return YamlProblem{std::max(error.mark.line + 1, 1), std::max(error.mark.column + 1, 1), "yaml",
                       Printable(error.msg)};
  } catch (const std::exception& error) {
    return YamlProblem{1, 1, "yaml", Printable(error.what())};
  }
  if (!builder.root().has_value()) return YamlProblem{1, 1, "yaml", "there is nothing in it"};
  return *builder.root();
}

}  // namespace stillhouse
