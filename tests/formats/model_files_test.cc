#include "formats/model_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <set>

#include "absl/strings/str_replace.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/safetensors.h"
#include "tests/common/small_disk.h"
#include "tests/formats/model_folder_test.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

class ModelFilesTest : public ModelFolderTest {
 protected:
  std::string TinyFolder(const std::string& name, const TinyModelOptions& options = {}) {
    SH_CHECK_OK(WriteTinyModel(Path(name), options));
    return Path(name);
  }
  void Replace(const std::string& file, const std::string& from, const std::string& to) {
    std::string text = *ReadFile(file);
    SH_CHECK(absl::StrReplaceAll({{from, to}}, &text) > 0, from);
    SH_CHECK_OK(WriteFileAtomically(file, text));
  }
  static std::vector<TensorToWrite> Tensors(const ModelFiles& model, const std::string& dtype) {
    std::vector<TensorToWrite> tensors;
    for (const TensorInfo& info : model.weights->tensors()) {
      tensors.push_back({info.name, info.shape, dtype,
                         [weights = model.weights, name = info.name](absl::Span<float> out) {
                           return weights->ReadF32(name, out);
                         }});
    }
    return tensors;
  }
};

TEST_F(ModelFilesTest, AHubIdSaysHowToDownloadAndWhereItIsLookedFor) {
  const absl::Status status = OpenModelFiles("HuggingFaceTB/SmolLM2-135M-Instruct").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("hf download HuggingFaceTB/SmolLM2-135M-Instruct"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("looked for at the path"));
  EXPECT_EQ(OpenTokenizer("org/name").status().code(), absl::StatusCode::kNotFound);
  for (const std::string& path :
       {Path("nothing"), std::string("no.gguf"), std::string("a/b.gguf")}) {
    const absl::Status plain = OpenModelFiles(path).status();
    EXPECT_EQ(plain.code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(std::string(plain.message()), HasSubstr("no such file"));
    EXPECT_THAT(std::string(plain.message()), HasSubstr(path));
  }
}

TEST_F(ModelFilesTest, OpensAFolderAndReadsEveryParameter) {
  TinyModelOptions options;
  options.tie_embeddings = false;
  const ModelFiles model = Open(TinyFolder("m", options));
  EXPECT_EQ(model.format, "huggingface");
  EXPECT_EQ(model.config, TinyConfig(options));
  ASSERT_EQ(model.weights->tensors().size(), model.config.Parameters().size());
  for (const ModelConfig::Parameter& parameter : model.config.Parameters()) {
    std::vector<float> values(model.weights->Find(parameter.name)->Count());
    ASSERT_TRUE(model.weights->ReadF32(parameter.name, absl::MakeSpan(values)).ok());
    EXPECT_EQ(values, TinyWeights(options, parameter));
  }
  std::vector<float> none;
  EXPECT_EQ(model.weights->ReadF32("x", absl::MakeSpan(none)).code(), absl::StatusCode::kNotFound);
}

TEST_F(ModelFilesTest, NamesTheFirstTensorThatIsNotAsTheConfigSays) {
  const std::string folder = TinyFolder("m");
  Replace(JoinPath(folder, "config.json"), "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
  EXPECT_THAT(std::string(OpenModelFiles(folder).status().message()),
              HasSubstr("model.layers.2.self_attn.q_proj.weight\" is missing"));
  Replace(JoinPath(folder, "config.json"), "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 1");
  EXPECT_THAT(std::string(OpenModelFiles(folder).status().message()),
              HasSubstr("not part of a llama model"));
  Replace(JoinPath(folder, "config.json"), "\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2");
  Replace(JoinPath(folder, "config.json"), "\"vocab_size\": 320", "\"vocab_size\": 321");
  EXPECT_THAT(std::string(OpenModelFiles(folder).status().message()), HasSubstr("[320, 64]"));
  ASSERT_EQ(std::remove(JoinPath(folder, "model.safetensors").c_str()), 0);
  EXPECT_EQ(OpenModelFiles(folder).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ModelFilesTest, AFolderWithoutAConfigNamesTheGgufInIt) {
  const std::string folder = Path("models");
  ASSERT_TRUE(MakeFolders(folder).ok());
  EXPECT_THAT(std::string(OpenModelFiles(folder).status().message()),
              HasSubstr("no config.json in this folder"));
  ASSERT_TRUE(WriteFileAtomically(JoinPath(folder, "tiny.gguf"), "GGUF").ok());
  EXPECT_THAT(std::string(OpenModelFiles(folder).status().message()),
              HasSubstr(absl::StrCat("give ", JoinPath(folder, "tiny.gguf"))));
}

TEST_F(ModelFilesTest, ReadsAShardedFolderAndRefusesAnIndexThatLeadsOut) {
  const std::string folder = TinyFolder("m");
  const ModelFiles whole = Open(folder);
  // The same tensors dealt to two files.
  Json map = Json::object();
  const std::vector<TensorInfo>& all = whole.weights->tensors();
  for (const size_t shard : {0, 1}) {
    const std::string name = absl::StrCat("model-0000", shard + 1, "-of-00002.safetensors");
    std::vector<SafetensorsTensor> header;
    for (size_t i = shard; i < all.size(); i += 2)
      header.push_back({all[i].name, "F32", all[i].shape});
    auto writer = SafetensorsWriter::Create(JoinPath(folder, name), header);
    ASSERT_TRUE(writer.ok());
    for (const SafetensorsTensor& tensor : header) {
      map[tensor.name] = name;
      ASSERT_TRUE((*writer)->Append(*whole.weights->RawBytes(tensor.name)).ok());
    }
    ASSERT_TRUE((*writer)->Close().ok());
  }
  ASSERT_EQ(std::remove(JoinPath(folder, "model.safetensors").c_str()), 0);
  const std::string index = JoinPath(folder, "model.safetensors.index.json");
  ASSERT_TRUE(WriteFileAtomically(index, Json{{"weight_map", map}}.dump()).ok());
  const ModelFiles sharded = Open(folder);
  EXPECT_EQ(*TeacherFingerprint(sharded, ""), *TeacherFingerprint(whole, ""));
  map["model.norm.weight"] = "../evil.safetensors";
  ASSERT_TRUE(WriteFileAtomically(index, Json{{"weight_map", map}}.dump()).ok());
  EXPECT_THAT(std::string(OpenModelFiles(folder).status().message()), HasSubstr("same folder"));
}

TEST_F(ModelFilesTest, FingerprintIsOfTheModelNotOfItsConfigsDialect) {
  const std::string folder = TinyFolder("m");
  const Digest original = *TeacherFingerprint(Open(folder), "");
  const std::string config = JoinPath(folder, "config.json");
  const std::string both = *ReadFile(config);

  Json json = *ParseJson(both, config);
  Json five = json;
  for (const char* key : {"rope_theta", "torch_dtype"}) five.erase(key);
  ASSERT_TRUE(WriteFileAtomically(config, five.dump()).ok());
  EXPECT_EQ(*TeacherFingerprint(Open(folder), ""), original);
  Json four = json;
  for (const char* key : {"rope_parameters", "dtype", "head_dim"}) four.erase(key);
  ASSERT_TRUE(WriteFileAtomically(config, four.dump()).ok());
  EXPECT_EQ(*TeacherFingerprint(Open(folder), ""), original);

  four["rope_theta"] = 20000.0;
  ASSERT_TRUE(WriteFileAtomically(config, four.dump()).ok());
  EXPECT_NE(*TeacherFingerprint(Open(folder), ""), original);
  ASSERT_TRUE(WriteFileAtomically(config, both).ok());
  EXPECT_EQ(*TeacherFingerprint(Open(folder), ""), original);
}

// Flips one bit of a file in place.
void Flip(const std::string& path, uint64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset));
  const int byte = file.get();
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(static_cast<char>(byte ^ 1));
}

TEST_F(ModelFilesTest, OneBitOfAnyTensorGivesAnotherFingerprint) {
  TinyModelOptions options;
  options.tie_embeddings = false;
  options.attention_bias = true;
  const std::string folder = TinyFolder("m", options);
  const std::string gguf = Path("m.gguf");
  ASSERT_TRUE(WriteTinyGguf(gguf, options, "Q8_0").ok());
  for (const auto& [path, file] : std::vector<std::pair<std::string, std::string>>{
           {folder, JoinPath(folder, "model.safetensors")}, {gguf, gguf}}) {
    const std::string whole = *ReadFile(file);
    const ModelFiles model = Open(path);
    std::set<std::string> seen = {TeacherFingerprint(model, "")->Hex()};
    size_t tensors = 0;
    for (const TensorInfo& info : model.weights->tensors()) {
      const absl::string_view bytes = *model.weights->RawBytes(info.name);
      const size_t at = whole.find(std::string(bytes));
      ASSERT_NE(at, std::string::npos);
      for (const size_t within : {size_t{0}, bytes.size() - 1}) {
        Flip(file, at + within);
        seen.insert(TeacherFingerprint(Open(path), "")->Hex());
        Flip(file, at + within);
      }
      ++tensors;
    }
    EXPECT_EQ(seen.size(), 1 + 2 * tensors) << path;  // each another
    EXPECT_EQ(seen.count(TeacherFingerprint(Open(path), "")->Hex()), 1u);
  }
}

TEST_F(ModelFilesTest, DialectsOfEveryRopeGiveOneFingerprint) {
  using Kind = RopeScaling::Kind;
  for (const Kind kind : {Kind::kLinear, Kind::kDynamic, Kind::kYarn, Kind::kLlama3}) {
    TinyModelOptions options;
    options.rope.kind = kind;
    options.rope.factor = 4;
    if (kind == Kind::kYarn || kind == Kind::kLlama3) options.rope.original_positions = 128;
    if (kind == Kind::kYarn) options.rope.attention_factor = 1 + 0.1 * std::log(4.0);
    if (kind == Kind::kLlama3) {
      options.rope.low_freq_factor = 1;
      options.rope.high_freq_factor = 4;
    }
    const std::string folder = TinyFolder(std::string(RopeKindName(kind)), options);
    const std::string config = JoinPath(folder, "config.json");
    const Json both = *ReadJsonFile(config, 1 << 20);
    Json four = both, five = both;
    for (const char* key : {"rope_parameters", "dtype", "head_dim"}) four.erase(key);
    for (const char* key : {"rope_theta", "rope_scaling", "torch_dtype"}) five.erase(key);
    four["rope_scaling"]["type"] = four["rope_scaling"]["rope_type"];  // the oldest spelling
    four["rope_scaling"].erase("rope_type");
    std::set<std::string> seen;
    for (const Json& json : {both, four, five}) {
      ASSERT_TRUE(WriteFileAtomically(config, json.dump()).ok());
      seen.insert(TeacherFingerprint(Open(folder), "")->Hex());
    }
    EXPECT_EQ(seen.size(), 1u) << RopeKindName(kind);
    five["rope_parameters"]["factor"] = 5;
    ASSERT_TRUE(WriteFileAtomically(config, five.dump()).ok());
    seen.insert(TeacherFingerprint(Open(folder), "")->Hex());
    EXPECT_EQ(seen.size(), 2u) << RopeKindName(kind);
  }
}

TEST_F(ModelFilesTest, FingerprintIsRememberedUntilTheFileChanges) {
  const std::string folder = TinyFolder("m");
  const std::string memos = Path("cache/stillhouse");
  const Digest original = *TeacherFingerprint(Open(folder), memos);
  const auto names = ListFolder(memos);
  ASSERT_TRUE(names.ok());
  ASSERT_EQ(names->size(), 1u);
  EXPECT_EQ(*TeacherFingerprint(Open(folder), memos), original);
  // A memo that says something else shows that it is read at all.
  const std::string memo = JoinPath(memos, names->front());
  std::string text = *ReadFile(memo);
  const char last = text.back();
  text.back() = last == '0' ? '1' : '0';
  ASSERT_TRUE(WriteFileAtomically(memo, text, 0600).ok());
  EXPECT_NE(*TeacherFingerprint(Open(folder), memos), original);
  // One that others could have written, or that is damaged, counts for nothing.
  ASSERT_EQ(::chmod(memo.c_str(), 0666), 0);
  EXPECT_EQ(*TeacherFingerprint(Open(folder), memos), original);
  ASSERT_TRUE(WriteFileAtomically(memo, text.substr(0, text.size() - 3), 0600).ok());
  EXPECT_EQ(*TeacherFingerprint(Open(folder), memos), original);
  // Another file under the same name is another file.
  TinyModelOptions other;
  other.seed = 2;
  const std::string second = TinyFolder("second", other);
  ASSERT_EQ(std::rename(JoinPath(second, "model.safetensors").c_str(),
                        JoinPath(folder, "model.safetensors").c_str()),
            0);
  const Digest changed = *TeacherFingerprint(Open(folder), memos);
  EXPECT_NE(changed, original);
  EXPECT_EQ(changed, *TeacherFingerprint(Open(folder), ""));
}

TEST_F(ModelFilesTest, AnExportToAFullDiskLeavesNothing) {
  SmallDisk disk(Path("disk"), "size=4m,mode=700");
  if (!disk.mounted()) GTEST_SKIP() << "this process may not mount a tmpfs";
  const ModelFiles model = Open(TinyFolder("m"));
  const std::string out = JoinPath(disk.path(), "students/half");
  int refused = 0;
  for (size_t room = 0; room < (4 << 20); room += 16 << 10) {
    disk.LeaveRoom(room);
    const absl::Status status =
        WriteHuggingFaceFolder(out, model.config, *model.tokenizer, Tensors(model, "F32"));
    if (status.ok()) break;  // there was enough
    ++refused;
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_EQ(ExitCodeFor(status), kExitFailed);
    const std::string message(status.message());
    EXPECT_THAT(message, HasSubstr(absl::StrCat("exporting to ", out)));
    EXPECT_THAT(message, HasSubstr("No space left on device"));
    EXPECT_THAT(message, testing::Not(HasSubstr("\n")));
    EXPECT_TRUE(ListFolder(JoinPath(disk.path(), "students"))->empty());
  }
  EXPECT_GE(refused, 3);
  Open(out);  // whole
}

TEST_F(ModelFilesTest, AnExportAppearsWholeOrNotAtAll) {
  const ModelFiles model = Open(TinyFolder("m"));
  const std::string out = Path("out");
  std::vector<TensorToWrite> tensors = Tensors(model, "F32");
  tensors[5].read = [&](absl::Span<float>) {
    EXPECT_FALSE(PathExists(out));
    return absl::ResourceExhaustedError("the disk is full");
  };
  const absl::Status full = WriteHuggingFaceFolder(out, model.config, *model.tokenizer, tensors);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ListFolder(folder_.path())->size(), 1u);  // nothing left behind

  tensors = Tensors(model, "F32");
  tensors.pop_back();
  EXPECT_FALSE(WriteHuggingFaceFolder(out, model.config, *model.tokenizer, tensors).ok());
  tensors = Tensors(model, "F32");
  ASSERT_TRUE(WriteHuggingFaceFolder(out + "/", model.config, *model.tokenizer, tensors).ok());
  EXPECT_EQ(WriteHuggingFaceFolder(out, model.config, *model.tokenizer, tensors).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ListFolder(folder_.path())->size(), 2u);
  // Tokenizer files that came with a folder are copied byte for byte.
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
    EXPECT_EQ(*ReadFile(JoinPath(out, name)), *ReadFile(JoinPath(model.path, name)));
  }
  EXPECT_EQ(*TeacherFingerprint(Open(out), ""), *TeacherFingerprint(model, ""));
}

