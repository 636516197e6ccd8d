// Writing models: GGUF files and sharded folders, read back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/gguf.h"
#include "formats/gguf_writer.h"
#include "formats/json.h"
#include "formats/model_diff.h"
#include "formats/model_files.h"
#include "formats/safetensors.h"
#include "tests/common/small_disk.h"
#include "tests/formats/model_folder_test.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class WriteModelTest : public ModelFolderTest {
 protected:
  absl::Status WriteFolder(const std::string& name, const ModelFiles& model,
                           const std::string& dtype, const WriteFolderOptions& options = {}) {
    const auto tensors = TensorsToWrite(model.weights, dtype);
    if (!tensors.ok()) return tensors.status();
    return WriteHuggingFaceFolder(Path(name), model.config, *model.tokenizer, *tensors, options);
  }
  // The stored bytes in Hugging Face's order of rows, of every tensor.
  static void ExpectSameBytes(const ModelFiles& a, const ModelFiles& b) {
    ASSERT_EQ(a.weights->tensors().size(), b.weights->tensors().size());
    for (const TensorInfo& info : a.weights->tensors()) {
      EXPECT_EQ(info.stored_dtype, b.weights->Find(info.name)->stored_dtype) << info.name;
      std::string bytes_a(a.weights->RawBytes(info.name)->size(), 'a');
      std::string bytes_b(b.weights->RawBytes(info.name)->size(), 'b');
      ASSERT_TRUE(a.weights->CopyRows(info.name, 0, absl::MakeSpan(bytes_a)).ok());
      ASSERT_TRUE(b.weights->CopyRows(info.name, 0, absl::MakeSpan(bytes_b)).ok());
      EXPECT_TRUE(bytes_a == bytes_b) << info.name;
    }
  }
  static void ExpectSame(const ModelFiles& a, const ModelFiles& b, double tolerance) {
    const auto difference = DiffModels(a, b);
    ASSERT_TRUE(difference.ok()) << difference.status();
    for (const FieldDifference& field : difference->architecture) {
      ADD_FAILURE() << field.field << ": " << field.a << ", " << field.b;
    }
    EXPECT_EQ(difference->tokenizer, "");
    EXPECT_TRUE(difference->Same(tolerance)) << difference->Overall().max;
  }
};

TinyModelOptions Of(const std::string& architecture, RopeScaling rope = {}) {
  TinyModelOptions options;
  options.architecture = architecture;
  options.rope = rope;
  options.tie_embeddings = architecture == "qwen2";
  options.attention_bias = architecture == "llama";
  options.head_dim = architecture == "qwen3" ? 32 : 0;
  return options;
}

TEST_F(WriteModelTest, AGgufIsTheFoldersModelInEveryArchitectureAndType) {
  using Kind = RopeScaling::Kind;
  RopeScaling llama3{.kind = Kind::kLlama3, .factor = 8, .original_positions = 8192};
  llama3.low_freq_factor = 1;
  llama3.high_freq_factor = 4;
  RopeScaling yarn{.kind = Kind::kYarn, .factor = 4, .original_positions = 128};
  yarn.attention_factor = 1 + 0.1 * std::log(4.0);
  yarn.beta_fast = 24;
  const std::vector<TinyModelOptions> models = {Of("llama"),
                                                Of("llama", llama3),
                                                Of("qwen2", yarn),
                                                Of("qwen3"),
                                                Of("llama", {.kind = Kind::kLinear, .factor = 2.5}),
                                                Of("mistral")};
  int number = 0;
  for (const TinyModelOptions& options : models) {
    SCOPED_TRACE(absl::StrCat(options.architecture, " ", RopeKindName(options.rope.kind)));
    const std::string name = absl::StrCat("m", ++number);
    ModelFiles model = Tiny(name, options);
    for (const auto& [dtype, tolerance] : std::vector<std::pair<std::string, double>>{
             {"F32", 0}, {"F16", 1e-3}, {"BF16", 1e-2}, {"Q8_0", 1e-2}}) {
      SCOPED_TRACE(dtype);
      const std::string path = Path(absl::StrCat(name, dtype, ".gguf"));
      const absl::Status status = WriteGguf(path, model, dtype);
      ASSERT_TRUE(status.ok()) << status;
      const ModelFiles read = Open(path);
      EXPECT_EQ(read.weights->Find("model.layers.0.mlp.up_proj.weight")->stored_dtype, dtype);
      EXPECT_EQ(read.weights->Find("model.norm.weight")->stored_dtype, "F32");
      if (options.architecture == "mistral") {  // as llama.cpp writes it
        EXPECT_EQ(read.config.architecture, "llama");
        model.config.architecture = "llama";
      }
      ExpectSame(model, read, tolerance);
      EXPECT_EQ(read.tokenizer->Fingerprint(), model.tokenizer->Fingerprint());
    }
  }
}

