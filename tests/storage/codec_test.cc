#include "storage/codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/escaping.h"
#include "common/random.h"
#include "common/status.h"
#include "common/tensor_view.h"
#include "storage/bit_io.h"
#include "storage/codec/top_tokens.h"
#include "tests/storage/section_fixtures.h"

namespace stillhouse {
namespace {

std::string Hex(absl::string_view bytes) { return std::string(absl::BytesToHexString(bytes)); }

// The identity of everything stored: a change here orphans every cache.
TEST(SectionKeyTest, IsThatOfTheFormat) {
  const SectionSpec sampled{.kind = SectionKind::kLogitsSampled, .draws = 50};
  const Digest key = SectionKey(Sha256Of("teacher"), Sha256Of("document"), sampled);
  EXPECT_EQ(key.Hex(), "4017733c5a6cb26fc0b7b9bd3a74e356da6f8a7390adf7973a7bec40ceb0deb9");
  EXPECT_NE(key, SectionKey(Sha256Of("document"), Sha256Of("teacher"), sampled));
  EXPECT_NE(key, SectionKey(Sha256Of("teacher"), Sha256Of("document"), SectionSpec{}));
}

// Sections of every kind.
constexpr const char* kSectionTexts[] = {
    "stats",
    "logits/sampled?draws=50",
    "logits/topk?k=16",
    "logits/topp?p=0.95&k_max=16",
    "hidden/last?hidden_size=70&dtype=bf16",
    "hidden/last?hidden_size=70&dtype=int8",
    "hidden/12?hidden_size=70&dtype=bf16",
    "hidden/0?hidden_size=70&dtype=int8",
};

TEST(BitIoTest, ReaderGivesBackWhatTheWriterPut) {
  std::string bytes;
  BitWriter writer(bytes);
  RandomStream random(1);
  std::vector<std::pair<uint64_t, int>> put;
  for (int i = 0; i < 2000; ++i) {
    const int width = static_cast<int>(random.NextBelow(57));
    put.push_back({random.Next64() & ((1ull << width) - 1), width});
    writer.Put(put.back().first, width);
    writer.PutUnary(i % 150);
  }
  writer.Finish();
  BitReader reader(bytes);
  for (int i = 0; i < 2000; ++i) {
    ASSERT_EQ(reader.Get(put[i].second), put[i].first);
    ASSERT_EQ(reader.GetUnary(150), static_cast<uint64_t>(i % 150));
  }
  EXPECT_TRUE(reader.AtEnd());
  reader.Get(20);
  EXPECT_FALSE(reader.ok());
}

TEST(StatsCodecTest, GoldenBytes) {
  StatsRows rows;
  rows.entropy = {1.5f, 2.25f, 0.0f};
  rows.logsumexp = {20.5f, 19.0f, 21.125f};
  rows.top1_id = {7, 49151, 0};
  rows.top1_logprob = {-0.5f, -1.0f, -2.0f};
  rows.next_logprob = {-0.5f, -17.25f, -3.0f};
  const std::string payload = EncodeStats(rows, 0, 3);
  EXPECT_EQ(Hex(payload),
            "01000e00180009000080c0090e00180000200200100700ffbf0000ff7f0d0018000200ffcf08"
            "11000c0100009003");
  StatsRows decoded;
  SH_CHECK_OK(DecodeStats(payload, 3, &decoded));
  EXPECT_EQ(decoded.entropy, rows.entropy);
  EXPECT_EQ(decoded.logsumexp, rows.logsumexp);
  EXPECT_EQ(decoded.top1_id, rows.top1_id);
  EXPECT_EQ(decoded.top1_logprob, rows.top1_logprob);
  EXPECT_EQ(decoded.next_logprob, rows.next_logprob);
}

TEST(StatsCodecTest, ErrorStaysBelowTheStatedBound) {
  const StatsRows rows = MakeStats(700, 3);
  StatsRows decoded;
  SH_CHECK_OK(DecodeStats(EncodeStats(rows, 0, 300), 300, &decoded));
  SH_CHECK_OK(DecodeStats(EncodeStats(rows, 300, 700), 400, &decoded));
  ASSERT_EQ(decoded.rows(), 700u);
  for (int i = 0; i < 700; ++i) {
    EXPECT_LE(std::abs(decoded.entropy[i] - rows.entropy[i]), kStatsErrorMax);
    EXPECT_LE(std::abs(decoded.logsumexp[i] - rows.logsumexp[i]), kStatsErrorMax);
    EXPECT_EQ(decoded.top1_id[i], rows.top1_id[i]);
    EXPECT_LE(std::abs(decoded.top1_logprob[i] - rows.top1_logprob[i]), kStatsErrorMax);
    EXPECT_LE(std::abs(decoded.next_logprob[i] - rows.next_logprob[i]), kStatsErrorMax);
  }
  // Decoded values encode to themselves, so equality of decoded values is transitive.
  EXPECT_EQ(EncodeStats(decoded, 0, 700), EncodeStats(rows, 0, 700));
  EXPECT_LT(EncodeStats(rows, 0, 700).size(), 12u * 700);
}

TEST(StatsCodecTest, AbsurdRowCountsOfAConstantPayloadAreRefused) {
  StatsRows rows;
  rows.entropy = rows.logsumexp = rows.top1_logprob = rows.next_logprob = {0.0f};
  rows.top1_id = {0};
  StatsRows decoded;
  EXPECT_EQ(DecodeStats(EncodeStats(rows, 0, 1), 0xffffffffu, &decoded).code(),
            absl::StatusCode::kDataLoss);
}

TEST(StatsCodecTest, ValuesThatNoEncoderTakesAreRefused) {
  StatsRows rows;
  rows.entropy = rows.logsumexp = rows.top1_logprob = rows.next_logprob = {0.0f};
  rows.top1_id = {0};
  std::string payload = EncodeStats(rows, 0, 1);
  ASSERT_EQ(Hex(payload), "0100000000000000000000");
  payload = payload.substr(0, 1) + "\x82\x80\x80\x80\x20" + payload.substr(2);  // 2^32 + 1
  StatsRows decoded;
  EXPECT_THAT(std::string(DecodeStats(payload, 1, &decoded).message()),
              testing::HasSubstr("a value beyond the largest magnitude"));
  payload[1] = '\x80';
  SH_CHECK_OK(DecodeStats(payload, 1, &decoded));
  EXPECT_EQ(decoded.entropy[0], kStatsMagnitudeMax);
}

TEST(HiddenCodecTest, GoldenBytes) {
  HiddenRows rows;
  rows.hidden_size = 2;
  rows.values = {FloatToBf16(9.0f), FloatToBf16(1.0f), FloatToBf16(-2.0f), 0x0001};
  EXPECT_EQ(Hex(EncodeHidden(rows, 1, 2)), "0300c00100");
}

TEST(HiddenCodecTest, KeepsEveryBit) {
  const HiddenRows rows = MakeHidden(7, 33, 5);
  const std::string payload = EncodeHidden(rows, 2, 7);
  EXPECT_EQ(payload.size(), 1u + 5 * 33 * 2);
  HiddenRows decoded;
  decoded.hidden_size = 33;
  SH_CHECK_OK(DecodeHidden(payload, 5, &decoded));
  EXPECT_EQ(decoded.values, std::vector<uint16_t>(rows.values.begin() + 66, rows.values.end()));
}

TEST(HiddenCodecTest, WrongSizesAreRefused) {
  HiddenRows decoded;
  decoded.hidden_size = 8;
  const std::string payload = EncodeHidden(MakeHidden(2, 8, 1), 0, 2);
  EXPECT_FALSE(DecodeHidden(payload, 3, &decoded).ok());
  EXPECT_FALSE(DecodeHidden(payload, 1, &decoded).ok());
  EXPECT_FALSE(DecodeHidden(payload.substr(0, payload.size() - 1), 2, &decoded).ok());
  EXPECT_FALSE(DecodeHidden("", 0xffffffffu, &decoded).ok());
}

HiddenRows MakeOutliers(int rows, uint32_t width) {
  RandomStream random(4);
  HiddenRows hidden;
  hidden.hidden_size = width;
  for (uint32_t i = 0; i < rows * width; ++i) {
    hidden.values.push_back(
        FloatToBf16(static_cast<float>(random.NextNormal() * (i % 97 == 5 ? 2000 : 1))));
  }
  return hidden;
}

TEST(HiddenInt8CodecTest, GoldenBytes) {
  HiddenRows rows;
  rows.hidden_size = 3;
  rows.values = {FloatToBf16(127.0f), FloatToBf16(-1.0f), FloatToBf16(0.4f), 0, 0, 0x8000};
  EXPECT_EQ(Hex(EncodeHiddenInt8(rows, 0, 2)), "06803f00007fff00000000");
}

// Half a step, of a scale rounded up to bfloat16, is 0.00397 of the largest magnitude; rounding the
// result to bfloat16 adds at most 2^-8 of it.
TEST(HiddenInt8CodecTest, ErrorStaysBelowTheStatedBound) {
  for (const uint32_t width : {1u, 64u, 100u, 576u}) {
    const HiddenRows rows = MakeOutliers(9, width);
    for (const Instructions instructions : {Instructions::kBest, Instructions::kPortable}) {
      HiddenRows decoded;
      decoded.hidden_size = width;
      SH_CHECK_OK(DecodeHiddenInt8(EncodeHiddenInt8(rows, 0, 4), 4, &decoded, instructions));
      SH_CHECK_OK(DecodeHiddenInt8(EncodeHiddenInt8(rows, 4, 9), 5, &decoded, instructions));
      ASSERT_EQ(decoded.values.size(), rows.values.size());
      for (uint32_t i = 0; i < rows.values.size(); ++i) {
        const uint32_t first = i - i % width % 64,
                       last = std::min(first + 64, i - i % width + width);
        float magnitude = 0;
        for (uint32_t k = first; k < last; ++k) {
          magnitude = std::max(magnitude, std::abs(Bf16ToFloat(rows.values[k])));
        }
        ASSERT_LE(std::abs(Bf16ToFloat(decoded.values[i]) - Bf16ToFloat(rows.values[i])),
                  0.008 * magnitude)
            << width << " " << i;
      }
    }
  }
}

TEST(HiddenInt8CodecTest, BothTwinsGiveTheSameBitsAndRefuseTheSame) {
  const std::string whole = EncodeHiddenInt8(MakeOutliers(5, 200), 0, 5);
  RandomStream random(2);
  for (int round = 0; round < 500; ++round) {
    std::string payload = whole;
    if (round > 0) payload[random.NextBelow(payload.size())] ^= 1 << random.NextBelow(8);
    HiddenRows best, portable;
    best.hidden_size = portable.hidden_size = 200;
    ASSERT_EQ(DecodeHiddenInt8(payload, 5, &best),
              DecodeHiddenInt8(payload, 5, &portable, Instructions::kPortable));
    ASSERT_EQ(best.values, portable.values);
    for (const uint16_t value : best.values) ASSERT_NE(value & 0x7f80, 0x7f80);
  }
  HiddenRows decoded;
  decoded.hidden_size = 200;
  EXPECT_FALSE(DecodeHiddenInt8(whole, 4, &decoded).ok());
  EXPECT_FALSE(DecodeHiddenInt8(whole.substr(0, whole.size() - 1), 5, &decoded).ok());
  std::string negative = whole;
  negative[2] ^= static_cast<char>(0x80);
  EXPECT_FALSE(DecodeHiddenInt8(negative, 5, &decoded).ok());
  EXPECT_TRUE(decoded.values.empty());
}

TEST(CanonicalValuesTest, ValuesThatAreNotFiniteAreRefused) {
  HiddenRows rows = MakeHidden(1, 4, 1);
  rows.values[2] = 0x7f80;  // infinity
  const SectionSpec spec{.kind = SectionKind::kHiddenLast, .hidden_size = 4};
  EXPECT_EQ(CanonicalValues(spec, EncodeHidden(rows, 0, 1), 1).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST(CanonicalValuesTest, PartsDoNotChangeThem) {
  for (const char* text : kSectionTexts) {
    const SectionSpec spec = *ParseSectionSpec(text);
    const SectionRows rows = MakeRows(spec, 10, 1);
    const std::string whole = *CanonicalValues(spec, EncodeSection(spec, rows, 0, 10), 10);
    EXPECT_EQ(whole, *CanonicalValues(spec, EncodeSection(spec, rows, 0, 4), 4) +
                         *CanonicalValues(spec, EncodeSection(spec, rows, 4, 10), 6))
        << text;
    SectionRows decoded = NoRows(spec);
    SH_CHECK_OK(DecodeSection(spec, EncodeSection(spec, rows, 0, 4), 4, 49152, &decoded));
    SH_CHECK_OK(DecodeSection(spec, EncodeSection(spec, rows, 4, 10), 6, 49152, &decoded));
    EXPECT_EQ(*CanonicalValues(decoded), whole) << text;
  }
}

TEST(CanonicalValuesTest, OfTheMostLikelyIds) {
  TopTokenRows rows;
  rows.ids = {3, 10};
  rows.levels = {20, 33};
  rows.residual_levels = {70};
  rows.offsets = {0, 2};
  EXPECT_EQ(
      Hex(*CanonicalValues(*ParseSectionSpec("logits/topk?k=2"), EncodeTopTokens(rows, 0, 1), 1)),
      "0200000003000000e20621bf0a000000718384bfb8410cc0");
}

// Levels that were never those of one distribution.
TEST(CanonicalValuesTest, ProbabilitiesThatDoNotSumToOneAreRefused) {
  TopTokenRows rows;
  rows.ids = {3, 10};
  rows.levels = {20, 20};
  rows.residual_levels = {20};
  rows.offsets = {0, 2};
  const SectionSpec spec = *ParseSectionSpec("logits/topk?k=2");
  for (const int level : {20, 255}) {
    rows.levels = {static_cast<uint8_t>(level), static_cast<uint8_t>(level)};
    const auto values = CanonicalValues(spec, EncodeTopTokens(rows, 0, 1), 1);
    EXPECT_EQ(values.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(values.status().message()), testing::HasSubstr("row 0 sum to "));
  }
}

// A payload is refused where another section's is expected.
TEST(CodecTest, PayloadsOfOtherSectionsAreRefused) {
  for (const char* have : kSectionTexts) {
    const SectionSpec spec = *ParseSectionSpec(have);
    const std::string payload = TestPayload(spec, 10, 1);
    for (const char* want : kSectionTexts) {
      const SectionSpec other = *ParseSectionSpec(want);
      const bool alike = payload[0] == TestPayload(other, 10, 1)[0];
      EXPECT_EQ(CanonicalValues(other, payload, 10).ok(), alike) << have << " as " << want;
    }
  }
}

// Damaged and random payloads: any answer but a crash, and nothing appended when refused.
TEST(CodecTest, MalformedPayloadsNeverCrash) {
  const std::vector<std::string> seeds = {EncodeStats(MakeStats(40, 1), 0, 40),
                                          EncodeSampled(MakeSampled(40, 50, 49152, 1), 0, 40),
                                          EncodeHidden(MakeHidden(40, 4, 1), 0, 40)};
  RandomStream random(9);
  int refused = 0;
  for (int round = 0; round < 6000; ++round) {
    std::string payload = seeds[round % 3];
    const int flips = 1 + static_cast<int>(random.NextBelow(4));
    for (int i = 0; i < flips; ++i) {
      payload[random.NextBelow(payload.size())] ^= static_cast<char>(1 << random.NextBelow(8));
    }
    if (random.NextBelow(3) == 0) payload.resize(random.NextBelow(payload.size() + 1));
    StatsRows stats;
    SampledRows sampled;
    sampled.draws = 50;
    HiddenRows hidden;
    hidden.hidden_size = 4;
    const bool a = DecodeStats(payload, 40, &stats).ok();
    const bool b = DecodeSampled(payload, 40, 49152, &sampled).ok();
    const bool c = DecodeHidden(payload, 40, &hidden).ok();
    EXPECT_EQ(stats.rows(), a ? 40u : 0u);
    EXPECT_EQ(sampled.rows(), b ? 40u : 0u);
    EXPECT_EQ(hidden.rows(), c ? 40u : 0u);
    refused += !a && !b && !c;
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace stillhouse