// A case of golden/llama_export.json: what transformers saves for the config.
Json Golden(const std::string& name) {
  const auto golden =
      ReadJsonFile(JoinPath(SH_TEST_SOURCE_DIR, "tests/formats/golden/llama_export.json"), 1 << 24);
  SH_CHECK_OK(golden);
  return (*golden)["cases"][name];
}

void ExpectConfigOf(const Json& golden, const std::string& text) {
  const Json ours = *ParseJson(text, "config.json");
  for (const auto& [key, value] : golden["config"].items()) {
    if (key == "transformers_version") continue;
    EXPECT_EQ(ours.contains(key) ? ours[key] : Json("missing"), value) << key;
  }
}

TEST_F(ModelFilesTest, SmolLm2sParametersAreThoseThatTransformersSaves) {
  const Json golden = Golden("smollm2");
  auto config = ParseConfigJson(golden["config"].dump(), "golden");
  ASSERT_TRUE(config.ok()) << config.status();
  ExpectConfigOf(golden, ConfigToJson(*config));
  Json ours = Json::object();
  for (const ModelConfig::Parameter& parameter : config->Parameters()) {
    ours[parameter.name] = Json::array({"BF16", parameter.shape});
  }
  EXPECT_EQ(ours, golden["tensors"]);
}