TEST_F(WriteModelTest, WhatStaysInItsDtypeStaysByteForByte) {
  TinyModelOptions options = Of("llama");
  options.dtype = "bfloat16";
  const ModelFiles model = Tiny("bf16", options);
  ASSERT_TRUE(WriteGguf(Path("bf16.gguf"), model, "").ok());
  const ModelFiles gguf = Open(Path("bf16.gguf"));
  EXPECT_EQ(gguf.weights->tensors().front().stored_dtype, "BF16");
  ASSERT_TRUE(WriteFolder("back", gguf, "BF16").ok());
  ExpectSameBytes(model, Open(Path("back")));
  ASSERT_TRUE(WriteFolder("stored", model, "").ok());
  ExpectSameBytes(model, Open(Path("stored")));

  // Quantised, and permuted by a converter other than ours.
  ASSERT_TRUE(WriteTinyGguf(Path("q4.gguf"), Of("llama"), "Q4_1").ok());
  const ModelFiles q4 = Open(Path("q4.gguf"));
  ASSERT_TRUE(WriteGguf(Path("q4-again.gguf"), q4, "").ok());
  const ModelFiles again = Open(Path("q4-again.gguf"));
  ExpectSameBytes(q4, again);
  EXPECT_EQ(*TeacherFingerprint(again, ""), *TeacherFingerprint(q4, ""));
  EXPECT_THAT(std::string(WriteFolder("q4", q4, "").message()), HasSubstr("is stored as Q4_1"));
}

TEST_F(WriteModelTest, RefusesByNameWhatGgufCannotHold) {
  const auto refused = [&](const std::string& name, const TinyModelOptions& options,
                           const std::string& dtype, const std::string& says) {
    const absl::Status status = WriteGguf(Path(name + ".gguf"), Tiny(name, options), dtype);
    EXPECT_FALSE(status.ok()) << says;
    EXPECT_THAT(std::string(status.message()), HasSubstr(says));
    EXPECT_THAT(std::string(status.message()), testing::Not(HasSubstr("\n")));
    EXPECT_FALSE(PathExists(Path(name + ".gguf")));
  };
  TinyModelOptions window = Of("mistral");
  window.sliding_window = 16;
  refused("window", window, "F32", "a sliding window");
  refused("dynamic", Of("llama", {.kind = RopeScaling::Kind::kDynamic, .factor = 2}), "F32",
          "dynamic RoPE");
  RopeScaling yarn{.kind = RopeScaling::Kind::kYarn, .factor = 4, .original_positions = 128};
  yarn.attention_factor = 0.5;
  refused("yarn", Of("llama", yarn), "F32", "attention_factor of its own");
  RopeScaling llama3{.kind = RopeScaling::Kind::kLlama3, .factor = 8, .original_positions = 64};
  llama3.low_freq_factor = 1;
  llama3.high_freq_factor = 4;
  refused("llama3", Of("llama", llama3), "F32", "other factors than those of Llama 3");
  refused("qwen-llama3", Of("qwen2", llama3), "F32", "in another architecture");
  TinyModelOptions narrow = Of("llama");
  narrow.hidden = 48;
  refused("narrow", narrow, "Q8_0", "rows of 48 values; Q8_0 stores blocks of 32");
  ASSERT_TRUE(WriteFileAtomically(Path("there.gguf"), "x").ok());
  EXPECT_EQ(WriteGguf(Path("there.gguf"), Tiny("t"), "F32").code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(*ReadFile(Path("there.gguf")), "x");
  // Nothing half-written is left.
  const std::vector<std::string> left = *ListFolder(folder_.path());
  for (const std::string& name : left) {
    EXPECT_THAT(name, testing::Not(HasSubstr(".tmp")));
  }
}

TEST_F(WriteModelTest, RefusesTokenizersThatGgufCannotSay) {
  const std::string plain = TinyTokenizerJson();
  const std::vector<std::pair<std::vector<std::pair<std::string, std::string>>, std::string>>
      cases = {
          {{{"\"lstrip\": false", "\"lstrip\": true"}}, "added token"},
          {{{"\"individual_digits\": true", "\"individual_digits\": false"}}, "pre-tokenizer"},
          {{{"\"ignore_merges\": false", "\"ignore_merges\": true"}}, "pre-tokenizer"},
          {{{"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFKC\"}"}}, "normalizer"},
      };
  int number = 0;
  for (const auto& [changes, says] : cases) {
    const std::string name = absl::StrCat("t", ++number);
    ASSERT_TRUE(WriteTinyModel(Path(name)).ok());
    std::string json = plain;
    for (const auto& change : changes) ASSERT_GT(absl::StrReplaceAll({change}, &json), 0);
    ASSERT_TRUE(WriteFileAtomically(Path(name + "/tokenizer.json"), json).ok());
    const absl::Status status = WriteGguf(Path(name + ".gguf"), Open(Path(name)), "F32");
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("GGUF cannot hold this tokenizer"));
    EXPECT_THAT(std::string(status.message()), HasSubstr(says));
  }
}

