// A tokenizer.json from anybody: what is broken is one line that names the file, in time and memory
// that follow from the file's size.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "formats/regex.h"
#include "formats/tokenizer_spec.h"
#include "tests/common/peak_memory.h"
#include "tests/formats/tiny_model.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class HostileTokenizerTest : public ::testing::Test {
 protected:
  // Opened from its folder, as in use.
  absl::StatusOr<std::shared_ptr<const Tokenizer>> Open(const std::string& json) {
    SH_CHECK_OK(WriteFileAtomically(JoinPath(folder_.path(), "tokenizer.json"), json));
    return OpenTokenizer(folder_.path());
  }
  void ExpectRefused(const std::string& json, const std::string& says) {
    const absl::Status status = Open(json).status();
    EXPECT_FALSE(status.ok()) << says;
    const std::string message(status.message());
    EXPECT_THAT(message, HasSubstr(says));
    EXPECT_THAT(message, HasSubstr("tokenizer.json"));
    EXPECT_THAT(message, Not(HasSubstr("\n")));
    EXPECT_LT(message.size(), 500u) << says;
  }
  // The tiny tokenizer with one text replaced by another.
  static std::string Changed(const std::string& from, const std::string& to) {
    std::string json = TinyTokenizerJson();
    SH_CHECK(absl::StrReplaceAll({{from, to}}, &json) > 0, from);
    return json;
  }
  static std::string WithPattern(const std::string& pattern) {
    return Changed("\"type\": \"Digits\"",
                   absl::StrCat("\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": "
                                "{\"Regex\": \"",
                                pattern, "\"}"));
  }
  static std::string WithAdded(const std::string& entry) {
    return Changed("\"added_tokens\": [", absl::StrCat("\"added_tokens\": [", entry, ", "));
  }

  TempFolder folder_ = *TempFolder::Create();
};

std::string Repeated(const std::string& text, size_t times) {
  std::string out;
  out.reserve(text.size() * times);
  for (size_t i = 0; i < times; ++i) out += text;
  return out;
}

TEST_F(HostileTokenizerTest, DeepNestingIsRefused) {
  for (const char* open : {"[", "{\"a\":", "[[{\"normalizers\":"}) {
    ExpectRefused(Repeated(open, 1'000'000), "nested deeper than 64 levels");
  }
  // Within the limit of JSON, a sequence in a sequence is as good as one.
  std::string normalizer = "{\"type\": \"NFC\"}";
  for (int i = 0; i < 25; ++i) {
    normalizer = absl::StrCat("{\"type\": \"Sequence\", \"normalizers\": [", normalizer, "]}");
  }
  const auto nested =
      Open(Changed("\"normalizer\": null", absl::StrCat("\"normalizer\": ", normalizer)));
  ASSERT_TRUE(nested.ok()) << nested.status();
  const auto plain = Open(Changed("\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}"));
  EXPECT_EQ((*nested)->Fingerprint(), (*plain)->Fingerprint());
}

TEST_F(HostileTokenizerTest, AMillionMergesOfOnePairAreOne) {
  const bool measures = ResetPeak() && PeakBytes().has_value();
  const uint64_t before = measures ? *PeakBytes() : 0;
  const std::string merges = Repeated("\"Ġ t\", ", 1'000'000);
  const auto tokenizer = Open(Changed("\"merges\": [", "\"merges\": [" + merges));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(*(*tokenizer)->Encode(" the cat"), *(*Open(TinyTokenizerJson()))->Encode(" the cat"));
  if (!measures) GTEST_SKIP() << "the peak of memory is not known here";
  EXPECT_LT(*PeakBytes(), before + 30 * merges.size());
}

TEST_F(HostileTokenizerTest, MergesOfWhatIsNotThereAreRefused) {
  ExpectRefused(Changed("\"merges\": [", "\"merges\": [\"Ġ nowhere\", "), "merge 0 is not two");
  ExpectRefused(Changed("\"merges\": [", "\"merges\": [[\"Ġ\", \"t\", \"h\"], "), "merge 0 is not");
  ExpectRefused(Changed("\"merges\": [", "\"merges\": [7, "), "merge 0 is not two");
  ExpectRefused(Changed("\"merges\": [", "\"merges\": [\"Ġ Ġ\", "), "merge 0 makes \"ĠĠ\"");
}

TEST_F(HostileTokenizerTest, IdsThatAreNoneAreRefused) {
  for (const char* id : {"9223372036854775808", "9223372036854775807", "18446744073709551615",
                         "18446744073709551616", "4294967296", "-1", "-9223372036854775808", "1.5",
                         "1e300", "\"3\"", "null", "[3]"}) {
    ExpectRefused(Changed("\"Ġ\": 220", absl::StrCat("\"Ġ\": ", id)), "id");
    ExpectRefused(Changed("\"id\": 297", absl::StrCat("\"id\": ", id)), "id");
  }
  ExpectRefused(Changed("\"Ġ\": 220", "\"Ġ\": 221"), "stands for two tokens");
  ExpectRefused(Changed("\"id\": 297", "\"id\": 5"), "stands for two tokens");
}

TEST_F(HostileTokenizerTest, AddedTokensThatAreNoneAreRefused) {
  ExpectRefused(WithAdded(R"({"id": 298, "content": ""})"), "empty");
  ExpectRefused(WithAdded(R"({"id": 298})"), "`content`");
  ExpectRefused(WithAdded(R"({"content": "<x>"})"), "no `id`");
  ExpectRefused(WithAdded("7"), "`content`");
  ExpectRefused(
      WithAdded(absl::StrCat("{\"id\": 298, \"content\": \"", std::string(1 << 20, 'x'), "\"}")),
      "count on");
  std::string json = TinyTokenizerJson();
  absl::StrReplaceAll({{"<|im_start|>", std::string(1 << 20, 'x')}}, &json);
  ExpectRefused(json, "has 1048576 bytes, past the limit of 16384");
}

