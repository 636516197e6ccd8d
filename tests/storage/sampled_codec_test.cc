#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/escaping.h"
#include "common/random.h"
#include "common/status.h"
#include "storage/codec.h"
#include "storage/codec/range_coder.h"
#include "tests/storage/section_fixtures.h"

namespace stillhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr Instructions kBoth[] = {Instructions::kBest, Instructions::kPortable};

void ExpectRoundTrip(const SampledRows& rows, uint32_t vocabulary) {
  const auto count = static_cast<uint32_t>(rows.rows());
  const std::string payload = EncodeSampled(rows, 0, count);
  for (const Instructions instructions : kBoth) {
    SampledRows decoded;
    decoded.draws = rows.draws;
    SH_CHECK_OK(DecodeSampled(payload, count, vocabulary, &decoded, instructions));
    EXPECT_EQ(decoded.offsets, rows.offsets);
    EXPECT_EQ(decoded.ids, rows.ids);
    EXPECT_EQ(decoded.counts, rows.counts);
  }
}

TEST(RangeCoderTest, SymbolsComeBackWhateverTheirOrder) {
  RandomStream random(5);
  for (const double skew : {1.0, 3.0, 40.0}) {
    for (const int length : {0, 1, 2, 7, 5000}) {
      std::vector<uint32_t> symbols(length);
      for (uint32_t& s : symbols) {
        s = static_cast<uint32_t>(kSymbols * std::pow(random.NextUniform(), skew));
      }
      RangeEncoder encoder;
      std::array<SymbolModel, 2> models;
      for (size_t i = 0; i < symbols.size(); ++i) encoder.Put(&models[i % 2], symbols[i]);
      const std::string bytes = encoder.Finish();
      RangeDecoder<false> best(bytes);
      RangeDecoder<true> portable(bytes);
      std::array<SymbolModel, 2> best_models, portable_models;
      for (size_t i = 0; i < symbols.size(); ++i) {
        ASSERT_EQ(best.Get(&best_models[i % 2]), symbols[i]) << i;
        ASSERT_EQ(portable.Get(&portable_models[i % 2]), symbols[i]) << i;
      }
      EXPECT_TRUE(best.AtEnd());
      EXPECT_TRUE(portable.AtEnd());
    }
  }
}

TEST(RangeCoderTest, CostsLittleMoreThanTheEntropy) {
  RandomStream random(6);
  std::array<double, kSymbols> share{};
  RangeEncoder encoder;
  SymbolModel model;
  constexpr int kLength = 20000;
  for (int i = 0; i < kLength; ++i) {
    const auto s = static_cast<uint32_t>(kSymbols * std::pow(random.NextUniform(), 3));
    share[s] += 1.0 / kLength;
    encoder.Put(&model, s);
  }
  double bits = 0;
  for (const double p : share) bits -= p == 0 ? 0 : p * std::log2(p);
  EXPECT_LT(encoder.Finish().size() * 8.0 / kLength, bits + 0.03);
}

TEST(RangeCoderTest, MissingAndNeedlessBytesAreNoticed) {
  RangeEncoder encoder;
  SymbolModel model;
  for (uint32_t i = 0; i < 100; ++i) encoder.Put(&model, (i * 7 + 3) % kSymbols);
  const std::string bytes = encoder.Finish();
  for (const std::string& other :
       {bytes.substr(0, bytes.size() - 1), bytes.substr(0, 5), bytes + "a", bytes + '\0'}) {
    RangeDecoder<false> decoder(other);
    SymbolModel learns;
    for (int i = 0; i < 100; ++i) ASSERT_LT(decoder.Get(&learns), 16u);
    EXPECT_FALSE(decoder.AtEnd());
  }
}

TEST(MagnitudeTest, EveryNumberHasOneSymbol) {
  for (uint32_t value = 0; value < 1000; ++value) {
    const uint32_t symbol = Magnitude::SymbolOf(value);
    ASSERT_LT(symbol, 16u);
    if (symbol == 15) {
      ASSERT_GE(value, Magnitude::kOpenFrom);
    } else {
      ASSERT_GE(value, Magnitude::LeastOf(symbol));
      ASSERT_LT(value - Magnitude::LeastOf(symbol), 1u << Magnitude::BitsOf(symbol));
    }
  }
}

SampledRows GoldenRows() {
  SampledRows rows;
  rows.draws = 5;
  rows.ids = {3, 10, 49151, 0, 3, 10};
  rows.counts = {1, 3, 1, 5, 1, 4};
  rows.offsets = {0, 3, 4, 6};
  return rows;
}

TEST(SampledCodecTest, GoldenBytes) {
  const std::string payload = EncodeSampled(GoldenRows(), 0, 3);
  EXPECT_EQ(absl::BytesToHexString(payload), "04040501cd85c4737ff53f");
  ExpectRoundTrip(GoldenRows(), 49152);
}

// The bytes of a whole part, so that no prior, context or rounding moves unnoticed.
TEST(SampledCodecTest, GoldenDigestOfALongPart) {
  const std::string payload = EncodeSampled(MakeSampled(400, 50, 49152, 11), 0, 400);
  EXPECT_EQ(Sha256Of(payload).Hex(),
            "c8b65368f64f145c945f594d3512f04f13c3bf29463de08676de82a8b6e92bd3");
}