// A tokenizer as those of Llama 2, small: pieces with U+2581 for spaces, byte tokens.
Json PieceTokenizer() {
  Json vocabulary = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  const auto add = [&](const std::string& token) { vocabulary[token] = vocabulary.size(); };
  for (int byte = 0; byte < 256; ++byte) add(absl::StrFormat("<0x%02X>", byte));
  const std::string space = "\xe2\x96\x81";
  const std::vector<std::pair<std::string, std::string>> merges = {
      {space, "t"},  {"h", "e"},          {space + "t", "he"}, {"a", "n"},
      {space, "an"}, {space + "an", "d"}, {space, "and"},      {"an", "d"}};
  for (const auto& [left, right] : merges) {
    if (!vocabulary.contains(left + right)) add(left + right);
  }
  for (const std::string& piece : {space, std::string("t"), std::string("h"), std::string("e"),
                                   std::string("a"), std::string("n"), std::string("d")}) {
    add(piece);
  }
  Json added = Json::array(), pairs = Json::array();
  for (const char* token : {"<unk>", "<s>", "</s>"}) {
    added.push_back({{"id", vocabulary[token]},
                     {"content", token},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  for (const auto& [left, right] : merges) pairs.push_back(Json::array({left, right}));
  const auto replace = [](const std::string& from, const std::string& to) {
    return Json{{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
  };
  const Json bos = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer",
           {{"type", "Sequence"},
            {"normalizers",
             Json::array({{{"type", "Prepend"}, {"prepend", space}}, replace(" ", space)})}}},
          {"pre_tokenizer", nullptr},
          {"post_processor",
           {{"type", "TemplateProcessing"},
            {"single", Json::array({bos, text})},
            {"pair", Json::array({bos, text, bos, text})},
            {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {1}}, {"tokens", {"<s>"}}}}}}}},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders",
             Json::array({replace(space, " "),
                          {{"type", "ByteFallback"}},
                          {{"type", "Fuse"}},
                          {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}})}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"ignore_merges", false},
            {"vocab", vocabulary},
            {"merges", pairs}}}};
}

TEST_F(WriteModelTest, TheKindLlamaGoesToGgufAndBack) {
  ASSERT_TRUE(WriteTinyModel(Path("m")).ok());
  ASSERT_TRUE(WriteFileAtomically(Path("m/tokenizer.json"), PieceTokenizer().dump()).ok());
  ASSERT_TRUE(WriteFileAtomically(Path("m/tokenizer_config.json"),
                                  R"({"bos_token": "<s>", "eos_token": "</s>"})")
                  .ok());
  Json config = *ReadJsonFile(Path("m/config.json"), 1 << 20);
  config["bos_token_id"] = 1;
  config["eos_token_id"] = 2;
  ASSERT_TRUE(WriteFileAtomically(Path("m/config.json"), config.dump()).ok());
  const ModelFiles model = Open(Path("m"));
  const absl::Status status = WriteGguf(Path("m.gguf"), model, "F32");
  ASSERT_TRUE(status.ok()) << status;
  const ModelFiles gguf = Open(Path("m.gguf"));
  EXPECT_EQ(*(*GgufFile::Open(Path("m.gguf")))->String("tokenizer.ggml.model"), "llama");
  ExpectSame(model, gguf, 0);
  ASSERT_TRUE(WriteFolder("back", gguf, "F32").ok());
  ASSERT_TRUE(WriteGguf(Path("again.gguf"), Open(Path("back")), "F32").ok());
  ExpectSame(model, Open(Path("again.gguf")), 0);
  for (const std::string text : {"the band and the hen", "  caf\xc3\xa9 </s> and", ""}) {
    const auto ids = *model.tokenizer->Encode(text);
    EXPECT_EQ(*gguf.tokenizer->Encode(text), ids);
    EXPECT_EQ(*gguf.tokenizer->Decode(ids, false), *model.tokenizer->Decode(ids, false));
  }
  // Merges whose order follows from no scores.
  Json other = PieceTokenizer();
  Json& merges = other["model"]["merges"];
  std::swap(merges[5], merges[6]);
  ASSERT_TRUE(WriteFileAtomically(Path("m/tokenizer.json"), other.dump()).ok());
  EXPECT_THAT(std::string(WriteGguf(Path("other.gguf"), Open(Path("m")), "F32").message()),
              HasSubstr("the order of its merges"));
}

