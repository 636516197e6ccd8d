// The tokenizers of GGUF files, against the Python `tokenizers` package on the same tokenizer made
// without a GGUF, and on the files that we write for it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <memory>

#include "formats/gguf_tokenizer.h"
#include "formats/model_files.h"
#include "tests/formats/gguf_builder.h"
#include "tests/formats/recording.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

const std::vector<std::string> kKinds = {"smollm",  "llama-bpe", "qwen2",
                                         "default", "llama",     "llama-plain"};
// Only a tokenizer.json. GGUF holds the first two.
const std::vector<std::string> kJsonOnly = {"llama-normalized", "gpt2-normalized", "llama-legacy"};

// What tokenizer_gguf.py makes, and what we make of it: <kind>/tokenizer.json.
class GgufTokenizerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!PathExists(kPython)) return;
    folder = std::make_unique<TempFolder>(*TempFolder::Create());
    SH_CHECK(Python("make") == 0);
    for (const auto* kinds : {&kKinds, &kJsonOnly}) {
      for (const std::string& kind : *kinds) {
        SH_CHECK_OK(MakeFolders(Path(kind)));
        const auto tokenizer = kinds == &kKinds ? OpenTokenizer(Path(kind + ".gguf")) : Json(kind);
        SH_CHECK_OK(tokenizer);
        SH_CHECK_OK((*tokenizer)->WriteFiles(Path(kind)));
      }
    }
    SH_CHECK(Python("check") == 0);
  }
  static void TearDownTestSuite() { folder.reset(); }
  void SetUp() override {
    if (folder == nullptr) GTEST_SKIP() << "no " << kPython << " (`make deps` makes it)";
  }

  static int Python(const char* what) {
    const std::string command =
        absl::StrCat("'", kPython, "' '", SH_TEST_SOURCE_DIR, "/tests/formats/tokenizer_gguf.py' ",
                     what, " '", folder->path(), "'");
    return std::system(command.c_str());
  }
  static std::string Path(const std::string& name) { return JoinPath(folder->path(), name); }
  // The tokenizer as `tokenizers` wrote it.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> Json(const std::string& kind) {
    const std::string path = Path(kind + ".json");
    SH_ASSIGN_OR_RETURN(const std::string json, ReadFile(path));
    SH_ASSIGN_OR_RETURN(TokenizerSpec spec, ParseTokenizerJson(json, path));
    return MakeTokenizer(std::move(spec));
  }
  // The tokenizer in a GGUF file of ours.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> ThroughGguf(const Tokenizer& tokenizer) {
    const TempFolder folder = *TempFolder::Create();
    const std::string path = JoinPath(folder.path(), "t.gguf");
    GgufMetadata metadata;
    SH_RETURN_IF_ERROR(AddGgufTokenizer(*tokenizer.spec(), tokenizer.size() + 5, metadata));
    if (tokenizer.bos_id().has_value()) {
      metadata.AddU32("tokenizer.ggml.bos_token_id", *tokenizer.bos_id());
    }
    SH_ASSIGN_OR_RETURN(const auto writer, GgufWriter::Create(path, metadata, {}));
    SH_RETURN_IF_ERROR(writer->Close());
    return OpenTokenizer(path);
  }
  void ExpectRecordedIds(const Tokenizer& tokenizer, const std::string& kind) {
    SCOPED_TRACE(kind);
    Recording strings(Path("strings.bin"));
    const auto texts = strings.Strings(strings.Get<uint32_t>());
    ASSERT_GE(texts.size(), 8000u);
    Recording recording(Path(kind + ".bin"));
    const auto counts = recording.Many<uint32_t>(texts.size());
    int failures = 0;
    for (size_t i = 0; i < texts.size() && failures < 5; ++i) {
      const auto expected = recording.Many<int32_t>(counts[i]);
      const auto text_ids = tokenizer.Encode(texts[i]);
      ASSERT_TRUE(text_ids.ok()) << text_ids.status();
      std::vector<int32_t> ids(tokenizer.prefix().begin(), tokenizer.prefix().end());
      ids.insert(ids.end(), text_ids->begin(), text_ids->end());
      ids.insert(ids.end(), tokenizer.suffix().begin(), tokenizer.suffix().end());
      failures += ids == expected ? 0 : 1;
      EXPECT_EQ(ids, expected) << texts[i].substr(0, 300);
    }
  }

  static inline const std::string kPython = std::string(SH_TEST_DEPS_DIR) + "/venv/bin/python";
  static inline std::unique_ptr<TempFolder> folder;
};

TEST_F(GgufTokenizerTest, EveryKindGivesTheIdsOfThePythonPackageAndOfTheFilesWritten) {
  for (const std::string& kind : kKinds)
    ExpectRecordedIds(**OpenTokenizer(Path(kind + ".gguf")), kind);
}

TEST_F(GgufTokenizerTest, OneTokenizerHasOneFingerprintInAllItsFiles) {
  for (const std::string& kind : kKinds) {
    SCOPED_TRACE(kind);
    const auto from_gguf = OpenTokenizer(Path(kind + ".gguf")), written = OpenTokenizer(Path(kind));
    const auto from_json = Json(kind);
    ASSERT_TRUE(written.ok() && from_json.ok()) << written.status() << from_json.status();
    EXPECT_EQ((*from_json)->Fingerprint(), (*from_gguf)->Fingerprint());
    EXPECT_EQ((*written)->Fingerprint(), (*from_gguf)->Fingerprint());
  }
  // The kinds differ in more than their flags.
  EXPECT_NE((*Json("qwen2"))->Fingerprint(), (*Json("llama-bpe"))->Fingerprint());
  EXPECT_NE((*Json("llama"))->Fingerprint(), (*Json("llama-legacy"))->Fingerprint());
}

TEST_F(GgufTokenizerTest, WhatWeWriteGivesTheSameIds) {
  std::vector<std::string> kinds = kKinds;
  kinds.insert(kinds.end(), {"llama-normalized", "gpt2-normalized"});
  for (const std::string& kind : kinds) {
    SCOPED_TRACE(kind);
    const auto tokenizer = Json(kind);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const auto again = ThroughGguf(**tokenizer);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ((*again)->Fingerprint(), (*tokenizer)->Fingerprint());
    ExpectRecordedIds(**again, kind);
  }
}

// With a space put before each text, a `normalized` token is looked for with that space before it.
TEST_F(GgufTokenizerTest, ATokenThatIsFoundOnlyAfterASpaceIsRefusedByName) {
  const auto tokenizer = Json("llama-legacy");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectRecordedIds(**tokenizer, "llama-legacy");
  EXPECT_NE(*(*tokenizer)->Encode("a<s>"), *(*Json("llama"))->Encode("a<s>"));
  const absl::Status status = ThroughGguf(**tokenizer).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("`normalized` of added token \"<unk>\""));
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

TEST(GgufPiecesTest, BrokenPiecesAreNamed) {
  EXPECT_TRUE(OpenPieces({"a", "b", "ab"}, {-1, -2, -3}).ok());
  EXPECT_THAT(std::string(OpenPieces({"a", "b"}, {-1}).message()), HasSubstr("1 entries for 2"));
  EXPECT_THAT(std::string(OpenPieces({"a", "b"}, {-1, std::nanf("")}).message()),
              HasSubstr("token 1"));
  EXPECT_THAT(std::string(OpenPieces({"a", std::string(1 << 20, 'b')}, {-1, -2}).message()),
              HasSubstr("token 1 has 1048576 bytes"));
}

}  // namespace
}  // namespace stillhouse