TEST(SampledCodecTest, RoundTripsAnyVocabularyAndDraws) {
  for (const uint32_t vocabulary : {1u, 2u, 300u, 49152u, 152064u, kVocabularyMax}) {
    for (const uint32_t draws : {1u, 50u, 1000u}) {
      const SampledRows rows = MakeSampled(20, draws, vocabulary, draws);
      ExpectRoundTrip(rows, vocabulary);
      SampledRows decoded;
      decoded.draws = draws;
      SH_CHECK_OK(DecodeSampled(EncodeSampled(rows, 0, 8), 8, vocabulary, &decoded));
      SH_CHECK_OK(DecodeSampled(EncodeSampled(rows, 8, 20), 12, vocabulary, &decoded));
      EXPECT_EQ(decoded.ids, rows.ids);
      EXPECT_EQ(decoded.counts, rows.counts);
      EXPECT_EQ(decoded.offsets, rows.offsets);
    }
  }
}

TEST(SampledCodecTest, RoundTripsRowsOfEveryShape) {
  RandomStream random(8);
  for (int round = 0; round < 60; ++round) {
    SampledRows rows;
    rows.draws = 1 + static_cast<uint32_t>(random.NextBelow(round % 3 == 0 ? 65535 : 60));
    const auto row_count =
        1 +
        random.NextBelow(std::min<uint64_t>(
            40,
            SectionSpec{.kind = SectionKind::kLogitsSampled, .draws = rows.draws}.RowsPerPart()));
    const uint64_t spread = 1 + random.NextBelow(round % 2 == 0 ? 3 : 100000);
    for (uint64_t row = 0; row < row_count; ++row) {
      int32_t id = static_cast<int32_t>(random.NextBelow(spread));
      for (uint32_t left = rows.draws; left > 0;) {
        uint32_t count = 1 + static_cast<uint32_t>(random.NextBelow(left));
        if (rows.ids.size() - rows.offsets.back() == 30) count = left;
        rows.ids.push_back(id);
        rows.counts.push_back(static_cast<uint16_t>(count));
        left -= count;
        id += 1 + static_cast<int32_t>(random.NextBelow(spread));
      }
      rows.offsets.push_back(static_cast<uint32_t>(rows.ids.size()));
    }
    ExpectRoundTrip(rows, kVocabularyMax);
  }
}

TEST(SampledCodecTest, AConstantRowCostsNextToNothing) {
  SampledRows rows;
  rows.draws = 50;
  for (uint32_t row = 0; row < 500; ++row) {
    rows.ids.push_back(7);
    rows.counts.push_back(50);
    rows.offsets.push_back(row + 1);
  }
  EXPECT_LT(EncodeSampled(rows, 0, 500).size(), 12u);
  ExpectRoundTrip(rows, 8);
}

TEST(SampledCodecTest, IdBeyondTheVocabularyIsRefused) {
  SampledRows decoded;
  decoded.draws = 5;
  const absl::Status status = DecodeSampled(EncodeSampled(GoldenRows(), 0, 3), 3, 49151, &decoded);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("id 49151 of a vocabulary of 49151"));
  EXPECT_TRUE(decoded.ids.empty());
  EXPECT_THAT(decoded.offsets, ElementsAre(0u));
}

TEST(SampledCodecTest, AnotherCodecIsNamed) {
  std::string payload = EncodeSampled(GoldenRows(), 0, 3);
  payload[0] = 2;
  SampledRows decoded;
  decoded.draws = 5;
  const absl::Status status = DecodeSampled(payload, 3, 49152, &decoded);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("codec 2 is not known to this version"));
}

TEST(SampledCodecTest, OtherRowCountsAndDrawsAreRefused) {
  const std::string payload = EncodeSampled(GoldenRows(), 0, 3);
  for (const uint32_t rows : {1u, 2u, 500000u, 0xffffffffu}) {
    SampledRows decoded;
    decoded.draws = 5;
    EXPECT_FALSE(DecodeSampled(payload, rows, 49152, &decoded).ok()) << rows;
    EXPECT_EQ(decoded.rows(), 0u);
  }
  SampledRows decoded;
  decoded.draws = 2;
  EXPECT_FALSE(DecodeSampled(payload, 3, 49152, &decoded).ok());
}

// Damage never crashes, and both twins answer alike.
TEST(SampledCodecTest, DamagedPayloadsAreAnsweredAlike) {
  const std::string whole = EncodeSampled(MakeSampled(60, 50, 49152, 1), 0, 60);
  RandomStream random(9);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string payload = whole;
    for (uint64_t flips = 1 + random.NextBelow(4); flips > 0; --flips) {
      payload[1 + random.NextBelow(payload.size() - 1)] ^=
          static_cast<char>(1 << random.NextBelow(8));
    }
    if (random.NextBelow(3) == 0) payload.resize(random.NextBelow(payload.size() + 1));
    SampledRows best, portable;
    best.draws = portable.draws = 50;
    const absl::Status a = DecodeSampled(payload, 60, 49152, &best);
    const absl::Status b = DecodeSampled(payload, 60, 49152, &portable, Instructions::kPortable);
    ASSERT_EQ(a, b);
    ASSERT_EQ(best.ids, portable.ids);
    ASSERT_EQ(best.counts, portable.counts);
    ASSERT_EQ(best.rows(), a.ok() ? 60u : 0u);
    refused += !a.ok();
  }
  EXPECT_GT(refused, 2000);
}

// What a set of ids costs when nothing is known of them, with the counts as they come.
TEST(SampledCodecTest, BytesPerRow) {
  const SampledRows rows = MakeSampled(500, 50, 49152, 7);
  const double bytes = EncodeSampled(rows, 0, 500).size() / 500.0;
  const double ids = rows.ids.size() / 500.0;
  RecordProperty("bytes_per_row", std::to_string(bytes));
  EXPECT_LT(bytes, (ids * (std::log2(49152 / ids) + 1.44) + 30) / 8);
}

}  // namespace
}  // namespace stillhouse