TEST_F(WriteModelTest, MoreThanAFileMayHoldIsSharded) {
  TinyModelOptions options;
  options.dtype = "bfloat16";
  const ModelFiles model = Tiny("m", options);
  // The embedding, 40,960 bytes, is larger than a file may be and gets one of its own.
  const uint64_t limit = 30'000;
  ASSERT_TRUE(WriteFolder("out", model, "BF16", {.shard_bytes_max = limit}).ok());
  const ModelFiles sharded = Open(Path("out"));
  EXPECT_EQ(*TeacherFingerprint(sharded, ""), *TeacherFingerprint(model, ""));
  EXPECT_FALSE(PathExists(Path("out/model.safetensors")));
  const auto index = *ReadJsonFile(Path("out/model.safetensors.index.json"), 1 << 20);
  EXPECT_EQ(index["metadata"]["total_size"], model.config.ParameterCount() * 2);
  EXPECT_EQ(index["metadata"]["total_parameters"], model.config.ParameterCount());
  std::vector<std::string> shards;
  const std::vector<std::string> names = *ListFolder(Path("out"));
  for (const std::string& name : names) {
    if (name.substr(0, 6) == "model-") shards.push_back(name);
  }
  ASSERT_GT(shards.size(), 3u);
  uint64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    EXPECT_EQ(shards[i],
              absl::StrCat("model-0000", i + 1, "-of-0000", shards.size(), ".safetensors"));
    const auto file = *SafetensorsFile::Open(Path("out/" + shards[i]));
    EXPECT_EQ(file->metadata().at("format"), "pt");
    uint64_t bytes = 0;
    for (const SafetensorsTensor& tensor : file->tensors()) {
      bytes += tensor.end - tensor.begin;
      EXPECT_EQ(index["weight_map"][tensor.name], shards[i]);
    }
    EXPECT_TRUE(bytes <= limit || file->tensors().size() == 1) << shards[i];
    total += bytes;
  }
  EXPECT_EQ(total, index["metadata"]["total_size"]);
  EXPECT_EQ(index["weight_map"].size(), model.config.Parameters().size());
}

TEST_F(WriteModelTest, AGgufThatACrashCutShortIsRefused) {
  const GgmlType* f32 = FindGgmlType("F32");
  GgufMetadata metadata;
  metadata.AddString("general.architecture", "llama");
  const std::vector<GgufTensorInfo> tensors = {{"a", f32, {16}}, {"b", f32, {16}}};
  for (const size_t written : {1, 64, 127}) {
    const std::string path = Path(absl::StrCat("cut-", written, ".gguf"));
    auto writer = GgufWriter::Create(path, metadata, tensors);
    ASSERT_TRUE(writer.ok()) << writer.status();
    EXPECT_TRUE(GgufFile::Open(path).ok()) << "the header can be checked beforehand";
    ASSERT_TRUE((*writer)->DropReserved().ok());
    const std::string data(64, 'x');
    for (size_t left = written; left > 0; left -= std::min<size_t>(left, 64)) {
      ASSERT_TRUE((*writer)->Append(data.substr(0, std::min<size_t>(left, 64))).ok());
    }
    writer->reset();  // no Close
    const absl::Status status = GgufFile::Open(path).status();
    EXPECT_FALSE(status.ok()) << written;
    EXPECT_THAT(status.message(), HasSubstr("truncated"));
  }
}

