#include "formats/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "common/random.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "tests/formats/gguf_builder.h"
#include "tests/formats/tiny_model.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

class GgufTest : public ::testing::Test {
 protected:
  std::string Path() const { return JoinPath(folder_.path(), "m.gguf"); }

  // Without the fsync of WriteFileAtomically, for tests that write thousands.
  absl::Status Open(const std::string& bytes) {
    std::ofstream(Path(), std::ios::binary | std::ios::trunc) << bytes;
    return OpenModelFiles(Path()).status();
  }
  absl::Status OpenContainer(const std::string& bytes) {
    std::ofstream(Path(), std::ios::binary | std::ios::trunc) << bytes;
    return GgufFile::Open(Path()).status();
  }
  // One line that names the file.
  void ExpectClear(const absl::Status& status) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(Path()));
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
    EXPECT_LT(status.message().size(), 600u);
  }

  TempFolder folder_ = *TempFolder::Create();
};

TinyModelOptions Small() {
  TinyModelOptions options;
  options.layers = 1;
  options.hidden = 32;
  options.intermediate = 32;
  options.heads = 2;
  options.kv_heads = 1;
  return options;
}

std::string TinyFile(const std::string& path, const std::string& type) {
  SH_CHECK_OK(WriteTinyGguf(path, Small(), type));
  return *ReadFile(path);
}

std::string Length(uint64_t value) { return {reinterpret_cast<const char*>(&value), 8}; }
std::string Word(uint32_t value) { return {reinterpret_cast<const char*>(&value), 4}; }

TEST_F(GgufTest, ReadsEveryTypeOfMetadata) {
  GgufBuilder file;
  file.AddU32("u32", 7);
  file.AddF32("f32", 1e-5f);
  file.AddBool("bool", true);
  file.AddString("string", "text");
  file.AddStrings("strings", {"a", "", "ccc"});
  file.AddI32s("i32s", {-1, 2});
  file.AddRaw("u64", 10, Length(~0ull));
  ASSERT_TRUE(OpenContainer(file.Build()).ok());
  const auto opened = *GgufFile::Open(Path());
  EXPECT_EQ(**opened->Int("u32"), 7);
  EXPECT_EQ(**opened->Number("f32"), 1e-5);  // the decimal meant, not the float's own digits
  EXPECT_EQ(**opened->Bool("bool"), true);
  EXPECT_EQ(**opened->String("string"), "text");
  EXPECT_THAT(*opened->Strings("strings"), ::testing::ElementsAre("a", "", "ccc"));
  EXPECT_THAT(*opened->Ints("i32s"), ::testing::ElementsAre(-1, 2));
  EXPECT_FALSE(opened->Int("absent")->has_value());
  for (const char* key : {"u64", "f32", "string", "strings"}) EXPECT_FALSE(opened->Int(key).ok());
  EXPECT_FALSE(opened->String("u32").ok());
  EXPECT_FALSE(opened->Bool("u32").ok());
  EXPECT_FALSE(opened->Strings("i32s").ok());
  EXPECT_FALSE(opened->Ints("strings").ok());
}

TEST_F(GgufTest, TheSameModelInEveryTypeIsTheFoldersModel) {
  TinyModelOptions options;
  const std::string folder = JoinPath(folder_.path(), "hf");
  ASSERT_TRUE(WriteTinyModel(folder, options).ok());
  const auto expected = OpenModelFiles(folder);
  ASSERT_TRUE(expected.ok()) << expected.status();
  // Half a step of a 4-bit, an 8-bit and an 11-bit grid over values up to about 0.6.
  for (const auto& [type, error] : std::vector<std::pair<std::string, float>>{
           {"F32", 0.0f}, {"F16", 3e-4f}, {"Q8_0", 3e-3f}, {"Q4_1", 5e-2f}}) {
    SCOPED_TRACE(type);
    ASSERT_TRUE(WriteTinyGguf(Path(), options, type).ok());
    auto model = OpenModelFiles(Path());
    ASSERT_TRUE(model.ok()) << model.status();
    model->config.dtype = expected->config.dtype;  // a GGUF names none
    EXPECT_EQ(model->config, expected->config);
    ASSERT_EQ(model->weights->tensors().size(), expected->weights->tensors().size());
    double moved = 0;
    for (const TensorInfo& tensor : expected->weights->tensors()) {
      std::vector<float> want(tensor.Count());
      std::vector<float> got(tensor.Count());
      ASSERT_TRUE(expected->weights->ReadF32(tensor.name, absl::MakeSpan(want)).ok());
      ASSERT_TRUE(model->weights->ReadF32(tensor.name, absl::MakeSpan(got)).ok());
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_NEAR(got[i], want[i], error) << tensor.name << " " << i;
        moved += std::abs(got[i] - want[i]);
      }
    }
    EXPECT_EQ(moved == 0, type == "F32");
  }
}