TEST_F(ModelFilesTest, AnExportIsWhatTransformersSavesAndPythonReads) {
  const std::string python = std::string(SH_TEST_DEPS_DIR) + "/venv/bin/python";
  for (const auto& [name, tied, dtype] : std::vector<std::tuple<std::string, bool, std::string>>{
           {"tiny", true, "F32"}, {"tiny_untied_bf16", false, "BF16"}}) {
    SCOPED_TRACE(name);
    TinyModelOptions options;
    options.tie_embeddings = tied;
    options.dtype = tied ? "float32" : "bfloat16";
    const std::string gguf = Path(name + ".gguf");
    ASSERT_TRUE(WriteTinyGguf(gguf, options).ok());
    ModelFiles model = Open(gguf);
    model.config.dtype = options.dtype;
    const std::string out = Path(name);
    ASSERT_TRUE(
        WriteHuggingFaceFolder(out, model.config, *model.tokenizer, Tensors(model, dtype)).ok());

    const Json golden = Golden(name);
    ExpectConfigOf(golden, *ReadFile(JoinPath(out, "config.json")));
    const auto file = SafetensorsFile::Open(JoinPath(out, "model.safetensors"));
    ASSERT_TRUE(file.ok()) << file.status();
    Json tensors = Json::object();
    for (const SafetensorsTensor& tensor : (*file)->tensors()) {
      tensors[tensor.name] = Json::array({tensor.dtype, tensor.shape});
    }
    EXPECT_EQ(tensors, golden["tensors"]);
    EXPECT_EQ(Json((*file)->metadata()), golden["metadata"]);

    if (!PathExists(python)) GTEST_SKIP() << "no " << python << " (`make deps` makes it)";
    const std::string text = "the teacher's 12 apples <|im_start|> été";
    const std::string command =
        absl::StrCat("'", python, "' '", SH_TEST_SOURCE_DIR, "/tests/formats/read_folder.py' '",
                     out, "' \"", text, "\" > '", Path("read.json"), "'");
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
    const Json read = *ReadJsonFile(Path("read.json"), 1 << 20);
    EXPECT_EQ(read["metadata"], golden["metadata"]);
    EXPECT_EQ(read["ids"].get<std::vector<int32_t>>(), *model.tokenizer->Encode(text));
    EXPECT_EQ(read["text"], text);
    EXPECT_EQ(read["tensors"].size(), golden["tensors"].size());
    for (const auto& [tensor, seen] : read["tensors"].items()) {
      EXPECT_EQ(Json::array({seen[0], seen[1]}), golden["tensors"][tensor]);
      std::vector<float> values(
          (*file)->Find(tensor)->shape.empty() ? 0 : model.weights->Find(tensor)->Count());
      ASSERT_TRUE((*file)->ReadF32(*(*file)->Find(tensor), absl::MakeSpan(values)).ok());
      const double sum = std::accumulate(values.begin(), values.end(), 0.0);
      EXPECT_NEAR(seen[2].get<double>(), sum, 1e-6 * (1 + std::abs(sum))) << tensor;
    }
  }
}