TEST_F(HostileTokenizerTest, MegabyteLongTokensAndNamesAreCutInMessages) {
  const std::string mega(1 << 20, 'y');
  ExpectRefused(Changed("\"Ġ\": 220", absl::StrCat("\"", mega, "\": 220")), "");
  ExpectRefused(Changed("\"type\": \"BPE\"", absl::StrCat("\"type\": \"", mega, "\"")), "yyyy");
  ExpectRefused(Changed("\"type\": \"Digits\"", absl::StrCat("\"type\": \"", mega, "\"")), "yyyy");
  ExpectRefused(Changed("\"unk_token\": null", absl::StrCat("\"unk_token\": \"", mega, "\"")),
                "unk_token");
  ExpectRefused(
      Changed("\"post_processor\": null",
              absl::StrCat(R"("post_processor": {"type": "TemplateProcessing", "single": )",
                           R"([{"Sequence": {"id": ")", mega, R"("}}]})")),
      "template");
  ExpectRefused(absl::StrCat("{\"", mega, "\": 1, \"", mega, "\": 2}"), "stands twice");
}

TEST_F(HostileTokenizerTest, HugePatternsAreRefused) {
  ExpectRefused(WithPattern(std::string(1 << 20, 'a')), "a pattern of 1048576 bytes");
  // Within the limit of length, but not of what PCRE2 makes of it.
  for (const std::string& pattern :
       {Repeated("(", 5000) + "a" + Repeated(")", 5000),
        std::string("(?:(?:(?:a{999}){999}){999}b)"), Repeated("(?:a|b){1,999}", 1000),
        Repeated("(?=", 5000) + "a" + Repeated(")", 5000)}) {
    const auto tokenizer = Open(WithPattern(pattern));
    if (!tokenizer.ok()) {
      ExpectRefused(WithPattern(pattern), "");
      continue;
    }
    // What compiles is bounded in steps.
    const auto ids = (*tokenizer)->Encode(std::string(3000, 'a'));
    EXPECT_TRUE(ids.ok() || absl::IsResourceExhausted(ids.status())) << ids.status();
  }
}

// Each step makes twenty times as much of the text: together 20^12 times.
TEST_F(HostileTokenizerTest, NormalizersMayNotBlowATextUp) {
  const std::string step = absl::StrCat(
      R"({"type": "Replace", "pattern": {"String": "e"}, "content": ")", Repeated("e", 20), "\"}");
  const std::string all = absl::StrCat(R"("normalizer": {"type": "Sequence", "normalizers": [)",
                                       step, Repeated(", " + step, 11), "]}");
  const auto tokenizer = Open(Changed("\"normalizer\": null", all));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const std::string& text : {std::string("e"), Repeated("e", 100'000)}) {
    const absl::Status status = (*tokenizer)->Encode(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("the normalizer makes more than"));
  }
  EXPECT_TRUE((*tokenizer)->Encode("a").ok());
}

TEST_F(HostileTokenizerTest, NulAndBrokenUtf8) {
  // A token with a NUL is one as any other.
  const auto tokenizer = Open(Changed("<|im_start|>", "<\\u0000>"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string nul("a<\0>b", 5);
  const auto ids = *(*tokenizer)->Encode(nul);
  EXPECT_EQ(ids.size(), 3u);
  EXPECT_EQ(*(*tokenizer)->Decode(ids, /*skip_special=*/false), nul);
  // Bytes that are no JSON are placed.
  ExpectRefused(Changed("<|im_start|>", std::string("<\0>", 3)), "not valid JSON");
  for (const char* bytes : {"\xff", "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc0\xaf"}) {
    ExpectRefused(Changed("<|im_start|>", bytes), "not valid JSON");
  }
  for (const char* escape : {"\\ud800", "\\udc00\\ud800", "\\ud800x", "\\u12"}) {
    ExpectRefused(Changed("<|im_start|>", escape), "not valid JSON");
  }
  ExpectRefused("", "tokenizer.json:1:1: not valid JSON");
  ExpectRefused("{\n \"é\": [1,\n", "tokenizer.json:2:10: not valid JSON, which ends here");
  ExpectRefused("{\n \"é\": x}", "tokenizer.json:2:7: not valid JSON");
}

TEST_F(HostileTokenizerTest, WhatIsOfAnotherTypeIsRefused) {
  for (const char* value : {"7", "[]", "\"x\"", "true", "{}", "[[7]]"}) {
    for (const char* key : {"\"normalizer\": null", "\"post_processor\": null"}) {
      const std::string name(key, std::string(key).find(':') + 1);
      ExpectRefused(Changed(key, absl::StrCat(name, " ", value)), "is not implemented");
    }
    const std::string model = absl::StrCat("{\"model\": ", value, "}");
    ExpectRefused(model, "is missing");
  }
  ExpectRefused(Changed("\"merges\": [", "\"merges\": 7, \"unused\": ["), "`merges` is missing");
  ExpectRefused(Changed("\"added_tokens\": [", "\"added_tokens\": {}, \"unused\": ["),
                "`added_tokens` must be a list");
}

}  // namespace
}  // namespace stillhouse
