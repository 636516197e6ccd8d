// Loading tensors: the values, and how much memory it takes.
#include "formats/load_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/byte_io.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/model_files.h"
#include "tests/common/peak_memory.h"
#include "tests/formats/tiny_model.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

class LoadTensorsTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return JoinPath(folder_.path(), name); }

  TempFolder folder_ = *TempFolder::Create();
};

TEST_F(LoadTensorsTest, LoadsTheValuesInEveryDtype) {
  // Larger than a block, so that matrices are cut.
  TinyModelOptions options;
  options.vocab_size = 20'000;
  options.layers = 1;
  options.dtype = "bfloat16";
  ASSERT_TRUE(WriteTinyModel(Path("bf16"), options).ok());
  ASSERT_TRUE(WriteTinyGguf(Path("q8.gguf"), options, "Q8_0").ok());
  for (const std::string& name : {Path("bf16"), Path("q8.gguf")}) {
    const auto model = OpenModelFiles(name);
    ASSERT_TRUE(model.ok()) << model.status();
    const Weights& weights = *model->weights;
    for (const std::string dtype : {"F32", "BF16", "F16"}) {
      SCOPED_TRACE(absl::StrCat(name, " ", dtype));
      std::vector<std::vector<float>> memory;
      std::vector<LoadTarget> targets;
      for (const TensorInfo& info : weights.tensors()) {
        memory.emplace_back(static_cast<size_t>(info.Count()), -1.0f);
        targets.push_back({info.name, dtype, reinterpret_cast<char*>(memory.back().data())});
      }
      LoadProgress last;
      const absl::Status status = LoadTensors(weights, targets, [&](const LoadProgress& progress) {
        EXPECT_GT(progress.bytes_done, last.bytes_done);
        EXPECT_LE(progress.bytes_done, progress.bytes_total);
        last = progress;
      });
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(last.bytes_done, last.bytes_total);
      for (size_t i = 0; i < targets.size(); ++i) {
        std::vector<float> values(memory[i].size());
        ASSERT_TRUE(weights.ReadF32(targets[i].name, absl::MakeSpan(values)).ok());
        std::string want(values.size() * FloatBytes(dtype), '?');
        ASSERT_TRUE(EncodeFloats(values, dtype, absl::MakeSpan(want)).ok());
        EXPECT_TRUE(absl::string_view(targets[i].out, want.size()) == want) << targets[i].name;
      }
    }
  }
}

TEST_F(LoadTensorsTest, NamesWhatCannotBeLoaded) {
  ASSERT_TRUE(WriteTinyModel(Path("m")).ok());
  const auto model = *OpenModelFiles(Path("m"));
  float one = 0;
  EXPECT_EQ(LoadTensors(*model.weights, {{"no.such", "F32", reinterpret_cast<char*>(&one)}}).code(),
            absl::StatusCode::kNotFound);
  auto tensors = *TensorsToWrite(model.weights, "F32");
  tensors[2].read_rows = nullptr;
  tensors[2].read = [](absl::Span<float> out) {
    std::fill(out.begin(), out.end(), 1e6f);
    return absl::OkStatus();
  };
  ASSERT_TRUE(WriteHuggingFaceFolder(Path("large"), model.config, *model.tokenizer, tensors).ok());
  const auto large = *OpenModelFiles(Path("large"));
  std::vector<uint16_t> half(static_cast<size_t>(large.weights->Find(tensors[2].name)->Count()));
  const absl::Status status =
      LoadTensors(*large.weights, {{tensors[2].name, "F16", reinterpret_cast<char*>(half.data())}});
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(status.message()), HasSubstr(tensors[2].name));
}

TEST_F(LoadTensorsTest, AFileThatIsCutOffMeanwhileIsAnErrorNotASignal) {
  ASSERT_TRUE(WriteTinyModel(Path("m"), {}).ok());
  const auto model = OpenModelFiles(Path("m"));
  ASSERT_TRUE(model.ok()) << model.status();
  const TensorInfo& info = model->weights->tensors().back();
  std::vector<char> memory(static_cast<size_t>(info.Count()) * FloatBytes(info.stored_dtype));
  const std::string file = Path("m/model.safetensors");
  ASSERT_EQ(::truncate(file.c_str(), 4096), 0);
  const absl::Status status =
      LoadTensors(*model->weights, {{info.name, info.stored_dtype, memory.data()}});
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(file + ": cut off at byte"));
}

