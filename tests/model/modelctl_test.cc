// The program itself: what it prints, what it refuses and with which exit code.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "ATen/ATen.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/model_files.h"
#include "formats/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/decoder.h"
#include "tests/formats/tiny_model.h"
#include "tests/model/modelctl_fixture.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

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

TEST_F(ModelctlTest, ConvertRefusesBadOptionsInOneLine) {
  ExpectRefused(Run({"convert", "tiny", "--out", "x", "--max-shard-size", "0"}), 2,
                "--max-shard-size");
  EXPECT_FALSE(PathExists(Path("x")));
  // Into the folder that is read, by whatever name.
  ASSERT_EQ(::symlink("tiny", Path("link").c_str()), 0);
  for (const auto& [model, out] : {std::pair{"tiny", "tiny/x"},
                                   {"tiny", "tiny/../tiny/sub/x.gguf"},
                                   {"tiny", "link/x"},
                                   {"link", "tiny/x"}}) {
    ExpectRefused(Run({"convert", model, "--out", out}), 1, "lies in the model's own folder");
  }
  ExpectRefused(Run({"convert", "tiny", "--out", "tiny"}), 4, "is there");
  ExpectRefused(Run({"convert", "tiny", "--out", "tiny/"}), 4, "is there");
  ExpectRefused(Run({"convert", "tiny", "--out", ""}), 1, "--out is empty");
  EXPECT_EQ(ListFolder(Path("tiny"))->size(), 4u);
  EXPECT_EQ(Run({"convert", "tiny.gguf", "--out", "tiny-as-f32"}).code, 0);
  EXPECT_EQ(Run({"convert", "tiny", "--out", "tiny-2/x.gguf"}).code, 0);
}

TEST_F(ModelctlTest, ConvertRefusesNumbersThatTheDtypeLacks) {
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  const auto spoil = [&](float value) {
    const auto files = *OpenModelFiles(Path("tiny"));
    auto tensors = *TensorsToWrite(files.weights, "F32");
    for (TensorToWrite& tensor : tensors) {
      if (tensor.name != name) continue;
      tensor.read_rows = nullptr;
      tensor.read = [&](absl::Span<float> out) {
        std::fill(out.begin(), out.end(), 0.5f);
        out[3] = value;
        return absl::OkStatus();
      };
    }
    SH_CHECK_OK(RemoveTree(Path("spoilt")));
    SH_CHECK_OK(WriteHuggingFaceFolder(Path("spoilt"), files.config, *files.tokenizer, tensors));
  };
  spoil(1e6f);
  for (const char* out : {"out", "out.gguf"}) {
    const Outcome outcome = Run({"convert", "spoilt", "--out", out, "--dtype", "fp16"});
    ExpectRefused(outcome, 1, absl::StrCat(name, ": 1 value is too large for F16"));
    EXPECT_FALSE(PathExists(Path(out)));
  }
  spoil(NAN);
  for (const auto& [out, dtype] : {std::pair{"out", "fp16"}, {"out.gguf", "bf16"}}) {
    ExpectRefused(Run({"convert", "spoilt", "--out", out, "--dtype", dtype}), 1,
                  absl::StrCat(name, ": 1 value is NaN or infinite"));
  }
  ExpectRefused(Run({"convert", "spoilt", "--out", "out.gguf", "--dtype", "q8_0"}), 1, name);
  EXPECT_EQ(Run({"convert", "spoilt", "--out", "kept", "--dtype", "stored"}).code, 0);
  EXPECT_EQ(Run({"diff", "spoilt", "kept"}).code, 0);
}

