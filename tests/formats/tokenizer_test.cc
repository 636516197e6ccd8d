#include "formats/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

#include "absl/strings/str_replace.h"
#include "common/utf8.h"
#include "formats/model_files.h"
#include "formats/regex.h"
#include "formats/tokenizer_spec.h"
#include "tests/formats/recording.h"
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
  Recording recording(cases);
  const auto count = recording.Get<uint32_t>();
  int failures = 0;
  for (uint32_t i = 0; i < count && failures < 5; ++i) {
    const absl::string_view text = recording.Field();
    const absl::string_view raw_ids = recording.Field();
    const absl::string_view decoded = recording.Field();
    const absl::string_view decoded_skipping = recording.Field();
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

// Which characters the classes of patterns have, against Oniguruma's.
void CompareClasses(const std::string& path) {
  Recording recording(path);
  const absl::string_view every = recording.Field();
  int patterns = 0;
  for (; !recording.AtEnd(); ++patterns) {
    const std::string pattern(recording.Field());
    const absl::string_view raw = recording.Field();
    std::vector<uint32_t> expected(raw.size() / sizeof(uint32_t));
    std::memcpy(expected.data(), raw.data(), raw.size());
    const auto regex = Regex::Compile(pattern);
    SH_CHECK_OK(regex);
    std::vector<uint32_t> ends;
    SH_CHECK_OK(Regex::Matcher(**regex).ForEach(every, [&](size_t begin, size_t end) {
      ends.push_back(static_cast<uint32_t>(begin));
      ends.push_back(static_cast<uint32_t>(end));
    }));
    EXPECT_TRUE(ends == expected) << pattern;
  }
  EXPECT_EQ(patterns, 4);
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
  EXPECT_EQ(cases->size(), has_teacher ? 12u : 11u);
  for (const std::string& name : *cases) {
    if (name == "classes.bin") continue;
    SCOPED_TRACE(name);
    const std::string where = JoinPath(folder.path(), name);
    const auto tokenizer = OpenTokenizer(name == "gguf" ? gguf : where);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const size_t strings = CompareWithReference(**tokenizer, JoinPath(where, "cases.bin"));
    EXPECT_GE(strings, name == "gguf" ? 20000u : 1000u);
  }
  CompareClasses(JoinPath(folder.path(), "classes.bin"));
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

TEST(TokenizerTest, FingerprintTellsApartWhatGivesOtherIds) {
  const Digest plain = Tiny()->Fingerprint();
  std::vector<Digest> seen = {plain};
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}"},
           {"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFKC\"}"},
           {"\"ignore_merges\": false", "\"ignore_merges\": true"},
           {"\"lstrip\": false", "\"lstrip\": true"},
           {"\"rstrip\": false", "\"rstrip\": true"},
           {"\"single_word\": false", "\"single_word\": true"}}) {
    std::string changed = TinyTokenizerJson();
    ASSERT_GT(absl::StrReplaceAll({{from, to}}, &changed), 0) << from;
    auto spec = ParseTokenizerJson(changed, "t");
    ASSERT_TRUE(spec.ok()) << spec.status();
    seen.push_back((*MakeTokenizer(*std::move(spec)))->Fingerprint());
  }
  // The same tokens, but merged in another order.
  auto spec = ParseTokenizerJson(TinyTokenizerJson(), "t");
  ASSERT_TRUE(spec.ok());
  std::swap(spec->merges[0], spec->merges[1]);
  seen.push_back((*MakeTokenizer(*std::move(spec)))->Fingerprint());
  for (size_t i = 0; i < seen.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE(seen[i], seen[j]) << i << " and " << j;
  }
}

TEST(TokenizerTest, RefusesByNameWhatItCannotRunExactly) {
  const struct {
    std::string from;
    std::string to;
    const char* says;
  } cases[] = {
      {"\"normalizer\": null", "\"normalizer\": {\"type\": \"Lowercase\"}", "Lowercase"},
      {"\"normalizer\": null",
       "\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"Regex\": \"x*\"}, \"content\": "
       "\"\"}",
       "may match nothing"},
      {"\"normalizer\": null", "\"normalizer\": {\"type\": \"Prepend\", \"prepend\": \"\"}",
       "Prepend"},
      {"\"type\": \"BPE\"", "\"type\": \"Unigram\"", "Unigram"},
      {"\"dropout\": null", "\"dropout\": 0.1", "dropout"},
      {"\"end_of_word_suffix\": null", "\"end_of_word_suffix\": \"</w>\"", "end_of_word_suffix"},
      {"\"unk_token\": null", "\"unk_token\": \"<none>\"", "<none>"},
      {"\"type\": \"Digits\"", "\"type\": \"BertPreTokenizer\"", "BertPreTokenizer"},
      {"\"type\": \"Digits\"", "\"type\": \"Metaspace\", \"replacement\": \"ab\"", "one character"},
      {"\"decoder\": {", "\"decoder\": null, \"unused\": {", "decoder"},
      {"\"decoder\": {", "\"decoder\": {\"type\": \"CTC\"}, \"unused\": {", "CTC"},
      {"\"post_processor\": null", "\"post_processor\": {\"type\": \"Magic\"}", "Magic"},
      {"\"id\": 297", "\"id\": 310", "count on"},
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

// A tokenizer.json with `count` merges that make one token of 'a's.
std::string LongMerge(size_t size) {
  const std::string half(size / 2, 'a');
  return absl::StrCat(R"({"model": {"type": "BPE", "vocab": {"a": 0, ")", half, R"(": 1, ")", half,
                      half, R"(": 2}, "merges": [[")", half, R"(", ")", half,
                      R"("]]}, "decoder": {"type": "ByteLevel"}})");
}

TEST(TokenizerTest, AMegabyteLongMergeIsRefusedByItsTokensSize) {
  const auto make = [](size_t size) {
    auto spec = ParseTokenizerJson(LongMerge(size), "t");
    return spec.ok() ? MakeTokenizer(*std::move(spec)).status() : spec.status();
  };
  EXPECT_TRUE(make(kTokenBytesMax).ok());
  EXPECT_THAT(std::string(make(1 << 20).message()), HasSubstr("has 524288 bytes, past the limit"));
}

TEST(TokenizerTest, AFileOfAnotherModelIsNamed) {
  for (const auto& [json, says] : std::vector<std::pair<std::string, std::string>>{
           {R"({"model": {"type": "WordPiece", "vocab": {}}})", "WordPiece"},
           {R"({"model_type": "llama", "vocab_size": 32000})", "`model` is missing"},
           {"[1, 2]", "`model` is missing"},
           {"\x08\x03tokenizer.model", "not valid JSON"}}) {
    const auto spec = ParseTokenizerJson(json, "tokenizer.json");
    EXPECT_THAT(std::string(spec.status().message()), HasSubstr(says));
    EXPECT_THAT(std::string(spec.status().message()), HasSubstr("tokenizer.json"));
  }
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
  // Each match is within the limit of one, but all together are not within that of a text.
  const auto often = WithPattern("(a+)+[bc]|a{20}");
  ASSERT_TRUE(often.ok()) << often.status();
  std::string text;
  for (int i = 0; i < 10000; ++i) text += std::string(21, 'a') + " ";
  EXPECT_EQ((*often)->Encode(text).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE((*often)->Encode(text.substr(0, 22)).ok());  // each text has its own
}

}  // namespace
}  // namespace stillhouse
