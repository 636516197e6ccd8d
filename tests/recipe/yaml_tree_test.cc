#include "recipe/yaml_tree.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace stillhouse {
namespace {

std::string Refused(absl::string_view text) {
  const auto result = ParseYaml(text);
  const auto* problem = std::get_if<YamlProblem>(&result);
  if (problem == nullptr) return "accepted";
  return absl::StrCat(problem->line, ":", problem->column, ": ", problem->key, ": ", problem->what);
}

std::string Repeat(const std::string& unit, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += unit;
  return text;
}

std::string Nested(int levels) { return Repeat("[", levels) + Repeat("]", levels); }

TEST(YamlTreeTest, KeepsPlacesKindsAndQuotes) {
  const auto result = ParseYaml("a: 1\nb:\n  - \"x\"\n  - {c: }\n");
  const auto* root = std::get_if<YamlNode>(&result);
  ASSERT_NE(root, nullptr);
  ASSERT_EQ(root->entries.size(), 2u);
  EXPECT_EQ(root->entries[0].key.text, "a");
  EXPECT_EQ(root->entries[0].value.text, "1");
  EXPECT_FALSE(root->entries[0].value.quoted);
  const YamlNode& list = root->entries[1].value;
  ASSERT_EQ(list.items.size(), 2u);
  EXPECT_TRUE(list.items[0].quoted);
  EXPECT_EQ(list.items[0].line, 3);
  EXPECT_EQ(list.items[0].column, 5);
  EXPECT_EQ(list.items[1].entries[0].value.kind, YamlNode::Kind::kNull);
  EXPECT_EQ(root->height, 4);
}

TEST(YamlTreeTest, DuplicateKeysAreRefusedAtTheSecond) {
  EXPECT_EQ(Refused("a: 1\nb: 2\na: 3\n"), "3:1: a: written twice, first in line 1");
  EXPECT_EQ(Refused("x: [0, {a: 1, \"a\": 2}]"), "1:15: x[1].a: written twice, first in line 1");
}

TEST(YamlTreeTest, DepthIsCountedBeforeTheStackIs) {
  EXPECT_EQ(Refused(Nested(kYamlDepthMax)), "accepted");
  EXPECT_EQ(Refused(Nested(kYamlDepthMax + 1)),
            "1:33: [0][0][0][0][0][0][0][0][0][0][0][0][0][0][0]"
            "[0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0]: more than 32 levels deep");
  for (const std::string unit :
       {"[", "{a: ", "- ", "? ", "{? ", "[{", "a: [", "!!x [", "&a [", "{["}) {
    const std::string refused = Refused(Repeat(unit, 20'000));
    EXPECT_NE(refused, "accepted") << unit;
    EXPECT_LT(refused.size(), 400u);
  }
  std::string block;
  for (int i = 0; i < 300; ++i) block += std::string(i, ' ') + "a:\n";
  EXPECT_NE(Refused(block).find("more than 32 levels deep"), std::string::npos);
}

TEST(YamlTreeTest, AliasesAreCopiesWithinTheLimits) {
  const auto result = ParseYaml("a: &x {k: [1, 2]}\nb: *x\n");
  const auto* root = std::get_if<YamlNode>(&result);
  ASSERT_NE(root, nullptr);
  EXPECT_EQ(root->entries[1].value.entries[0].value.items[1].text, "2");
  EXPECT_EQ(Refused("a: &x [1, *x]\n"), "1:11: a[1]: an alias inside the very thing it names");
  EXPECT_NE(Refused("a: *nobody\n").find("yaml: "), std::string::npos);
}

TEST(YamlTreeTest, BillionLaughsAreNoLaughingMatter) {
  std::string text = "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 12; ++i) {
    const std::string alias = absl::StrCat("*l", i - 1);
    absl::StrAppend(&text, "l", i, ": &l", i, " [", alias);
    for (int j = 0; j < 9; ++j) absl::StrAppend(&text, ", ", alias);
    text += "]\n";
  }
  EXPECT_NE(Refused(text).find("more than 20000 values in all"), std::string::npos);
  std::string deep = "l0: &l0 [x]\n";
  for (int i = 1; i < 40; ++i) absl::StrAppend(&deep, "l", i, ": &l", i, " [*l", i - 1, "]\n");
  EXPECT_NE(Refused(deep).find("more than 32 levels deep"), std::string::npos);
}

TEST(YamlTreeTest, SizesAreBounded) {
  EXPECT_EQ(Refused(std::string(kYamlBytesMax + 1, ' ')),
            "1:1: yaml: 262145 bytes of text; at most 262144");
  EXPECT_NE(Refused(Repeat("- x\n", kYamlNodesMax + 1)).find("more than 20000 values"),
            std::string::npos);
}

TEST(YamlTreeTest, TextThatIsNoTextIsRefused) {
  EXPECT_EQ(Refused("a: \xff"), "1:4: yaml: the text is not UTF-8");
  EXPECT_EQ(Refused("é: \xed\xa0\x80"), "1:4: yaml: the text is not UTF-8");
  EXPECT_EQ(Refused("a: \xc0\xaf"), "1:4: yaml: the text is not UTF-8");
  EXPECT_EQ(Refused("a: \xf4\x90\x80\x80"), "1:4: yaml: the text is not UTF-8");
  EXPECT_EQ(Refused("a: \xe2\x82"), "1:4: yaml: the text is not UTF-8");
  // yaml-cpp takes this for the end of the file.
  EXPECT_EQ(Refused("a: 1\n\x04"
                    "b: 2\n"),
            "2:1: yaml: control character 0x04");
  EXPECT_EQ(Refused(absl::string_view("a: \0", 4)), "1:4: yaml: control character 0x00");
  EXPECT_EQ(Refused("a: \"日本 €\"\n"), "accepted");
  EXPECT_EQ(Refused("\xef\xbb\xbf"
                    "a: 1\n"),
            "accepted");
}

TEST(YamlTreeTest, OdditiesOfYamlAreRefused) {
  EXPECT_EQ(Refused("a: 1\n---\nb: 2\n"), "2:1: yaml: a second document: a recipe is one");
  EXPECT_EQ(Refused("a: !!binary aGk=\n"),
            "1:4: a: tag tag:yaml.org,2002:binary: tags have no meaning here");
  EXPECT_EQ(Refused("a: !mine [1]\n"), "1:4: a: tag !mine: tags have no meaning here");
  EXPECT_EQ(Refused("? [a]\n: 1\n"), "1:3: yaml: a key must be plain text");
  EXPECT_EQ(Refused("{: 1}\n"), "1:2: yaml: a key must be plain text");
  EXPECT_NE(Refused("a: [1, 2\n").find("yaml: "), std::string::npos);
  EXPECT_NE(Refused("a: b: c\n").find("1:5: yaml: "), std::string::npos);
  EXPECT_EQ(Refused("a: \"open\n"), "1:9: yaml: illegal EOF in scalar");
  EXPECT_NE(Refused("a: 1\n b: 2\n").find("yaml: "), std::string::npos);
  EXPECT_NE(Refused("\tb: 2\n").find("yaml: "), std::string::npos);
}

TEST(YamlTreeTest, PrintableTextIsShortAndOnOneLine) {
  EXPECT_EQ(Printable("a\nb\t\"é\""), "a\\nb\\t\\\"é\\\"");
  EXPECT_EQ(Printable(std::string(61, 'x')), std::string(60, 'x') + "...");
  EXPECT_EQ(Printable(std::string(59, 'x') + "é"), std::string(59, 'x') + "...");
}

}  // namespace
}  // namespace stillhouse
