#include "formats/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

#include "absl/strings/str_replace.h"
#include "common/byte_io.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "formats/tokenizer_spec.h"
#include "formats/utf8.h"
#include "tests/formats/tiny_model.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::shared_ptr<const Tokenizer> Tiny() {
  auto spec = ParseTokenizerJson(TinyTokenizerJson(), "tokenizer.json");
  SH_CHECK_OK(spec);
  auto tokenizer = MakeTokenizer(*std::move(spec));
  SH_CHECK_OK(tokenizer);
  return *tokenizer;
}

// Compares a tokenizer with what tokenizer_reference.py recorded; returns the strings compared.
size_t CompareWithReference(const Tokenizer& tokenizer, const std::string& cases) {
  const auto bytes = ReadFile(cases);
  SH_CHECK_OK(bytes);
  ByteReader reader(*bytes);
  const auto field = [&reader] {
    uint32_t size = 0;
    absl::string_view raw;
    SH_CHECK(reader.Get(&size) && reader.GetRaw(size, &raw));
    return raw;
  };
  uint32_t count = 0;
  SH_CHECK(reader.Get(&count));
  int failures = 0;
  for (uint32_t i = 0; i < count && failures < 5; ++i) {
    const absl::string_view text = field();
    const absl::string_view raw_ids = field();
    const absl::string_view decoded = field();
    const absl::string_view decoded_skipping = field();
    std::vector<int32_t> expected(raw_ids.size() / sizeof(int32_t));
    if (!expected.empty()) std::memcpy(expected.data(), raw_ids.data(), raw_ids.size());
    const auto ids = tokenizer.Encode(text);
    SH_CHECK_OK(ids);
    const bool same = *ids == expected && *tokenizer.Decode(expected, false) == decoded &&
                      *tokenizer.Decode(expected, true) == decoded_skipping;
    failures += same ? 0 : 1;
    EXPECT_EQ(*ids, expected) << "string " << i << ": " << text.substr(0, 300);
    EXPECT_EQ(*tokenizer.Decode(expected, false), decoded) << "string " << i;
    EXPECT_EQ(*tokenizer.Decode(expected, true), decoded_skipping) << "string " << i;
  }
  return count;
}

TEST(TokenizerReferenceTest, IdsAndTextEqualThePythonPackage) {
  const std::string python = std::string(SH_TEST_DEPS_DIR) + "/venv/bin/python";
  const std::string gguf =
      std::string(SH_TEST_DEPS_DIR) + "/teacher/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!PathExists(python)) GTEST_SKIP() << "no " << python << " (`make deps` makes it)";
  const bool has_teacher = PathExists(gguf);
  const TempFolder folder = *TempFolder::Create();
  const std::string command = absl::StrCat(
      "'", python, "' '", SH_TEST_SOURCE_DIR, "/tests/formats/tokenizer_reference.py' '",
      folder.path(), "' ", has_teacher ? absl::StrCat("'", gguf, "'") : std::string());
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
  const auto cases = ListFolder(folder.path());
  ASSERT_TRUE(cases.ok());
  EXPECT_EQ(cases->size(), has_teacher ? 16u : 15u);
  for (const std::string& name : *cases) {
    SCOPED_TRACE(name);
    const std::string where = JoinPath(folder.path(), name);
    const auto tokenizer = OpenTokenizer(name == "gguf" ? gguf : where);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const size_t strings = CompareWithReference(**tokenizer, JoinPath(where, "cases.bin"));
    EXPECT_GE(strings, name == "gguf" ? 20000u : 1000u);
  }
  if (!has_teacher) GTEST_SKIP() << "no " << gguf << ": SmolLM2's own ids were not compared";
}

TEST(TokenizerTest, FindsAddedTokensAndMerges) {
  const auto tokenizer = Tiny();
  EXPECT_EQ(tokenizer->size(), kTinyTokens);
  EXPECT_EQ(tokenizer->TokenBytes(kTinyEos), "<|endoftext|>");
  EXPECT_EQ(tokenizer->TokenBytes(256), " t");
  EXPECT_THAT(*tokenizer->Encode(" the<|endoftext|>A"), ElementsAre(262, kTinyEos, 'A' - '!'));
  EXPECT_EQ(*tokenizer->Decode({262, kTinyEos, 'A' - '!'}, true), " theA");
  EXPECT_EQ(*tokenizer->Decode({262, kTinyEos}, false), " the<|endoftext|>");
  EXPECT_TRUE(tokenizer->Encode("")->empty());
}

TEST(TokenizerTest, RefusesTextThatIsNotUtf8AndUnknownIds) {
  const auto tokenizer = Tiny();
  const absl::Status status = tokenizer->Encode("abc\xff").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("byte 3"));
  for (const int32_t id : {-1, kTinyTokens, 1 << 30}) {
    EXPECT_EQ(tokenizer->Decode({id}, false).status().code(), absl::StatusCode::kOutOfRange);
  }
}

