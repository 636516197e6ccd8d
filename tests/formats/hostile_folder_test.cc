// Folders that are not what they say: indexes, shards and configs that other people wrote.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/model_files.h"
#include "formats/safetensors.h"
#include "tests/formats/tiny_model.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

constexpr char kNorm[] = "model.norm.weight";

// A tiny model in the folder "m", in several files.
class HostileFolderTest : public ::testing::Test {
 protected:
  HostileFolderTest() {
    SH_CHECK_OK(WriteTinyModel(Path("whole")));
    const auto model = OpenModelFiles(Path("whole"));
    SH_CHECK_OK(model);
    SH_CHECK_OK(WriteHuggingFaceFolder(Path("m"), model->config, *model->tokenizer,
                                       *TensorsToWrite(model->weights, ""),
                                       {.shard_bytes_max = 100'000}));
    SH_CHECK_OK(OpenModelFiles(Path("m")));
    index_ = *ReadJsonFile(Path("m/model.safetensors.index.json"), 1 << 20);
  }
  std::string Path(const std::string& name) const { return JoinPath(folder_.path(), name); }
  std::string ShardOf(const std::string& tensor) const {
    return index_["weight_map"][tensor].get<std::string>();
  }
  void WriteIndex(const Json& index) {
    SH_CHECK_OK(WriteFileAtomically(Path("m/model.safetensors.index.json"), index.dump()));
  }
  // A file of the folder, written again with tensors added.
  void AddTensor(const std::string& shard, const SafetensorsTensor& added) {
    const std::string path = Path("m/" + shard);
    const auto file = *SafetensorsFile::Open(path);
    std::vector<SafetensorsTensor> header = file->tensors();
    header.push_back(added);
    const auto writer = *SafetensorsWriter::Create(path + ".new", header);
    for (const SafetensorsTensor& tensor : file->tensors()) {
      SH_CHECK_OK(writer->Append(file->Bytes(tensor)));
    }
    int64_t bytes = static_cast<int64_t>(SafetensorsDtypeSize(added.dtype));
    for (const int64_t size : added.shape) bytes *= size;
    SH_CHECK_OK(writer->Append(std::string(static_cast<size_t>(bytes), '\0')));
    SH_CHECK_OK(writer->Close());
    SH_CHECK(std::rename((path + ".new").c_str(), path.c_str()) == 0);
  }
  void ExpectRefused(absl::StatusCode code, const std::vector<std::string>& says) {
    const absl::Status status = OpenModelFiles(Path("m")).status();
    EXPECT_EQ(status.code(), code) << status;
    for (const std::string& what : says) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(what));
    }
    EXPECT_THAT(std::string(status.message()), HasSubstr(Path("m")));
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
    EXPECT_LT(status.message().size(), 600u);
  }

  static constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  static constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
  TempFolder folder_ = *TempFolder::Create();
  Json index_;
};

TEST_F(HostileFolderTest, AMissingShardIsNamed) {
  ASSERT_EQ(::unlink(Path("m/" + ShardOf(kNorm)).c_str()), 0);
  ExpectRefused(absl::StatusCode::kNotFound, {ShardOf(kNorm), "is missing"});
}

TEST_F(HostileFolderTest, AShardThatIsAnothersIsRefused) {
  const std::string one = ShardOf(kNorm), other = ShardOf("model.embed_tokens.weight");
  ASSERT_NE(one, other);
  ASSERT_EQ(std::rename(Path("m/" + one).c_str(), Path("m/spare").c_str()), 0);
  ASSERT_EQ(std::rename(Path("m/" + other).c_str(), Path("m/" + one).c_str()), 0);
  ASSERT_EQ(std::rename(Path("m/spare").c_str(), Path("m/" + other).c_str()), 0);
  ExpectRefused(kInvalid, {"which model.safetensors.index.json puts in"});
}

TEST_F(HostileFolderTest, TensorsThatTheIndexHasWrongAreRefused) {
  Json index = index_;
  index["weight_map"].erase(kNorm);
  WriteIndex(index);
  ExpectRefused(kInvalid, {kNorm, "puts in no file"});
  index = index_;
  index["weight_map"]["model.extra.weight"] = ShardOf(kNorm);
  WriteIndex(index);
  ExpectRefused(kInvalid, {"model.extra.weight", "does not have it"});
}

TEST_F(HostileFolderTest, ATensorInTwoShardsIsRefused) {
  AddTensor(ShardOf("model.embed_tokens.weight"), {kNorm, "F32", {64}});
  ExpectRefused(kInvalid, {kNorm, "is in another file of the folder too"});
}

TEST_F(HostileFolderTest, PathsThatLeaveTheFolderAreRefused) {
  for (const std::string& path : std::vector<std::string>{
           "../whole/model.safetensors", Path("whole/model.safetensors"), "sub/x.safetensors", "..",
           ".", "", "config.json", std::string("a.safetensors\0.safetensors", 26)}) {
    Json index = index_;
    index["weight_map"][kNorm] = path;
    WriteIndex(index);
    ExpectRefused(kInvalid, {kNorm, "must lie in a .safetensors file of the same folder"});
  }
  Json index = index_;
  index["weight_map"][kNorm] = 7;
  WriteIndex(index);
  ExpectRefused(kInvalid, {"same folder"});
}

TEST_F(HostileFolderTest, BrokenIndexesAreRefused) {
  for (const char* text : {"{}", "[]", R"({"weight_map": []})", R"({"weight_map": {}})"}) {
    WriteIndex(Json::parse(text));
    ExpectRefused(kInvalid, {"weight_map"});
  }
  Json index = index_;
  for (int i = 0; i < 5000; ++i) {
    index["weight_map"][absl::StrCat("t", i)] = absl::StrCat(i, ".safetensors");
  }
  WriteIndex(index);
  ExpectRefused(kInvalid, {"more than 4096 files"});
  ASSERT_TRUE(WriteFileAtomically(Path("m/model.safetensors.index.json"), "{\"weight_map\":").ok());
  ExpectRefused(kInvalid, {"model.safetensors.index.json"});
}

TEST_F(HostileFolderTest, DtypesAndTensorsThatDoNotFitAreRefused) {
  const std::string shard = ShardOf(kNorm);
  AddTensor(shard, {"model.layers.9.mlp.up_proj.weight", "F32", {2, 2}});
  index_["weight_map"]["model.layers.9.mlp.up_proj.weight"] = shard;
  WriteIndex(index_);
  ExpectRefused(kUnimplemented, {"model.layers.9", "not part of a llama model"});
}

TEST_F(HostileFolderTest, ParametersThatAreNoNumbersAreRefused) {
  for (const char* dtype : {"I64", "U8", "BOOL", "F8_E4M3"}) {
    SH_CHECK_OK(RemoveTree(Path("m")));
    SH_CHECK_OK(WriteTinyModel(Path("m")));
    const std::string path = Path("m/model.safetensors");
    auto header = (*SafetensorsFile::Open(path))->tensors();
    for (SafetensorsTensor& tensor : header) {
      if (tensor.name == kNorm) tensor.dtype = dtype;
    }
    ASSERT_EQ(::unlink(path.c_str()), 0);
    const auto writer = *SafetensorsWriter::Create(path, header);
    for (const SafetensorsTensor& tensor : header) {
      uint64_t bytes = SafetensorsDtypeSize(tensor.dtype);
      for (const int64_t size : tensor.shape) bytes *= static_cast<uint64_t>(size);
      ASSERT_TRUE(writer->Append(std::string(bytes, '\0')).ok());
    }
    ASSERT_TRUE(writer->Close().ok());
    ExpectRefused(kUnimplemented, {kNorm, std::string("has dtype ") + dtype});
  }
}

TEST_F(HostileFolderTest, AConfigOfTrillionsIsRefusedBeforeAnythingIsAllocated) {
  Json config = *ReadJsonFile(Path("m/config.json"), 1 << 20);
  config["hidden_size"] = 1 << 18;
  config["intermediate_size"] = 1 << 19;
  config["num_hidden_layers"] = 2000;
  ASSERT_TRUE(WriteFileAtomically(Path("m/config.json"), config.dump()).ok());
  ExpectRefused(kInvalid, {"parameters; at most"});
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size",
                          "num_attention_heads", "num_key_value_heads", "head_dim"}) {
    Json huge = *ReadJsonFile(Path("whole/config.json"), 1 << 20);
    huge[key] = 1'000'000'000'000;
    ASSERT_TRUE(WriteFileAtomically(Path("m/config.json"), huge.dump()).ok());
    ExpectRefused(kInvalid, {key, "1000000000000"});
  }
}