std::string WithKey(const std::string& key, uint32_t type, const std::string& value) {
  GgufBuilder file;
  file.AddRaw(key, type, value);
  return file.Build();
}

std::string WithTensor(const std::vector<int64_t>& shape, uint32_t type, size_t bytes,
                       int64_t offset_error = 0) {
  GgufBuilder file;
  file.AddTensor("t", shape, type, std::string(bytes, 'x'), offset_error);
  return file.Build();
}

std::string WithTwoTensors(const std::string& second, int64_t offset_error) {
  GgufBuilder file;
  file.AddTensor("t", {1}, 0, "1234");
  file.AddTensor(second, {1}, 0, "1234", offset_error);
  return file.Build();
}

TEST_F(GgufTest, RefusesHostileContainers) {
  const std::string huge = Length(1ull << 62);
  const std::string wraps = Length((1ull << 61) + 1);  // times 8 is 8
  // Counts that the builder does not write: they are negative as what it takes.
  const auto with_counts = [](uint64_t tensors, uint64_t keys) {
    std::string file = GgufBuilder().Build();
    return file.replace(8, 16, Length(tensors) + Length(keys));
  };
  GgufBuilder twice;
  twice.AddU32("key", 1);
  twice.AddU32("key", 2);
  const struct {
    const char* says;
    std::string bytes;
  } cases[] = {
      {"does not begin", "GGML" + std::string(60, '\0')},
      {"does not begin", ""},
      {"version 1", GgufBuilder().Build(1)},
      {"version 50331648", GgufBuilder().Build(3u << 24)},  // big endian
      {"limits", GgufBuilder().Build(3, 1ll << 40, 0)},
      {"limits", GgufBuilder().Build(3, 0, 1ll << 40)},
      {"announces 9223372036854775808 tensors", with_counts(1ull << 63, 0)},
      {"9223372036854775808 metadata keys", with_counts(0, 1ull << 63)},
      {"announces 18446744073709551615 tensors", with_counts(~0ull, ~0ull)},
      {"has 0 bytes", GgufBuilder().Build(3, 0, 3)},
      {"has 0 bytes", WithKey("", 4, Word(1))},
      {"truncated", WithKey("string", 8, huge + "x")},
      {"truncated", WithKey("array", 9, Word(8) + huge + "x")},
      {"truncated", WithKey("array", 9, Word(12) + wraps)},
      {"truncated", WithKey("array", 9, Word(12) + Length(1ull << 61))},  // times 8 is 0
      {"truncated", WithKey("array", 9, Word(8) + Length(1ull << 61))},
      {"truncated", WithKey("array", 9, Word(0) + Length(~0ull))},
      {"nested", WithKey("array", 9, Word(9) + Length(1ull << 61))},
      {"nested", WithKey("array", 9, Word(9) + Length(1) + Word(4) + Length(0))},
      {"unknown type 77", WithKey("key", 77, "xxxxxxxx")},
      {"twice", twice.Build()},
      {"general.alignment is 3", WithKey("general.alignment", 4, Word(3))},
      {"general.alignment is 0", WithKey("general.alignment", 4, Word(0))},
      {"dimension of 0", WithTensor({4, 0}, 0, 0)},
      {"larger than any memory", WithTensor({1ll << 40, 1ll << 40}, 0, 0)},
      {"larger than any memory", WithTensor({-1}, 0, 0)},
      {"has 0 dimensions", WithTensor({}, 0, 0)},
      {"has 5 dimensions", WithTensor({1, 1, 1, 1, 1}, 0, 4)},
      {"unknown type 99", WithTensor({1}, 99, 4)},
      {"has type Q2_K", WithTensor({256}, 10, 84)},
      {"whole blocks", WithTensor({32, 33}, 8, 34 * 33)},
      {"past the end", WithTensor({1000}, 0, 4)},
      {"offset 32 where 0", WithTensor({1}, 0, 4, 32)},
      {"stands twice", WithTwoTensors("t", 0)},
      {"offset 0 where 32", WithTwoTensors("u", -32)},  // an overlap
  };
  for (const auto& test : cases) {
    const absl::Status status = OpenContainer(test.bytes);
    EXPECT_FALSE(status.ok()) << test.says;
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.says));
    ExpectClear(status);
  }
}

