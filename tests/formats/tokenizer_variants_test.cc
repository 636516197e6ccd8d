// Every kind of tokenizer that is implemented, against the Python `tokenizers` package on 100,000
// strings each: ids, offsets (of 25,000), decoded text, streamed text. tokenizer_variants.py makes
// them.
#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>

#include "formats/model_files.h"
#include "tests/formats/recording.h"

namespace stillhouse {
namespace {

constexpr int kStrings = 100000;
constexpr size_t kOffsetsEvery = 4;
constexpr int kFailuresMax = 5;  // of one tokenizer; the rest is as a rule the same

// Places counted in characters, as Python does.
std::vector<uint32_t> InCharacters(absl::string_view text, const std::vector<TextRange>& places) {
  std::vector<uint32_t> before(text.size() + 1);
  uint32_t count = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    before[i] = count;
    const bool last = i + 1 == text.size() || (static_cast<uint8_t>(text[i + 1]) & 0xc0) != 0x80;
    if (last) ++count;
  }
  before[text.size()] = count;
  std::vector<uint32_t> out;
  for (const TextRange& place : places) {
    out.push_back(before[place.begin]);
    out.push_back(before[place.end]);
  }
  return out;
}

class VariantsTest : public ::testing::Test {
 protected:
  void Check(const std::string& name, const Tokenizer& tokenizer, const std::string& cases,
             const std::vector<absl::string_view>& texts);

 private:
  void CheckIds(const Tokenizer& tokenizer, Recording& recording,
                const std::vector<absl::string_view>& texts);
  void CheckStreams(const Tokenizer& tokenizer, Recording& recording);
};

void VariantsTest::CheckIds(const Tokenizer& tokenizer, Recording& recording,
                            const std::vector<absl::string_view>& texts) {
  const auto counts = recording.Many<uint32_t>(texts.size());
  std::vector<std::vector<int32_t>> ids;
  for (const uint32_t count : counts) ids.push_back(recording.Many<int32_t>(count));
  std::vector<std::vector<uint32_t>> offsets;
  for (size_t i = 0; i < texts.size(); i += kOffsetsEvery) {
    offsets.push_back(recording.Many<uint32_t>(2 * counts[i]));
  }
  const auto decoded = recording.Strings(texts.size());
  const auto skipping = recording.Strings(texts.size());
  int failures = 0;
  for (size_t i = 0; i < texts.size() && failures < kFailuresMax; ++i) {
    const std::string shown = absl::StrCat("string ", i, ": ", texts[i].substr(0, 300));
    const auto got = tokenizer.Encode(texts[i]);
    const auto text = tokenizer.Decode(ids[i], /*skip_special=*/false);
    const auto text_skipping = tokenizer.Decode(ids[i], /*skip_special=*/true);
    ASSERT_TRUE(got.ok() && text.ok() && text_skipping.ok()) << got.status() << text.status();
    if (*got != ids[i] || *text != decoded[i] || *text_skipping != skipping[i]) {
      ++failures;
      EXPECT_EQ(*got, ids[i]) << shown;
      EXPECT_EQ(*text, decoded[i]) << shown;
      EXPECT_EQ(*text_skipping, skipping[i]) << shown;
    }
    if (i % kOffsetsEvery != 0) continue;
    const auto placed = tokenizer.EncodeWithOffsets(texts[i]);
    ASSERT_TRUE(placed.ok()) << placed.status();
    const auto where = InCharacters(texts[i], placed->offsets);
    if (placed->ids != ids[i] || where != offsets[i / kOffsetsEvery]) {
      ++failures;
      EXPECT_EQ(placed->ids, ids[i]) << "with offsets, " << shown;
      EXPECT_EQ(where, offsets[i / kOffsetsEvery]) << "offsets of " << shown;
    }
  }
}

void VariantsTest::CheckStreams(const Tokenizer& tokenizer, Recording& recording) {
  const auto count = recording.Get<uint32_t>();
  EXPECT_GE(count, 3000u);
  int failures = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const auto ids = recording.Many<int32_t>(recording.Get<uint32_t>());
    StreamDecoder stream(tokenizer, /*skip_special=*/false);
    std::string all;
    bool refused = false;
    for (size_t at = 0; at < ids.size() && !refused; ++at) {
      const auto size = recording.Get<int32_t>();
      const absl::string_view chunk = size > 0 ? recording.Raw(static_cast<size_t>(size)) : "";
      refused = size == -2;
      const auto got = stream.Add(ids[at]);
      const bool same = refused ? !got.ok() : got.ok() && *got == chunk;
      if (!same && ++failures < kFailuresMax) {
        ADD_FAILURE() << "stream " << i << " at " << at << ": " << got.status() << " "
                      << got.value_or("") << ", not " << size << " bytes: " << chunk;
      }
      if (got.ok()) all += *got;
    }
    if (refused) continue;
    // With what is left at the end, a stream is the text; unless broken bytes came to be whole.
    const auto rest = stream.Finish();
    if (rest.ok()) all += *rest;
    const std::string whole = *tokenizer.Decode(ids, /*skip_special=*/false);
    if (rest.ok() && all != whole && ++failures < kFailuresMax) {
      ADD_FAILURE() << "stream " << i << ": " << all << ", not " << whole;
    }
  }
}

void VariantsTest::Check(const std::string& name, const Tokenizer& tokenizer,
                         const std::string& cases, const std::vector<absl::string_view>& texts) {
  SCOPED_TRACE(name);
  Recording recording(cases);
  CheckIds(tokenizer, recording, texts);
  for (const auto affix : {tokenizer.prefix(), tokenizer.suffix()}) {
    const auto expected = recording.Many<int32_t>(recording.Get<uint32_t>());
    EXPECT_EQ(std::vector<int32_t>(affix.begin(), affix.end()), expected);
  }
  CheckStreams(tokenizer, recording);
}

TEST_F(VariantsTest, IdsOffsetsAndTextEqualThePythonPackage) {
  const std::string python = std::string(SH_TEST_DEPS_DIR) + "/venv/bin/python";
  const std::string gguf =
      std::string(SH_TEST_DEPS_DIR) + "/teacher/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!PathExists(python)) GTEST_SKIP() << "no " << python << " (`make deps` makes it)";
  const bool has_teacher = PathExists(gguf);
  const TempFolder folder = *TempFolder::Create();
  const std::string command = absl::StrCat("'", python, "' '", SH_TEST_SOURCE_DIR,
                                           "/tests/formats/tokenizer_variants.py' '", folder.path(),
                                           "' ", kStrings, has_teacher ? " '" + gguf + "'" : "");
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
  Recording strings(JoinPath(folder.path(), "strings.bin"));
  const auto texts = strings.Strings(strings.Get<uint32_t>());
  ASSERT_GE(texts.size(), static_cast<size_t>(kStrings));
  const auto names = ListFolder(folder.path());
  ASSERT_TRUE(names.ok());
  EXPECT_EQ(names->size(), has_teacher ? 15u : 14u);
  const auto check = [&](size_t first) {
    for (size_t i = first; i < names->size(); i += 2) {
      const std::string& name = (*names)[i];
      if (name == "strings.bin") continue;
      const std::string where = JoinPath(folder.path(), name);
      const auto tokenizer = OpenTokenizer(name == "smollm2" ? gguf : where);
      ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
      Check(name, **tokenizer, JoinPath(where, "cases.bin"), texts);
    }
  };
  std::thread second(check, 1);
  check(0);
  second.join();
  if (!has_teacher) GTEST_SKIP() << "no " << gguf << ": SmolLM2's own ids were not compared";
}

}  // namespace
}  // namespace stillhouse