TEST_F(WriteModelTest, ValuesThatADtypeDoesNotHoldAreRefused) {
  const ModelFiles model = Tiny("m");
  auto tensors = *TensorsToWrite(model.weights, "F16");
  tensors[3].read_rows = nullptr;
  tensors[3].read = [](absl::Span<float> out) {
    std::fill(out.begin(), out.end(), 1e5f);
    return absl::OkStatus();
  };
  const absl::Status status =
      WriteHuggingFaceFolder(Path("out"), model.config, *model.tokenizer, tensors);
  EXPECT_THAT(std::string(status.message()), HasSubstr("too large for F16"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(tensors[3].name));
  EXPECT_FALSE(PathExists(Path("out")));
}

// A model in fp32 with these values at the end of one matrix.
TEST_F(WriteModelTest, NumbersThatANarrowerDtypeLacksAreCountedAndRefused) {
  const std::string name = "model.layers.1.mlp.down_proj.weight";
  const ModelFiles model = Tiny("m");
  const auto with = [&](const std::string& folder, std::vector<float> values) {
    auto tensors = *TensorsToWrite(model.weights, "F32");
    for (TensorToWrite& tensor : tensors) {
      if (tensor.name != name) continue;
      tensor.read_rows = nullptr;
      tensor.read = [&](absl::Span<float> out) {
        SH_RETURN_IF_ERROR(model.weights->ReadF32(name, out));
        std::copy(values.begin(), values.end(), out.end() - static_cast<int64_t>(values.size()));
        return absl::OkStatus();
      };
    }
    SH_CHECK_OK(WriteHuggingFaceFolder(Path(folder), model.config, *model.tokenizer, tensors));
    return Open(Path(folder));
  };
  const ModelFiles large = with("large", {65520, -1e30f, 65519});
  const ModelFiles broken = with("broken", {NAN, 1, -INFINITY, INFINITY});
  const struct {
    const ModelFiles& model;
    const char* dtype;
    const char* says;  // "" for what is written
  } cases[] = {{large, "F16", "2 values are too large for F16 (at most 65504)"},
               {large, "BF16", ""},
               {broken, "F16", "3 values are NaN or infinite"},
               {broken, "BF16", "3 values are NaN or infinite"},
               {broken, "F32", ""}};
  for (const auto& test : cases) {
    const absl::Status folder = WriteFolder("out", test.model, test.dtype);
    const absl::Status gguf = WriteGguf(Path("out.gguf"), test.model, test.dtype);
    for (const absl::Status& status : {folder, gguf}) {
      EXPECT_EQ(status.ok(), *test.says == '\0') << status;
      if (status.ok()) continue;
      EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
      EXPECT_THAT(std::string(status.message()), HasSubstr(test.says));
      EXPECT_THAT(std::string(status.message()), HasSubstr(name));
    }
    EXPECT_EQ(PathExists(Path("out")), folder.ok());
    EXPECT_EQ(PathExists(Path("out.gguf")), gguf.ok());
    SH_CHECK_OK(RemoveTree(Path("out")));
    SH_CHECK_OK(RemoveTree(Path("out.gguf")));
  }
  EXPECT_FALSE(WriteGguf(Path("out.gguf"), broken, "Q8_0").ok());
}

TEST_F(WriteModelTest, AGgufOnAFullDiskLeavesNothing) {
  SmallDisk disk(Path("disk"), "size=4m,mode=700");
  if (!disk.mounted()) GTEST_SKIP() << "this process may not mount a tmpfs";
  const ModelFiles model = Tiny("m");
  const std::string out = JoinPath(disk.path(), "models/m.gguf");
  SH_CHECK_OK(MakeFolders(FolderOf(out)));
  int refused = 0;
  for (size_t room = 0; room < (4 << 20); room += 16 << 10) {
    disk.LeaveRoom(room);
    const absl::Status status = WriteGguf(out, model, "F32");
    if (status.ok()) break;  // there was enough
    ++refused;
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    const std::string message(status.message());
    EXPECT_THAT(message, HasSubstr(absl::StrCat("writing ", out)));
    EXPECT_THAT(message, HasSubstr("No space left on device"));
    EXPECT_THAT(message, testing::Not(HasSubstr("\n")));
    EXPECT_TRUE(ListFolder(FolderOf(out))->empty());
  }
  EXPECT_GE(refused, 3);
  ExpectSame(model, Open(out), 0);
}

}  // namespace
}  // namespace stillhouse