TEST(TokenizerTest, DecodeReplacesBrokenUtf8AsUnicodeRecommends) {
  EXPECT_EQ(CleanUtf8("a\xe2\x82z"), "a\xef\xbf\xbdz");                          // one for a prefix
  EXPECT_EQ(CleanUtf8("\xf0\x80\x80"), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");  // overlong
  EXPECT_EQ(CleanUtf8("\xed\xa0\x80"), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");  // a surrogate
  EXPECT_EQ(CleanUtf8("\xf4\x90\x80\x80\xc3\xa9"),
            "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xc3\xa9");
}

TEST(TokenizerTest, FingerprintIsOfTheTokenizerNotOfItsFile) {
  const TempFolder folder = *TempFolder::Create();
  const std::string gguf = JoinPath(folder.path(), "tiny.gguf");
  ASSERT_TRUE(WriteTinyGguf(gguf).ok());
  const auto from_gguf = OpenTokenizer(gguf);
  ASSERT_TRUE(from_gguf.ok()) << from_gguf.status();
  const auto from_json = Tiny();
  EXPECT_EQ((*from_gguf)->Fingerprint(), from_json->Fingerprint());

  const std::string written = JoinPath(folder.path(), "written");
  ASSERT_TRUE(MakeFolders(written).ok());
  ASSERT_TRUE((*from_gguf)->WriteFiles(written).ok());
  const auto again = OpenTokenizer(written);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)->Fingerprint(), from_json->Fingerprint());
  EXPECT_EQ((*again)->eos_id(), kTinyEos);

  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"\"individual_digits\": true", "\"individual_digits\": false"},
           {"<|im_start|>", "<|im_stop|>"},
           {"\"special\": true", "\"special\": false"}}) {
    std::string changed = TinyTokenizerJson();
    ASSERT_GT(absl::StrReplaceAll({{from, to}}, &changed), 0);
    auto spec = ParseTokenizerJson(changed, "t");
    ASSERT_TRUE(spec.ok()) << spec.status();
    const auto tokenizer = MakeTokenizer(*std::move(spec));
    ASSERT_TRUE(tokenizer.ok());
    EXPECT_NE((*tokenizer)->Fingerprint(), from_json->Fingerprint()) << to;
  }
}

TEST(TokenizerTest, RefusesByNameWhatItCannotRunExactly) {
  const struct {
    std::string from;
    std::string to;
    const char* says;
  } cases[] = {
      {"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFKC\"}", "NFKC"},
      {"\"type\": \"BPE\"", "\"type\": \"Unigram\"", "Unigram"},
      {"\"byte_fallback\": false", "\"byte_fallback\": true", "byte_fallback"},
      {"\"dropout\": null", "\"dropout\": 0.1", "dropout"},
      {"\"end_of_word_suffix\": null", "\"end_of_word_suffix\": \"</w>\"", "end_of_word_suffix"},
      {"\"type\": \"Digits\"", "\"type\": \"Metaspace\"", "Metaspace"},
      {"\"lstrip\": false", "\"lstrip\": true", "lstrip"},
      {"\"decoder\": {", "\"decoder\": null, \"unused\": {", "decoder"},
      {"\"Ġ\": 220", "\"Ġ\": 219", "two tokens"},
      {"\"Ġ\": 220", "\"Ġ\": 99999999", "id"},
      {"\"Ġ\": 220", "\"Ġ\": -1", "id"},
      {"\"Ġ\": 220,", "", "merge"},
      {"\"version\": \"1.0\"", "\"merges\": 1, \"merges\": 2", "twice"},
  };
  for (const auto& test : cases) {
    std::string json = TinyTokenizerJson();
    ASSERT_GT(absl::StrReplaceAll({{test.from, test.to}}, &json), 0) << test.from;
    auto spec = ParseTokenizerJson(json, "tokenizer.json");
    absl::Status status = spec.status();
    if (status.ok()) status = MakeTokenizer(*std::move(spec)).status();
    EXPECT_FALSE(status.ok()) << test.to;
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.says));
  }
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> WithPattern(const std::string& pattern) {
  std::string json = TinyTokenizerJson();
  absl::StrReplaceAll(
      {{"\"type\": \"Digits\"",
        absl::StrCat("\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": "
                     "{\"Regex\": \"",
                     pattern, "\"}")}},
      &json);
  SH_ASSIGN_OR_RETURN(TokenizerSpec spec, ParseTokenizerJson(json, "t"));
  return MakeTokenizer(std::move(spec));
}

TEST(TokenizerTest, HostilePatternsAreRefusedOrGiveUpInBoundedTime) {
  for (const char* refused : {"^a", "a$", "[a[b]]", "[a&&b]", "\\\\X", "\\\\p{Script=Greek}",
                              "(?<n>a)", "(*ACCEPT)", "(", "[a", "\\\\1", "(?R)"}) {
    EXPECT_FALSE(WithPattern(refused).ok()) << refused;
  }
  const auto slow = WithPattern("(a+)+[bc]");
  ASSERT_TRUE(slow.ok()) << slow.status();
  EXPECT_EQ((*slow)->Encode(std::string(5000, 'a')).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace stillhouse
