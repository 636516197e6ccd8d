// The program itself: what it prints, what it refuses and with which exit code.
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "ATen/ATen.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/model_files.h"
#include "formats/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/decoder.h"
#include "tests/formats/tiny_model.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

struct Outcome {
  int code = -1;
  std::string out, error;
};

class ModelctlTest : public ::testing::Test {
 protected:
  ModelctlTest() : folder_(*TempFolder::Create("modelctl")) {
    SH_CHECK_OK(WriteTinyModel(Path("tiny")));
    SH_CHECK_OK(WriteTinyGguf(Path("tiny.gguf"), {}, "Q8_0"));
  }
  std::string Path(absl::string_view name) const { return JoinPath(folder_.path(), name); }
  void Write(absl::string_view name, absl::string_view text) {
    SH_CHECK_OK(WriteFileAtomically(Path(name), text));
  }
  // Arguments are quoted; standard input is the text.
  Outcome Run(const std::vector<std::string>& arguments, absl::string_view input = "") {
    Write("input", input);
    std::string command = absl::StrCat("cd '", folder_.path(), "' && XDG_CACHE_HOME='",
                                       folder_.path(), "' '" SH_TEST_BUILD_DIR "/bin/modelctl'");
    for (const std::string& argument : arguments) absl::StrAppend(&command, " '", argument, "'");
    absl::StrAppend(&command, " <input >output 2>error");
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, *ReadFile(Path("output")),
            *ReadFile(Path("error"))};
  }
  // One line that holds `what`, and this exit code.
  void ExpectRefused(const Outcome& outcome, int code, const std::string& what) {
    EXPECT_EQ(outcome.code, code) << outcome.error;
    EXPECT_THAT(outcome.error, HasSubstr(what));
    EXPECT_EQ(std::count(outcome.error.begin(), outcome.error.end(), '\n'), 1) << outcome.error;
    EXPECT_EQ(outcome.out, "");
  }

  TempFolder folder_;
};

TEST_F(ModelctlTest, InspectSaysWhatTheModelIs) {
  const Outcome folder = Run({"inspect", "tiny", "-o", "json", "--tensors"});
  ASSERT_EQ(folder.code, 0) << folder.error;
  const Json json = *ParseJson(folder.out, "output");
  EXPECT_EQ(json["layers"], 2);
  EXPECT_EQ(json["files"], 1);
  EXPECT_EQ(json["file_bytes"], ReadFile(Path("tiny/model.safetensors"))->size());
  EXPECT_EQ(json["hidden_size"], 64);
  EXPECT_EQ(json["tokenizer_size"], kTinyTokens);
  EXPECT_EQ(json["parameters"], TinyConfig({}).ParameterCount());
  EXPECT_EQ(json["tensors"].size(), TinyConfig({}).Parameters().size());
  const Outcome gguf = Run({"inspect", "tiny.gguf"});
  ASSERT_EQ(gguf.code, 0) << gguf.error;
  EXPECT_THAT(gguf.out, HasSubstr("gguf"));
  EXPECT_THAT(gguf.out, HasSubstr("Q8_0"));
  EXPECT_THAT(gguf.out, HasSubstr(json["tokenizer_fingerprint"].get<std::string>()));
}

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
  ExpectRefused(Run({"tokenize", "tiny"}, "not json\n"), 1, "standard input:1:2: ");
}

TEST_F(ModelctlTest, LogitsAreThoseOfTheDecoder) {
  Write("ids.jsonl", "{\"ids\": [1, 2, 3, 297]}\n{\"ids\": [7]}\n");
  const auto files = OpenModelFiles(Path("tiny"));
  for (const auto& [flag, dtype] : {std::pair{"fp32", at::kFloat}, {"bf16", at::kBFloat16}}) {
    const std::string out = absl::StrCat(flag, ".safetensors");
    const Outcome outcome =
        Run({"logits", "tiny", "--ids", "ids.jsonl", "--out", out, "--dtype", flag});
    ASSERT_EQ(outcome.code, 0) << outcome.error;
    const auto file = *SafetensorsFile::Open(Path(out));
    ASSERT_EQ(file->tensors().size(), 2u);
    const SafetensorsTensor& tensor = *file->Find("logits.0");
    EXPECT_EQ(tensor.dtype, "F32");
    EXPECT_THAT(tensor.shape, ::testing::ElementsAre(4, 320));
    at::Tensor got = at::empty(tensor.shape, at::kFloat);
    ASSERT_TRUE(file->ReadF32(tensor, absl::MakeSpan(got.mutable_data_ptr<float>(), 4 * 320)).ok());
    const auto weights = *LoadDecoder(*files, dtype);
    const at::Tensor ids = at::tensor(std::vector<int64_t>{1, 2, 3, 297});
    const at::Tensor want = at::matmul(*ForwardHidden(weights, {ids, {4}}), weights.head.t());
    EXPECT_LT((got - want.to(at::kFloat)).abs().max().item<double>(),
              dtype == at::kFloat ? 1e-5 : 0.05);
  }
}