TEST_F(HostileFolderTest, ATokenizerOfAnotherModelIsRefused) {
  Json json = *ReadJsonFile(Path("whole/tokenizer.json"), 1 << 20);
  for (int id = kTinyTokens; id <= 320; ++id) {
    json["added_tokens"].push_back({{"id", id}, {"content", absl::StrCat("<more", id, ">")}});
  }
  ASSERT_TRUE(WriteFileAtomically(Path("m/tokenizer.json"), json.dump()).ok());
  ExpectRefused(kInvalid, {"the tokenizer has 321 tokens, the model 320 rows"});
  json["model"]["type"] = "Unigram";
  ASSERT_TRUE(WriteFileAtomically(Path("m/tokenizer.json"), json.dump()).ok());
  ExpectRefused(kUnimplemented, {"tokenizer.json", "Unigram"});
  ASSERT_EQ(::unlink(Path("m/tokenizer.json").c_str()), 0);
  ExpectRefused(absl::StatusCode::kNotFound, {"tokenizer.json"});
}

TEST_F(HostileFolderTest, AVocabularySmallerThanTheIdsIsRefused) {
  const Json whole = *ReadJsonFile(Path("m/config.json"), 1 << 20);
  const auto with = [&](const std::string& key, const Json& value) {
    Json config = whole;
    config[key] = value;
    SH_CHECK_OK(WriteFileAtomically(Path("m/config.json"), config.dump()));
  };
  with("vocab_size", kTinyTokens - 1);
  ExpectRefused(kInvalid, {"model.embed_tokens.weight"});
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    with(key, 320);
    ExpectRefused(kInvalid, {key, "320"});
  }
  with("eos_token_id", {296, 320});
  ExpectRefused(kInvalid, {"eos_token_id", "320"});
}

}  // namespace
}  // namespace stillhouse
