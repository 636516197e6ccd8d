#include "formats/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "common/byte_io.h"
#include "common/tensor_view.h"
#include "formats/float_codec.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

class SafetensorsTest : public ::testing::Test {
 protected:
  std::string Path() const { return JoinPath(folder_.path(), "f.safetensors"); }

  absl::Status OpenBytes(const std::string& bytes) {
    EXPECT_TRUE(WriteFileAtomically(Path(), bytes).ok());
    return SafetensorsFile::Open(Path()).status();
  }
  absl::Status OpenHeader(const std::string& header, size_t data_bytes) {
    ByteWriter out;
    out.Put<uint64_t>(header.size());
    out.PutRaw(header);
    return OpenBytes(out.bytes() + std::string(data_bytes, '\1'));
  }

  TempFolder folder_ = *TempFolder::Create();
};

TEST_F(SafetensorsTest, ReadsWhatItWrote) {
  const std::vector<float> values = {1.0f, -2.5f, 3.25f, 1e-3f, 65504.0f, 0.0f};
  {
    auto writer = SafetensorsWriter::Create(
        Path(),
        {{"a", "F32", {2, 3}}, {"b", "BF16", {6}}, {"c", "F16", {3, 2}}, {"d", "I64", {1}}});
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE((*writer)->AppendF32(values, "F32").ok());
    ASSERT_TRUE((*writer)->AppendF32(values, "BF16").ok());
    ASSERT_TRUE((*writer)->AppendF32(values, "F16").ok());
    ASSERT_TRUE((*writer)->Append(absl::string_view("12345678")).ok());
    ASSERT_TRUE((*writer)->Close().ok());
  }
  const auto file = SafetensorsFile::Open(Path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors().size(), 4u);
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
  EXPECT_EQ((*file)->Find("a")->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ((*file)->Find("x"), nullptr);
  std::vector<float> read(6);
  ASSERT_TRUE((*file)->ReadF32(*(*file)->Find("a"), absl::MakeSpan(read)).ok());
  EXPECT_EQ(read, values);
  for (const char* name : {"b", "c"}) {
    ASSERT_TRUE((*file)->ReadF32(*(*file)->Find(name), absl::MakeSpan(read)).ok());
    for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(read[i], values[i], std::abs(values[i]) / 200);
  }
  std::vector<float> one(1);
  EXPECT_EQ((*file)->ReadF32(*(*file)->Find("d"), absl::MakeSpan(one)).code(),
            absl::StatusCode::kUnimplemented);
}

TEST_F(SafetensorsTest, WriterHoldsTheCallerToItsHeader) {
  auto writer = SafetensorsWriter::Create(Path(), {{"a", "F32", {2}}});
  ASSERT_TRUE(writer.ok());
  EXPECT_EQ((*writer)->Close().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ((*writer)->Append("123456789").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(SafetensorsWriter::Create(Path(), {{"a", "F32", {2}}}).status().code(),
            absl::StatusCode::kAlreadyExists);
  const std::string other = Path() + "2";
  EXPECT_FALSE(SafetensorsWriter::Create(other, {{"a", "F32", {1}}, {"a", "F32", {1}}}).ok());
  EXPECT_FALSE(SafetensorsWriter::Create(other, {{"a", "F33", {1}}}).ok());
  EXPECT_FALSE(SafetensorsWriter::Create(other, {{"a", "F32", {1ll << 62, 8}}}).ok());
}

TEST_F(SafetensorsTest, RefusesHostileHeaders) {
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  ASSERT_TRUE(OpenHeader(good, 8).ok());
  const struct {
    std::string header;
    size_t data;
    const char* says;
  } cases[] = {
      {good, 7, "truncated"},
      {good, 9, "after the last tensor"},
      {"", 0, "not a JSON object"},
      {"[]", 0, "not a JSON object"},
      {"{", 0, "JSON"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
       R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
       8, "twice"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
       R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
       12, "overlap"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
       R"("b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}})",
       20, "hole"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12, "hole"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8, "do not match"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0,
       "do not match"},
      {R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]}})", 8, "natural"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, "natural"},
      {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8, "natural"},
      {R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}})", 8, "at most"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8, "do not match"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8, "two natural"},
      {R"({"a":{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}})", 8, "Q9"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8, "exactly"},
      {R"({"a":[]})", 0, "exactly"},
      {R"({"__metadata__":{"k":1}})", 0, "__metadata__"},
      {std::string(5000, '{'), 0, "JSON"},
  };
  for (const auto& test : cases) {
    const absl::Status status = OpenHeader(test.header, test.data);
    EXPECT_FALSE(status.ok()) << test.header.substr(0, 200);
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.says));
    EXPECT_THAT(std::string(status.message()), HasSubstr(Path()));
  }
}

TEST_F(SafetensorsTest, RefusesImpossibleHeaderLengths) {
  EXPECT_THAT(std::string(OpenBytes("").message()), HasSubstr("too few"));
  EXPECT_THAT(std::string(OpenBytes("1234567").message()), HasSubstr("too few"));
  EXPECT_THAT(std::string(OpenBytes(std::string(8, '\xff')).message()), HasSubstr("limit"));
  EXPECT_THAT(std::string(OpenBytes(std::string("\x10\0\0\0\0\0\0\0{}", 10)).message()),
              HasSubstr("truncated"));
  EXPECT_EQ(SafetensorsFile::Open(Path() + "x").status().code(), absl::StatusCode::kNotFound);
}

TEST(FloatCodecTest, EveryHalfIsReadExactlyAndWrittenBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = HalfToFloat(static_cast<uint16_t>(bits));
    const float expected = F16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(value))));
      continue;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(value), std::bit_cast<uint32_t>(expected)) << bits;
    ASSERT_EQ(FloatToHalf(value), bits);
  }
}

TEST(FloatCodecTest, HalvesRoundToNearestEven) {
  EXPECT_EQ(FloatToHalf(1.0f + 0x1p-11f), 0x3c00);      // a tie, down to even
  EXPECT_EQ(FloatToHalf(1.0f + 3 * 0x1p-11f), 0x3c02);  // a tie, up to even
  EXPECT_EQ(FloatToHalf(1.0f + 0x1.1p-11f), 0x3c01);
  EXPECT_EQ(FloatToHalf(65519.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-0x1p-25f), 0x8000);
  EXPECT_EQ(FloatToHalf(0x1.8p-25f), 0x0001);
}

}  // namespace
}  // namespace stillhouse
