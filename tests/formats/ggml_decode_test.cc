// Every tensor type of GGUF against golden/ggml_blocks.safetensors, which the `gguf` package made
// (tools/golden/ggml_blocks.py); with STILLHOUSE_GOLDEN_BLOCKS, against another file of that
// script.
#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/status.h"
#include "formats/gguf_writer.h"
#include "formats/safetensors.h"

namespace stillhouse {
namespace {

class GgmlDecodeTest : public ::testing::TestWithParam<const char*> {
 protected:
  GgmlDecodeTest() {
    const char* other = std::getenv("STILLHOUSE_GOLDEN_BLOCKS");
    auto file = SafetensorsFile::Open(
        other != nullptr
            ? std::string(other)
            : JoinPath(SH_TEST_SOURCE_DIR, "tests/formats/golden/ggml_blocks.safetensors"));
    SH_CHECK_OK(file);
    golden_ = *std::move(file);
  }
  const SafetensorsTensor& Find(const std::string& name) const {
    const SafetensorsTensor* tensor = golden_->Find(name);
    SH_CHECK(tensor != nullptr, name);
    return *tensor;
  }
  absl::string_view Bytes(const std::string& name) const { return golden_->Bytes(Find(name)); }
  std::vector<float> Values(const std::string& name) const {
    const SafetensorsTensor& tensor = Find(name);
    std::vector<float> values((tensor.end - tensor.begin) / sizeof(float));
    SH_CHECK_OK(golden_->ReadF32(tensor, absl::MakeSpan(values)));
    return values;
  }

  std::shared_ptr<const SafetensorsFile> golden_;
};

TEST_P(GgmlDecodeTest, IsBitForBitTheReference) {
  const std::string name = GetParam();
  const GgmlType* type = FindGgmlType(name);
  ASSERT_NE(type, nullptr);
  const std::vector<float> want = Values(name + ".values");
  std::vector<float> got(want.size(), -1);
  ASSERT_GE(want.size(), 12u * type->block);
  GgmlDecode(*type, Bytes(name + ".blocks"), absl::MakeSpan(got));
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i]))
        << i << ": " << got[i] << " is not " << want[i];
  }
}

class GgmlEncodeTest : public GgmlDecodeTest {};

TEST_P(GgmlEncodeTest, IsBitForBitTheReference) {
  const std::string name = GetParam();
  const std::vector<float> values = Values(name + ".from");
  const absl::string_view want = Bytes(name + ".encoded");
  std::string got(want.size(), '?');
  ASSERT_TRUE(GgmlEncode(*FindGgmlType(name), values, absl::MakeSpan(got)).ok());
  EXPECT_TRUE(got == want);
}

TEST_P(GgmlEncodeTest, RefusesWhatItCannotHold) {
  const GgmlType& type = *FindGgmlType(GetParam());
  std::vector<float> values(32, 1);
  std::string out(32 / type.block * type.bytes, '?');
  values[7] = 3.4e38f;  // rounds up in BF16 too
  EXPECT_EQ(GgmlEncode(type, values, absl::MakeSpan(out)).code(), absl::StatusCode::kOutOfRange);
}

INSTANTIATE_TEST_SUITE_P(Types, GgmlEncodeTest, ::testing::Values("F16", "BF16", "Q8_0"),
                         [](const auto& info) { return std::string(info.param); });

INSTANTIATE_TEST_SUITE_P(Types, GgmlDecodeTest,
                         ::testing::Values("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1",
                                           "Q4_K", "Q5_K", "Q6_K"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace stillhouse