TEST_F(ModelctlTest, LogitsRefusesBadIdsAndLeavesNoFile) {
  const auto logits = [&](absl::string_view lines) {
    Write("bad.jsonl", lines);
    return Run({"logits", "tiny", "--ids", "bad.jsonl", "--out", "bad.safetensors"});
  };
  ExpectRefused(logits("{\"ids\": [1, 320]}\n"), 1, "bad.jsonl:1: 320 is no token id below 320");
  ExpectRefused(logits("{\"ids\": [1]}\n{\"ids\": [-1]}\n"), 1, "bad.jsonl:2: -1");
  ExpectRefused(logits("{\"ids\": [1.5]}\n"), 1, "1.5");
  ExpectRefused(logits("{\"ids\": []}\n"), 1, "a list of 1 to 512");
  ExpectRefused(logits(""), 1, "no line");
  EXPECT_FALSE(PathExists(Path("bad.safetensors")));
  ExpectRefused(Run({"logits", "tiny", "--ids", "absent", "--out", "x"}), 3, "absent");
  Write("there.safetensors", "x");
  ExpectRefused(Run({"logits", "tiny", "--ids", "absent", "--out", "there.safetensors"}), 4,
                "is there");
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

TEST_F(ModelctlTest, ConvertWritesAFolderThatIsTheSameModel) {
  const Outcome outcome = Run({"convert", "tiny.gguf", "--out", "converted"});
  ASSERT_EQ(outcome.code, 0) << outcome.error;
  const auto from = OpenModelFiles(Path("tiny.gguf")), to = OpenModelFiles(Path("converted"));
  ASSERT_TRUE(to.ok()) << to.status();
  EXPECT_EQ(to->format, "huggingface");
  EXPECT_EQ(to->tokenizer->Fingerprint(), from->tokenizer->Fingerprint());
  for (const ModelConfig::Parameter& parameter : from->config.Parameters()) {
    int64_t count = 1;
    for (const int64_t size : parameter.shape) count *= size;
    std::vector<float> a(static_cast<size_t>(count)), b(a.size());
    ASSERT_TRUE(from->weights->ReadF32(parameter.name, absl::MakeSpan(a)).ok());
    ASSERT_TRUE(to->weights->ReadF32(parameter.name, absl::MakeSpan(b)).ok());
    EXPECT_EQ(a, b) << parameter.name;
  }
  ExpectRefused(Run({"convert", "tiny.gguf", "--out", "converted"}), 4, "is there");
}

TEST_F(ModelctlTest, ConvertWritesGgufFilesAndBack) {
  for (const auto& [dtype, tolerance] :
       {std::pair{"fp32", "0"}, {"fp16", "1e-3"}, {"bf16", "1e-2"}, {"q8_0", "1e-2"}}) {
    const std::string out = absl::StrCat(dtype, ".gguf"), back = absl::StrCat(dtype, "-back");
    Outcome outcome = Run({"convert", "tiny", "--out", out, "--dtype", dtype});
    ASSERT_EQ(outcome.code, 0) << outcome.error;
    outcome = Run({"diff", "tiny", out, "--tolerance", tolerance});
    EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.error;
    ASSERT_EQ(Run({"convert", out, "--out", back, "--dtype", "fp32"}).code, 0);
    EXPECT_EQ(Run({"diff", out, back}).code, 0);
  }
  ExpectRefused(Run({"convert", "tiny", "--out", "fp32.gguf"}), 4, "is there");
  ExpectRefused(Run({"convert", "tiny", "--out", "q8", "--dtype", "q8_0"}), 1,
                "give --out NAME.gguf");
  ExpectRefused(Run({"convert", "tiny.gguf", "--out", "q8", "--dtype", "stored"}), 1,
                "is stored as Q8_0");
}

TEST_F(ModelctlTest, ConvertShardsAFolder) {
  const Outcome outcome = Run({"convert", "tiny", "--out", "shards", "--max-shard-size", "100000"});
  ASSERT_EQ(outcome.code, 0) << outcome.error;
  EXPECT_TRUE(PathExists(Path("shards/model.safetensors.index.json")));
  EXPECT_EQ(Run({"diff", "tiny", "shards"}).code, 0);
}

TEST_F(ModelctlTest, DiffMeasuresAndItsExitCodeTells) {
  Outcome outcome = Run({"diff", "tiny", "tiny.gguf"});
  EXPECT_EQ(outcome.code, 4) << outcome.error;
  EXPECT_EQ(outcome.error, "");
  EXPECT_THAT(outcome.out, HasSubstr("model.layers.1.mlp.down_proj.weight"));
  EXPECT_THAT(outcome.out, HasSubstr("the models differ"));
  EXPECT_THAT(outcome.out, ::testing::Not(HasSubstr("model.norm.weight")));  // F32 in both
  outcome = Run({"diff", "tiny", "tiny.gguf", "-o", "json", "--tolerance", "0.01"});
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  const Json json = *ParseJson(outcome.out, "output");
  EXPECT_EQ(json["same"], true);
  EXPECT_EQ(json["architecture"], Json::array());
  EXPECT_EQ(json["tokenizer"], "");
  EXPECT_EQ(json["tensors"].size(), TinyConfig({}).Parameters().size());
  double max = 0;
  for (const Json& tensor : json["tensors"]) max = std::max(max, tensor["max"].get<double>());
  EXPECT_EQ(json["overall"]["max"], max);
  EXPECT_GT(max, 0);
  EXPECT_GT(json["overall"]["rms"], 0);

  TinyModelOptions other;
  other.layers = 1;
  SH_CHECK_OK(WriteTinyModel(Path("shallow"), other));
  outcome = Run({"diff", "tiny", "shallow"});
  EXPECT_EQ(outcome.code, 4);
  EXPECT_THAT(outcome.out, HasSubstr("num_hidden_layers: 2 in A, 1 in B"));
  EXPECT_THAT(outcome.out, HasSubstr("only in A"));
  ExpectRefused(Run({"diff", "tiny", "absent"}), 3, "absent");
  ExpectRefused(Run({"diff", "tiny", "tiny", "--tolerance", "-1"}), 1, "--tolerance");
  EXPECT_EQ(Run({"diff", "tiny"}).code, 2);
}

TEST_F(ModelctlTest, HelpExplainsACommand) {
  const Outcome all = Run({"help"}), diff = Run({"help", "diff"});
  EXPECT_EQ(all.code, 0) << all.error;
  EXPECT_EQ(all.out, Run({"--help"}).out);
  EXPECT_THAT(all.out, HasSubstr("Exit codes: 0 done"));
  EXPECT_THAT(all.out, HasSubstr("inspect"));
  EXPECT_EQ(diff.code, 0) << diff.error;
  EXPECT_THAT(diff.out, HasSubstr("--tolerance"));
  EXPECT_THAT(diff.out, HasSubstr("modelctl diff"));
  ExpectRefused(Run({"help", "frobnicate"}), 3, "no command 'frobnicate'");
  EXPECT_THAT(Run({"--version"}).out, HasSubstr("modelctl "));
}

TEST_F(ModelctlTest, SaysWhatIsWrongInOneLine) {
  ExpectRefused(Run({"inspect", "HuggingFaceTB/SmolLM2-135M"}), 3, "HuggingFaceTB/SmolLM2-135M");
  Write("short.gguf", ReadFile(Path("tiny.gguf"))->substr(0, 5000));
  const Outcome truncated = Run({"inspect", "short.gguf"});
  EXPECT_NE(truncated.code, 0);
  ExpectRefused(truncated, truncated.code, "short.gguf");
  EXPECT_EQ(Run({"inspect"}).code, 2);
  EXPECT_EQ(Run({"frobnicate"}).code, 2);
  EXPECT_EQ(Run({"logits", "tiny", "--ids", "x", "--out", "y", "--dtype", "int8"}).code, 2);
  EXPECT_EQ(Run({"--help"}).code, 0);
}

}  // namespace
}  // namespace stillhouse