TEST_F(ModelctlTest, EveryBadValueIsOneLine) {
  const std::vector<std::vector<std::string>> lines = {
      {},
      {"frobnicate"},
      {"inspect"},
      {"inspect", "tiny", "-o", "yaml"},
      {"tokenize", "tiny", "--offset"},
      {"logits", "tiny", "--ids", "x", "--out", "y", "--dtype", "int8"},
      {"logits", "tiny", "--ids", "x", "--out", "y", "--threads", "0"},
      {"generate", "tiny", "--prompt", "a", "--max-tokens", "99999999999999999999"},
      {"generate", "tiny", "--prompt", "a", "--seed", "-1"},
      {"generate", "tiny", "--prompt", "a", "--temperature", "warm"},
      {"generate", "tiny", "--prompt", "a", "--top-k", "1.5"},
      {"convert", "tiny", "--out", "x", "--dtype", "a\nb"},
      {"convert", "tiny", "--out", "x", "--max-shard-size", "5GB"},
      {"diff", "tiny", "tiny", "--tolerance", ""},
  };
  for (const std::vector<std::string>& line : lines) {
    SCOPED_TRACE(absl::StrJoin(line, " "));
    ExpectRefused(Run(line), 2, "modelctl: ");
  }
  const std::vector<std::vector<std::string>> values = {
      {"--temperature", "nan"}, {"--top-k", "-1"}, {"--top-p", "1.5"}, {"--stop", ""}};
  for (std::vector<std::string> line : values) {
    SCOPED_TRACE(absl::StrJoin(line, " "));
    line.insert(line.begin(), {"generate", "tiny", "--prompt", "a"});
    ExpectRefused(Run(line), 1, "modelctl: ");
  }
  ExpectRefused(Run({"diff", "tiny", "tiny", "--tolerance", "nan"}), 1, "--tolerance");
  ExpectRefused(Run({"generate", "tiny", "--prompt", "\xff"}), 1, "not UTF-8");
}

TEST_F(ModelctlTest, DiffOfDamagedModelsIsOneLine) {
  const std::string gguf = *ReadFile(Path("tiny.gguf"));
  const std::string weights = *ReadFile(Path("tiny/model.safetensors"));
  const auto damage = [&](const std::string& name, const std::string& bytes,
                          const std::string& file = "model.safetensors") {
    SH_CHECK_OK(WriteTinyModel(Path(name)));
    Write(absl::StrCat(name, "/", file), bytes);
    return name;
  };
  Write("cut.gguf", gguf.substr(0, gguf.size() - 5000));
  Write("empty.gguf", "");
  std::string header = weights;
  header[40] = '\x01';
  const std::string damaged[] = {"cut.gguf",
                                 "empty.gguf",
                                 damage("short", weights.substr(0, weights.size() - 7)),
                                 damage("header", header),
                                 damage("tail", weights + "x"),
                                 damage("config", "{\"hidden_size\": 64", "config.json"),
                                 damage("tokens", "{}", "tokenizer.json")};
  for (const std::string& name : damaged) {
    const bool first = name.size() % 2 == 0;  // on either side
    const Outcome outcome = Run({"diff", first ? name : "tiny", first ? "tiny" : name});
    EXPECT_NE(outcome.code, 4) << name;  // not said to be another model
    EXPECT_NE(outcome.code, 0) << name;
    ExpectRefused(outcome, outcome.code, name);
  }
}

TEST_F(ModelctlTest, DiffOfArchitecturesSaysWhatDiffers) {
  TinyModelOptions options;
  options.architecture = "qwen2";
  SH_CHECK_OK(WriteTinyModel(Path("qwen2"), options));
  options.architecture = "qwen3";
  SH_CHECK_OK(WriteTinyGguf(Path("qwen3.gguf"), options));
  for (const auto& [a, b, tensor] : {std::tuple{"tiny", "qwen2", "self_attn.q_proj.bias"},
                                     {"qwen3.gguf", "tiny", "self_attn.q_norm.weight"},
                                     {"qwen2", "qwen3.gguf", "self_attn.k_norm.weight"}}) {
    const Outcome outcome = Run({"diff", a, b, "--tolerance", "1e9"});
    EXPECT_EQ(outcome.code, 4) << outcome.error;
    EXPECT_THAT(outcome.out, HasSubstr("model_type: "));
    EXPECT_THAT(outcome.out, HasSubstr(tensor));
    EXPECT_THAT(outcome.out, HasSubstr("the models differ"));
  }
  const Outcome json = Run({"diff", "tiny", "qwen2", "--tolerance", "1e9", "-o", "json"});
  EXPECT_EQ(json.code, 4);
  EXPECT_EQ((*ParseJson(json.out, "output"))["same"], false);
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
  EXPECT_EQ(Run({"--help"}).code, 0);
}

}  // namespace
}  // namespace stillhouse
