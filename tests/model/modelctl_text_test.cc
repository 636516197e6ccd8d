// modelctl and text: tokenize, detokenize, generate.
#include <cstdlib>
#include <string>
#include <vector>

#include "ATen/core/Tensor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/file.h"
#include "common/status.h"
#include "common/utf8.h"
#include "formats/json.h"
#include "formats/model_files.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/decoder.h"
#include "model/generate.h"
#include "tests/formats/tiny_model.h"
#include "tests/model/modelctl_fixture.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

TEST_F(ModelctlTest, TokenizeAnswersLineByLine) {
  const auto tokenizer = *OpenTokenizer(Path("tiny"));
  const std::vector<std::string> texts = {"the cat", "", "a\nb \u00e9 <|endoftext|>"};
  std::string input;
  for (const std::string& text : texts) absl::StrAppend(&input, Json{{"text", text}}.dump(), "\n");
  SH_CHECK_OK(MakeFolders(Path("only")));
  SH_CHECK_OK(WriteFileAtomically(Path("only/tokenizer.json"), TinyTokenizerJson()));
  for (const char* model : {"tiny", "tiny.gguf", "only"}) {
    const Outcome outcome = Run({"tokenize", model}, input);
    ASSERT_EQ(outcome.code, 0) << outcome.error;
    const std::vector<std::string> lines = absl::StrSplit(outcome.out, '\n', absl::SkipEmpty());
    ASSERT_EQ(lines.size(), texts.size()) << model;
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ((*ParseJson(lines[i], "line"))["ids"].get<std::vector<int32_t>>(),
                *tokenizer->Encode(texts[i]))
          << model;
    }
  }
}

TEST_F(ModelctlTest, TokenizeRefusesBadLines) {
  ExpectRefused(Run({"tokenize", "tiny"}, "{\"text\": 5}\n"), 1, "standard input:1: `text`");
  ExpectRefused(Run({"tokenize", "tiny"}, "\n{\"txt\": \"a\"}\n"), 1, "standard input:2: ");
  ExpectRefused(Run({"tokenize", "tiny"}, "not json\n"), 1, "standard input:1:2: not valid JSON");
}

TEST_F(ModelctlTest, TokenizeSaysWhereAndDetokenizeGivesTheTextBack) {
  const Outcome there =
      Run({"tokenize", "tiny", "--offsets"}, "{\"text\": \"\u00e9 the<|endoftext|>\"}\n");
  ASSERT_EQ(there.code, 0) << there.error;
  const Json json = *ParseJson(there.out, "output");
  ASSERT_EQ(json["ids"].size(), json["offsets"].size());
  EXPECT_EQ(json["offsets"].front(), Json({0, 2}));  // half a character comes from all of it
  EXPECT_EQ(json["offsets"].back(), Json({6, 19}));
  const Outcome back = Run({"detokenize", "tiny"}, there.out);
  EXPECT_EQ(back.out, "{\"text\": \"\u00e9 the<|endoftext|>\"}\n") << back.error;
  const Outcome bare = Run({"detokenize", "tiny", "--skip-special-tokens"}, there.out);
  EXPECT_EQ(bare.out, "{\"text\": \"\u00e9 the\"}\n") << bare.error;
  EXPECT_EQ(Run({"detokenize", "tiny"}, "{\"ids\": []}\n").out, "{\"text\": \"\"}\n");
  // The first byte of two is no text.
  const std::string half = absl::StrCat("{\"ids\": [", json["ids"][0].get<int>(), "]}\n");
  EXPECT_EQ(Run({"detokenize", "tiny"}, half).out, "{\"text\": \"\ufffd\"}\n");
}

TEST_F(ModelctlTest, DetokenizeRefusesBadLines) {
  const auto refuse = [&](const std::string& line, const std::string& says) {
    ExpectRefused(Run({"detokenize", "tiny"}, line), 1, says);
  };
  refuse("{\"ids\": [1, -2]}\n", "standard input:1: `ids` must be a list of token ids, not of -2");
  refuse("{\"ids\": [1, 2.5]}\n", "not of 2.5");
  refuse("{\"ids\": [2147483648]}\n", "not of 2147483648");
  refuse("\n{\"ids\": 7}\n", "standard input:2: `ids`");
  refuse("{\"text\": \"a\"}\n", "`ids`");
  refuse("{\"ids\": [99999]}\n", "standard input:1: token id 99999 is not in the vocabulary");
}

