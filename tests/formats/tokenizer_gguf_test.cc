// The tokenizers of GGUF files, against the Python `tokenizers` package on the same tokenizer made
// without a GGUF, and on the files that we write for it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "formats/model_files.h"
#include "tests/formats/gguf_builder.h"
#include "tests/formats/recording.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

TEST(GgufTokenizerTest, EveryKindGivesTheIdsOfThePythonPackageAndOfTheFilesWritten) {
  const std::string python = std::string(SH_TEST_DEPS_DIR) + "/venv/bin/python";
  if (!PathExists(python)) GTEST_SKIP() << "no " << python << " (`make deps` makes it)";
  const TempFolder folder = *TempFolder::Create();
  const auto run = [&](const char* what) {
    const std::string command =
        absl::StrCat("'", python, "' '", SH_TEST_SOURCE_DIR, "/tests/formats/tokenizer_gguf.py' ",
                     what, " '", folder.path(), "'");
    return std::system(command.c_str());
  };
  ASSERT_EQ(run("make"), 0);
  const std::vector<std::string> kinds = {"smollm",  "llama-bpe", "qwen2",
                                          "default", "llama",     "llama-plain"};
  for (const std::string& kind : kinds) {
    const auto tokenizer = OpenTokenizer(JoinPath(folder.path(), kind + ".gguf"));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const std::string written = JoinPath(folder.path(), kind);
    ASSERT_TRUE(MakeFolders(written).ok());
    ASSERT_TRUE((*tokenizer)->WriteFiles(written).ok());
    const auto again = OpenTokenizer(written);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ((*again)->Fingerprint(), (*tokenizer)->Fingerprint()) << kind;
  }
  ASSERT_EQ(run("check"), 0);
  Recording strings(JoinPath(folder.path(), "strings.bin"));
  const auto texts = strings.Strings(strings.Get<uint32_t>());
  for (const std::string& kind : kinds) {
    SCOPED_TRACE(kind);
    const auto tokenizer = *OpenTokenizer(JoinPath(folder.path(), kind + ".gguf"));
    Recording recording(JoinPath(folder.path(), kind + ".bin"));
    const auto counts = recording.Many<uint32_t>(texts.size());
    int failures = 0;
    for (size_t i = 0; i < texts.size() && failures < 5; ++i) {
      const auto expected = recording.Many<int32_t>(counts[i]);
      const auto text_ids = tokenizer->Encode(texts[i]);
      ASSERT_TRUE(text_ids.ok()) << text_ids.status();
      std::vector<int32_t> ids(tokenizer->prefix().begin(), tokenizer->prefix().end());
      ids.insert(ids.end(), text_ids->begin(), text_ids->end());
      ids.insert(ids.end(), tokenizer->suffix().begin(), tokenizer->suffix().end());
      failures += ids == expected ? 0 : 1;
      EXPECT_EQ(ids, expected) << texts[i].substr(0, 300);
    }
  }
}

// A GGUF of kind "llama" with these pieces.
absl::Status OpenPieces(const std::vector<std::string>& pieces, const std::vector<float>& scores) {
  const TempFolder folder = *TempFolder::Create();
  GgufBuilder builder;
  builder.AddString("tokenizer.ggml.model", "llama");
  builder.AddStrings("tokenizer.ggml.tokens", pieces);
  std::string raw;
  const auto append = [&raw](const auto& value) {
    raw.append(reinterpret_cast<const char*>(&value), sizeof(value));
  };
  append(uint32_t{6});
  append(uint64_t{scores.size()});
  for (const float score : scores) append(score);
  builder.AddRaw("tokenizer.ggml.scores", /*type=*/9, raw);
  const std::string path = JoinPath(folder.path(), "pieces.gguf");
  SH_RETURN_IF_ERROR(WriteFileAtomically(path, builder.Build()));
  return OpenTokenizer(path).status();
}

TEST(GgufTokenizerTest, BrokenPiecesAreNamed) {
  EXPECT_TRUE(OpenPieces({"a", "b", "ab"}, {-1, -2, -3}).ok());
  EXPECT_THAT(std::string(OpenPieces({"a", "b"}, {-1}).message()), HasSubstr("1 entries for 2"));
  EXPECT_THAT(std::string(OpenPieces({"a", "b"}, {-1, std::nanf("")}).message()),
              HasSubstr("token 1"));
  EXPECT_THAT(std::string(OpenPieces({"a", std::string(1 << 20, 'b')}, {-1, -2}).message()),
              HasSubstr("token 1 has 1048576 bytes"));
}

}  // namespace
}  // namespace stillhouse