// A folder of bf16 weights that are nothing but holes, `shards` files of about equal size.
class SparseFolder {
 public:
  SparseFolder(const std::string& folder, const ModelConfig& config, size_t shards) {
    SH_CHECK_OK(WriteTinyModel(folder));  // for its tokenizer
    SH_CHECK(::unlink(JoinPath(folder, "model.safetensors").c_str()) == 0);
    SH_CHECK_OK(WriteFileAtomically(JoinPath(folder, "config.json"), ConfigToJson(config)));
    const auto parameters = config.Parameters();
    Json map = Json::object();
    for (size_t shard = 0; shard < shards; ++shard) {
      const std::string name = absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1, shards);
      Json header = Json::object();
      uint64_t next = 0;
      for (size_t i = parameters.size() * shard / shards;
           i < parameters.size() * (shard + 1) / shards; ++i) {
        uint64_t bytes = 2;
        for (const int64_t size : parameters[i].shape) bytes *= static_cast<uint64_t>(size);
        header[parameters[i].name] = {{"dtype", "BF16"},
                                      {"shape", parameters[i].shape},
                                      {"data_offsets", {next, next + bytes}}};
        map[parameters[i].name] = name;
        next += bytes;
      }
      ByteWriter head;
      const std::string text = header.dump();
      head.Put<uint64_t>(text.size());
      head.PutRaw(text);
      const std::string path = JoinPath(folder, name);
      SH_CHECK_OK(WriteFileAtomically(path, head.bytes()));
      const auto size = static_cast<off_t>(head.size() + next);
      made_ = made_ && ::truncate(path.c_str(), size) == 0;
      struct stat info {};
      made_ = made_ && ::stat(path.c_str(), &info) == 0 && info.st_blocks * 512 < (1 << 20);
      bytes_ += static_cast<uint64_t>(size);
    }
    SH_CHECK_OK(WriteFileAtomically(JoinPath(folder, "model.safetensors.index.json"),
                                    Json{{"weight_map", map}}.dump()));
  }
  bool made() const { return made_; }  // false where the file system has no holes or no room
  uint64_t bytes() const { return bytes_; }

 private:
  bool made_ = true;
  uint64_t bytes_ = 0;
};

ModelConfig SeventyBillion() {
  ModelConfig config = TinyConfig({});
  config.hidden_size = 8192;
  config.intermediate_size = 28672;
  config.layers = 80;
  config.heads = 64;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.vocab_size = 128256;
  config.tie_embeddings = false;
  config.dtype = "bfloat16";
  return config;
}

TEST_F(LoadTensorsTest, A140GigabyteFolderOpensAndLoadsInBoundedMemory) {
  const ModelConfig config = SeventyBillion();
  const SparseFolder sparse(Path("m"), config, 30);
  if (!sparse.made()) GTEST_SKIP() << "the temporary folder's file system takes no sparse files";
  ASSERT_GT(sparse.bytes(), 140'000'000'000u);
  if (!ResetPeak() || !PeakBytes().has_value())
    GTEST_SKIP() << "the peak of memory is not known here";
  const uint64_t before = *PeakBytes();
  constexpr uint64_t kSlack = 48 << 20;  // headers, the tokenizer, a block per thread

  const auto model = OpenModelFiles(Path("m"));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->config, config);
  EXPECT_LT(*PeakBytes(), before + kSlack);

  // 134 MB of file pages pass through; what stays is the target.
  const std::string name = "model.layers.40.self_attn.q_proj.weight";
  const TensorInfo& info = *model->weights->Find(name);
  std::vector<char> target(static_cast<size_t>(info.Count()) * 2, '?');
  ASSERT_TRUE(ResetPeak());
  const uint64_t with_target = *PeakBytes();
  ASSERT_TRUE(LoadTensors(*model->weights, {{name, "BF16", target.data()}}).ok());
  EXPECT_LT(*PeakBytes(), with_target + kSlack);
  EXPECT_EQ(std::count(target.begin(), target.end(), '\0'), static_cast<int64_t>(target.size()));
}

TEST_F(LoadTensorsTest, AFingerprintStreamsThroughTheFiles) {
  ModelConfig config = SeventyBillion();
  config.hidden_size = 1024;
  config.intermediate_size = 4096;
  config.layers = 5;
  config.heads = 8;
  config.vocab_size = 32000;
  const SparseFolder sparse(Path("m"), config, 2);
  if (!sparse.made()) GTEST_SKIP() << "the temporary folder's file system takes no sparse files";
  ASSERT_GT(sparse.bytes(), 256u << 20);
  const auto model = OpenModelFiles(Path("m"));
  ASSERT_TRUE(model.ok()) << model.status();
  if (!ResetPeak() || !PeakBytes().has_value())
    GTEST_SKIP() << "the peak of memory is not known here";
  const uint64_t before = *PeakBytes();
  ASSERT_TRUE(TeacherFingerprint(*model, "").ok());
  // Sixteen threads with a block of 4 MiB each.
  EXPECT_LT(*PeakBytes(), before + (100 << 20));
}

}  // namespace
}  // namespace stillhouse