// Of the tiny tokenizer, with a template, against the Python package.
TEST_F(ModelctlTest, IdsAndOffsetsEqualThePythonPackage) {
  const std::string python = std::string(SH_TEST_DEPS_DIR) + "/venv/bin/python";
  if (!PathExists(python)) GTEST_SKIP() << "no " << python << " (`make deps` makes it)";
  std::string json = TinyTokenizerJson();
  ASSERT_GT(absl::StrReplaceAll({{"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFKC\"}"},
                                 {"\"post_processor\": null",
                                  R"("post_processor": {"type": "TemplateProcessing", "single": [
                     {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
                     {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}],
                     "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B",
                     "type_id": 1}}], "special_tokens": {
                     "<|im_start|>": {"id": "<|im_start|>", "ids": [297],
                     "tokens": ["<|im_start|>"]}, "<|endoftext|>": {"id": "<|endoftext|>",
                     "ids": [296], "tokens": ["<|endoftext|>"]}}})"}},
                                &json),
            1);
  SH_CHECK_OK(MakeFolders(Path("only")));
  SH_CHECK_OK(WriteFileAtomically(Path("only/tokenizer.json"), json));
  std::string input;
  for (const char* text :
       {"", "the cat sat", "caf\u00e9 \u65e5\u672c\u8a9e 12", "\ufb01x <|endoftext|>the",
        "e\u0301e\u0301", "<|im_start|><|im_start|>", "\U0001f469\u200d\U0001f680 \u2126 \u3392",
        "a\n\tb\r\n  c", "\uac01\u1100\u1161\u11a8"}) {
    absl::StrAppend(&input, Json{{"text", text}}.dump(), "\n");
  }
  Write("texts.jsonl", input);
  for (const bool special : {false, true}) {
    const std::string command = absl::StrCat(
        "'", python, "' '", SH_TEST_SOURCE_DIR, "/tests/model/tokenize_reference.py' '",
        Path("only/tokenizer.json"), "' ", special ? "1" : "0", " <'", Path("texts.jsonl"), "' >'",
        Path("expected.jsonl"), "'");
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
    std::vector<std::string> arguments = {"tokenize", "only", "--offsets"};
    if (special) arguments.push_back("--add-special-tokens");
    const Outcome outcome = Run(arguments, input);
    ASSERT_EQ(outcome.code, 0) << outcome.error;
    EXPECT_EQ(outcome.out, *ReadFile(Path("expected.jsonl")));
  }
}

TEST_F(ModelctlTest, GenerateIsAFunctionOfItsSeed) {
  const auto generate = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"generate", "tiny", "--prompt",     "the cat",
                                          "--dtype",  "fp32", "--max-tokens", "20"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = Run(arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.error;
    EXPECT_EQ(outcome.out.substr(0, 7), "the cat");
    return outcome.out;
  };
  EXPECT_EQ(generate({}), generate({"--seed", "5"}));  // greedy draws nothing
  const std::vector<std::string> warm = {"--temperature", "2", "--top-k", "50", "--seed", "5"};
  EXPECT_EQ(generate(warm), generate(warm));
  EXPECT_NE(generate(warm), generate({"--temperature", "2", "--top-k", "50", "--seed", "6"}));
}

TEST_F(ModelctlTest, GenerateRefusesWhatItCannotDo) {
  ExpectRefused(Run({"generate", "tiny", "--prompt", ""}), 1, "the prompt is empty");
  ExpectRefused(Run({"generate", "tiny", "--prompt", "a", "--max-tokens", "600"}), 1,
                "takes 1 to 512");
  ExpectRefused(Run({"generate", "tiny", "--prompt", "a", "--top-p", "0"}), 1, "top-p");
  ExpectRefused(Run({"generate", "tiny", "--prompt", "a", "--stop", "the cat sat"}), 1,
                "it must be one");
  EXPECT_EQ(Run({"generate", "tiny", "--prompt", "a", "--stop", "b", "--stop", "c"}).code, 0);
}

// What GenerateTokens draws for these options of `modelctl generate MODEL --prompt PROMPT`.
std::vector<int32_t> Drawn(const ModelFiles& files, const std::string& prompt, uint64_t seed) {
  const auto weights = *LoadDecoder(files, at::kFloat);
  GenerateOptions options{.tokens_max = 120, .vocabulary = files.tokenizer->size()};
  options.stop_ids = {static_cast<int32_t>(*files.config.eos_id)};
  options.sampling.temperature = 5;
  options.seed = seed;
  return *GenerateTokens(weights, *files.tokenizer->Encode(prompt), options);
}