TEST_F(ModelFilesTest, TheRealTeacherOpens) {
  const std::string gguf =
      std::string(SH_TEST_DEPS_DIR) + "/teacher/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!PathExists(gguf)) GTEST_SKIP() << "no " << gguf << " (`make deps` fetches it)";
  const ModelFiles model = Open(gguf);
  EXPECT_EQ(model.config.ParameterCount(), 134515008);
  EXPECT_EQ(model.config.rms_norm_eps, 1e-5);
  EXPECT_TRUE(model.config.tie_embeddings);
  EXPECT_EQ(model.tokenizer->size(), 49152);
  // Caches that people have are bound to it.
  EXPECT_EQ(model.tokenizer->Fingerprint().Hex(),
            "62b2b44c94b904123365b33407c8b3486e04b13b8cffd9de41624e40b9dc5019");
  EXPECT_EQ(model.weights->Find("model.embed_tokens.weight")->stored_dtype, "Q8_0");
  ExpectConfigOf(Golden("smollm2"), ConfigToJson(model.config));
  const std::string files = Path("tokenizer");
  ASSERT_TRUE(MakeFolders(files).ok());
  ASSERT_TRUE(model.tokenizer->WriteFiles(files).ok());
  EXPECT_EQ((*OpenTokenizer(files))->Fingerprint(), model.tokenizer->Fingerprint());
  EXPECT_THAT(*ReadFile(JoinPath(files, "tokenizer_config.json")), HasSubstr("chat_template"));
}

}  // namespace
}  // namespace stillhouse