TEST_F(GgufTest, EveryTruncationIsOneClearLine) {
  const std::string whole = TinyFile(Path(), "Q8_0");
  ASSERT_TRUE(Open(whole).ok());
  // Every length through the header, then wider steps through the data.
  for (size_t size = 0; size + 32 < whole.size(); size += size < 700 ? 1 : 61) {
    const absl::Status status = Open(whole.substr(0, size));
    ASSERT_FALSE(status.ok()) << "cut to " << size;
    ExpectClear(status);
  }
}

TEST_F(GgufTest, RandomDamageNeverCrashes) {
  const std::string whole = TinyFile(Path(), "Q4_1");
  RandomStream random(99);
  size_t refused = 0;
  for (int round = 0; round < 700; ++round) {
    std::string bytes = whole;
    // Mostly the counts, lengths and types of the first kilobytes; a byte or a whole word at a
    // time.
    const size_t range = random.NextBelow(4) == 0 ? bytes.size() - 8 : 9000;
    for (uint64_t n = random.NextBelow(3) + 1; n > 0; --n) {
      const size_t at = random.NextBelow(range);
      if (random.NextBelow(2) == 0) {
        bytes[at] = static_cast<char>(random.Next32());
      } else {
        bytes.replace(at, 8, Length(random.Next64() >> random.NextBelow(64)));
      }
    }
    std::ofstream(Path(), std::ios::binary | std::ios::trunc) << bytes;
    const auto model = OpenModelFiles(Path());
    if (!model.ok()) {
      ++refused;
      ExpectClear(model.status());
      continue;
    }
    for (const TensorInfo& tensor : model->weights->tensors()) {
      std::vector<float> values(tensor.Count());
      ASSERT_TRUE(model->weights->ReadF32(tensor.name, absl::MakeSpan(values)).ok());
    }
    EXPECT_TRUE(model->tokenizer->Encode("some text, 12 <|endoftext|>").ok());
  }
  EXPECT_GT(refused, 150u);  // the damage does reach what is checked
}

TEST_F(GgufTest, RefusesByNameWhatTheModelNeeds) {
  const std::string whole = TinyFile(Path(), "F32");
  const struct {
    const char* from;
    const char* to;  // of the same length
    const char* says;
  } cases[] = {
      {"\x05\0\0\0\0\0\0\0llama", "\x05\0\0\0\0\0\0\0qwen2", "qwen2"},
      {"gpt2", "bert", "bert"},
      {"smollm", "tekken", "tekken"},
      {"llama.block_count", "llama.block_c0unt", "llama.block_count"},
      {"blk.0.attn_q.weight", "blk.0.attn_z.weight", "attn_q"},
      {"blk.0.attn_q.weight", "blk.9.attn_q.weight", "attn_q"},
      {"llama.rope.freq_base", "llama.rope.freq_bas3", ""},
      {"tokenizer.ggml.tokens", "tokenizer.ggml.t0kens", "tokenizer.ggml.tokens"},
  };
  for (const auto& test : cases) {
    std::string bytes = whole;
    const std::string from(test.from, test.from[0] == 5 ? 13 : strlen(test.from));
    const std::string to(test.to, from.size());
    const size_t at = bytes.find(from);
    ASSERT_NE(at, std::string::npos) << test.from;
    bytes.replace(at, from.size(), to);
    const absl::Status status = Open(bytes);
    if (*test.says == '\0') {  // an optional key
      EXPECT_TRUE(status.ok()) << status;
      continue;
    }
    EXPECT_FALSE(status.ok()) << test.to;
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.says));
    ExpectClear(status);
  }
}

}  // namespace
}  // namespace stillhouse