// Random weights draw bytes that are no characters, and special tokens.
TEST_F(ModelctlTest, GeneratePrintsWhatDecodeSaysWithoutSpecialTokens) {
  const auto files = OpenModelFiles(Path("tiny"));
  ASSERT_TRUE(files.ok()) << files.status();
  int specials = 0, broken = 0;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const std::string prompt = seed % 2 == 0 ? "the caf\u00e9" : "end\ufffd";
    const Outcome outcome =
        Run({"generate", "tiny", "--prompt", prompt, "--dtype", "fp32", "--max-tokens", "120",
             "--temperature", "5", "--seed", absl::StrCat(seed)});
    ASSERT_EQ(outcome.code, 0) << outcome.error;
    std::vector<int32_t> ids = *files->tokenizer->Encode(prompt);
    for (const int32_t id : Drawn(*files, prompt, seed)) {
      specials += id == kTinyEos + 1 ? 1 : 0;
      ids.push_back(id);
    }
    EXPECT_EQ(outcome.out, *files->tokenizer->Decode(ids, /*skip_special=*/true) + "\n");
    EXPECT_TRUE(IsUtf8(outcome.out));
    EXPECT_THAT(outcome.out, Not(HasSubstr("<|im_start|>")));
    broken += absl::StrContains(outcome.out, "\ufffd") ? 1 : 0;
  }
  EXPECT_GT(specials, 0);
  EXPECT_GT(broken, 0);
}

// A tokenizer of the kind of Llama 2: pieces, and a token for each byte.
std::string PiecesJson() {
  OrderedJson vocabulary = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary[absl::StrFormat("<0x%02X>", byte)] = byte + 3;
  }
  int next = 259;
  for (const char* piece : {"\u2581", "a", "b", "\u2581a", "\u00e9"}) vocabulary[piece] = next++;
  OrderedJson added = OrderedJson::array();
  for (const char* token : {"<unk>", "<s>", "</s>"}) {
    added.push_back({{"id", vocabulary[token]}, {"content", token}, {"special", true}});
  }
  const OrderedJson prepend = {{"type", "Prepend"}, {"prepend", "\u2581"}};
  const auto replace = [](const char* from, const char* to) -> OrderedJson {
    return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
  };
  const OrderedJson root = {
      {"added_tokens", added},
      {"normalizer",
       {{"type", "Sequence"},
        {"normalizers", OrderedJson::array({prepend, replace(" ", "\u2581")})}}},
      {"decoder",
       {{"type", "Sequence"},
        {"decoders",
         OrderedJson::array({replace("\u2581", " "),
                             {{"type", "ByteFallback"}},
                             {{"type", "Fuse"}},
                             {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}})}}},
      {"model",
       {{"type", "BPE"},
        {"unk_token", "<unk>"},
        {"fuse_unk", true},
        {"byte_fallback", true},
        {"vocab", vocabulary},
        {"merges", OrderedJson::array({OrderedJson::array({"\u2581", "a"})})}}}};
  return root.dump();
}

// Byte tokens can break characters that are on the screen already: generation goes on.
TEST_F(ModelctlTest, GenerateWithByteTokensPrintsWholeCharacters) {
  SH_CHECK_OK(WriteFileAtomically(Path("tiny/tokenizer.json"), PiecesJson()));
  SH_CHECK_OK(WriteFileAtomically(Path("tiny/tokenizer_config.json"), "{}"));
  int differs = 0;
  const auto files = OpenModelFiles(Path("tiny"));
  ASSERT_TRUE(files.ok()) << files.status();
  for (uint64_t seed = 0; seed < 3; ++seed) {
    const std::string prompt = "a \u00e9 b";
    const Outcome outcome =
        Run({"generate", "tiny", "--prompt", prompt, "--dtype", "fp32", "--max-tokens", "120",
             "--temperature", "5", "--seed", absl::StrCat(seed)});
    ASSERT_EQ(outcome.code, 0) << outcome.error;
    EXPECT_THAT(outcome.out, StartsWith(prompt));
    EXPECT_TRUE(IsUtf8(outcome.out));
    EXPECT_THAT(outcome.out, Not(HasSubstr("<0x")));
    std::vector<int32_t> ids = *files->tokenizer->Encode(prompt);
    const auto drawn = Drawn(*files, prompt, seed);
    ids.insert(ids.end(), drawn.begin(), drawn.end());
    differs += outcome.out != *files->tokenizer->Decode(ids, /*skip_special=*/true) + "\n" ? 1 : 0;
  }
  EXPECT_GT(differs, 0);  // so that it did happen
}

}  // namespace
}  // namespace stillhouse
