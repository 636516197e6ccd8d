#include "formats/added_token_flags.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "tests/formats/tiny_model.h"

namespace stillhouse {
namespace {

TokenizerSpec SpecWith(std::vector<AddedToken> added) {
  auto spec = ParseTokenizerJson(TinyTokenizerJson(), "t");
  SH_CHECK_OK(spec);
  spec->added = std::move(added);
  return *std::move(spec);
}

AddedToken Token(const std::string& content, bool normalized, bool in_vocabulary = true) {
  AddedToken token;
  token.content = content;
  token.normalized = normalized;
  token.in_vocabulary = in_vocabulary;
  return token;
}

std::vector<bool> Normalized(const TokenizerSpec& spec) {
  std::vector<bool> out;
  for (const EffectiveFlags& flags : FlagsThatMatter(spec)) out.push_back(flags.normalized);
  return out;
}

bool Unknown(const TokenizerSpec& spec) { return !FlagsThatMatter(spec).front().in_vocabulary; }

const NormalizerStep kPrepend = {NormalizerStep::Kind::kPrepend, UnicodeForm::kNfc, "", "▁"};
const NormalizerStep kSpaces = {NormalizerStep::Kind::kReplaceLiteral, UnicodeForm::kNfc, " ", "▁"};

TEST(AddedTokenFlagsTest, NormalizedTellsWhereTokensOfBothKindsOverlap) {
  using Flags = std::vector<bool>;
  EXPECT_EQ(Normalized(SpecWith({Token("<a>", true), Token("<a><b>", true)})), Flags({0, 0}));
  EXPECT_EQ(Normalized(SpecWith({Token("<a>", true), Token("<b>", false)})), Flags({0, 0}));
  EXPECT_EQ(Normalized(SpecWith({Token("<a>", true), Token("<a><b>", false)})), Flags({1, 0}));
  EXPECT_EQ(Normalized(SpecWith({Token("xy", false), Token("yz", true)})), Flags({0, 1}));
  EXPECT_EQ(Normalized(SpecWith({Token("yz", true), Token("xy", false)})), Flags({1, 0}));
  // Two that lose it, one that keeps it: the first of them would come before the last.
  TokenizerSpec spec = SpecWith({Token("<a>", true), Token("<a>▁", true), Token("<c>", true)});
  spec.normalizer = {kSpaces};
  EXPECT_EQ(Normalized(spec), Flags({1, 1, 0}));
}

TEST(AddedTokenFlagsTest, NormalizedTellsWhereTheNormalizerCanMakeOrMoveTheToken) {
  TokenizerSpec spec = SpecWith({Token("<a>", true)});
  spec.normalizer = {kSpaces};
  EXPECT_FALSE(Normalized(spec)[0]);
  spec.added[0].lstrip = true;
  EXPECT_TRUE(Normalized(spec)[0]);
  spec = SpecWith({Token("<a b>", true)});
  spec.normalizer = {kSpaces};
  EXPECT_TRUE(Normalized(spec)[0]);
  NormalizerStep removes = kSpaces;
  removes.content.clear();  // "< a>" becomes the token
  for (const NormalizerStep& step : {kPrepend, NormalizerStep(), removes}) {
    spec = SpecWith({Token("<a>", true)});
    spec.normalizer = {step};
    EXPECT_TRUE(Normalized(spec)[0]);
  }
}

TEST(AddedTokenFlagsTest, VocabularyTellsWhereAPieceCanHoldTheToken) {
  EXPECT_FALSE(Unknown(SpecWith({Token("<|a|>", false, false)})));
  EXPECT_FALSE(Unknown(SpecWith({Token("é!", false, false)})));
  EXPECT_TRUE(Unknown(SpecWith({Token("é", false, false)})));  // one character: no merge is needed
  TokenizerSpec spec = SpecWith({Token("<|a|>", false, false)});
  spec.ignore_merges = true;
  EXPECT_FALSE(Unknown(spec));
  spec.normalizer = {NormalizerStep()};
  EXPECT_FALSE(Unknown(spec));
  spec.added[0].content = "<|K|>";  // NFC makes it of a Kelvin sign
  EXPECT_TRUE(Unknown(spec));
  spec.normalizer.clear();
  EXPECT_FALSE(Unknown(spec));
  spec.added[0].content = "Ġa";  // the piece of " a"
  EXPECT_TRUE(Unknown(spec));
  spec = SpecWith({Token("<0x41>", false, false)});
  EXPECT_FALSE(Unknown(spec));
  spec.byte_fallback = true;
  EXPECT_TRUE(Unknown(spec));
  // "<a>" is passed over with the longer one, which is no word of its own in "<a>bc".
  spec = SpecWith({Token("<a>", false, false), Token("<a>b", false)});
  spec.ignore_merges = true;
  EXPECT_FALSE(Unknown(spec));
  spec.added[1].single_word = true;
  EXPECT_TRUE(Unknown(spec));
}

// What NFC makes printable ASCII of, besides itself: the three characters that the rule excepts.
TEST(AddedTokenFlagsTest, NfcMakesAsciiOfThreeCharactersOnly) {
  std::vector<char32_t> made;
  std::vector<CharChange> out;
  for (char32_t code = 0x80; code < 0x30000; ++code) {
    if (code >= 0xd800 && code < 0xe000) continue;
    std::string text;
    if (code < 0x800) {
      text = {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
    } else if (code < 0x10000) {
      text = {static_cast<char>(0xe0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 0x3f)),
              static_cast<char>(0x80 | (code & 0x3f))};
    } else {
      text = {static_cast<char>(0xf0 | code >> 18), static_cast<char>(0x80 | (code >> 12 & 0x3f)),
              static_cast<char>(0x80 | (code >> 6 & 0x3f)),
              static_cast<char>(0x80 | (code & 0x3f))};
    }
    NormalizeUnicode(UnicodeForm::kNfc, text, out);
    for (const CharChange& change : out) {
      if (change.code < 0x80) made.push_back(code);
    }
  }
  EXPECT_EQ(made, std::vector<char32_t>({0x37e, 0x1fef, 0x212a}));
}

TEST(AddedTokenFlagsTest, ManyTokensAreNotComparedInPairs) {
  std::vector<AddedToken> tokens;
  for (int i = 0; i < 100000; ++i) tokens.push_back(Token(absl::StrCat("<", i, ">"), i % 2 == 0));
  EXPECT_TRUE(Normalized(SpecWith(tokens))[0]);  // 10^10 pairs would not end in the test's time
}

}  // namespace
}  // namespace stillhouse
