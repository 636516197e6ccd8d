#include "storage/record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/escaping.h"
#include "common/status.h"
#include "storage/job_object.h"
#include "tests/storage/section_fixtures.h"

namespace stillhouse {
namespace {

using testing::HasSubstr;

PartRecord TestRecord() {
  return {.key = {Sha256Of("section"), 512},
          .row_count = 3,
          .codec = 2,
          .table = 7,
          .origin = 9,
          .payload = "payload"};
}

std::string Hex(absl::string_view bytes) { return std::string(absl::BytesToHexString(bytes)); }

TEST(RecordTest, GoldenBytes) {
  EXPECT_EQ(Hex(EncodePartRecord(TestRecord())),
            "534872630102000007000000090000003fb45623cb3075a8af9a2f81ef3beaa4038541cd71f0"
            "8e4bf6c79c088f7a40260002000003000000070000007061796c6f6164ca5828340dccd482");
  EXPECT_EQ(EncodePartRecord(TestRecord()).size(), kRecordOverheadBytes + 7);
  Provenance origin = TestProvenance(SampledSpec(), 5);
  EXPECT_EQ(Hex(EncodeOriginRecord(origin)),
            "53486f7201176c6f676974732f73616d706c65643f64726177733d35301057a9604e04b274da"
            "5a4de0c8f4b4868d9b230989f8c8c6a28221143cc5a75564879f7d6b960a01909762d911a32d"
            "4582c20010c5641ee90278b644a9e3b5250500000008637075207465737415b455f64bc9624e");
  EXPECT_EQ(Hex(EncodeObjectHeader({3, 4, Sha256Of("abc")})),
            "53486f620103000000000000000400000000000000ba7816bf8f01cfea414140de5dae2223b0"
            "0361a396177a9cb410ff61f20015adfe777ae454b7fe37");
  EXPECT_EQ(Hex(EncodePieceRecord({4, 0, "abc"})),
            "5348706301040000000000000000000000030000006162633e3975c9e65d7127");
  EXPECT_EQ(Hex(EncodeIndexEntry({{300, 2}, 400, 20000})), "ac02029003a09c01");
  EXPECT_EQ(Hex(PlaceKey({1, 2})), "000000000000000100000002");
}

TEST(RecordTest, PartsParseBack) {
  const std::string bytes = EncodePartRecord(TestRecord());
  const PartRecord record = *ParsePartRecord(bytes);
  EXPECT_EQ(record.key, TestRecord().key);
  EXPECT_EQ(record.row_count, 3u);
  EXPECT_EQ(record.codec, 2);
  EXPECT_EQ(record.table, 7u);
  EXPECT_EQ(record.origin, 9u);
  EXPECT_EQ(record.payload, "payload");
  EXPECT_FALSE(IsOriginRecord(bytes));
}

TEST(RecordTest, OriginsIndexEntriesAndObjectsParseBack) {
  const Provenance origin = TestProvenance(HiddenSpec(8), 5);
  EXPECT_TRUE(IsOriginRecord(EncodeOriginRecord(origin)));
  EXPECT_EQ(*ParseOriginRecord(EncodeOriginRecord(origin)), origin);
  const IndexEntry entry = *ParseIndexEntry(EncodeIndexEntry({{1ull << 40, 2}, 400, 20000}));
  EXPECT_EQ(entry.place, (Place{1ull << 40, 2}));
  EXPECT_EQ(entry.row_count, 400u);
  EXPECT_EQ(entry.record_bytes, 20000u);
  EXPECT_EQ(*ParseIndexKey(IndexKey(TestRecord().key)), TestRecord().key);
  EXPECT_EQ(*ParsePlaceKey(PlaceKey({1ull << 40, 7})), (Place{1ull << 40, 7}));
  const ObjectHeader header = *ParseObjectHeader(EncodeObjectHeader({3, 4, Sha256Of("abc")}));
  EXPECT_EQ(header.digest, Sha256Of("abc"));
  const std::string piece = EncodePieceRecord({4, 1, "abc"});
  EXPECT_EQ(ParsePieceRecord(piece)->payload, "abc");
}

// One flipped bit anywhere, or any truncation, is noticed.
TEST(RecordTest, EveryFlippedBitAndEveryTruncationIsFound) {
  const std::string part = EncodePartRecord(TestRecord());
  const std::string origin = EncodeOriginRecord(TestProvenance(SampledSpec()));
  for (size_t bit = 0; bit < part.size() * 8; ++bit) {
    std::string damaged = part;
    damaged[bit / 8] ^= static_cast<char>(1 << bit % 8);
    ASSERT_EQ(ParsePartRecord(damaged).status().code(), absl::StatusCode::kDataLoss) << bit;
  }
  for (size_t bit = 0; bit < origin.size() * 8; ++bit) {
    std::string damaged = origin;
    damaged[bit / 8] ^= static_cast<char>(1 << bit % 8);
    ASSERT_EQ(ParseOriginRecord(damaged).status().code(), absl::StatusCode::kDataLoss) << bit;
  }
  for (size_t size = 0; size < part.size(); ++size) {
    ASSERT_FALSE(ParsePartRecord(part.substr(0, size)).ok());
  }
}

TEST(RecordTest, ALaterVersionIsNamed) {
  std::string bytes = EncodePartRecord(TestRecord());
  bytes[4] = 2;
  const absl::string_view body = absl::string_view(bytes).substr(0, bytes.size() - 8);
  const uint64_t checksum = Xxh3(body);
  std::memcpy(bytes.data() + body.size(), &checksum, 8);
  EXPECT_THAT(std::string(ParsePartRecord(bytes).status().message()), HasSubstr("version 2"));
}

TEST(IndexKeyTest, SortsByRowWithinASection) {
  PartKey a{Sha256Of("s"), 255}, b{Sha256Of("s"), 256};
  EXPECT_LT(IndexKey(a), IndexKey(b));
  EXPECT_FALSE(ParseIndexKey("short").ok());
  EXPECT_FALSE(ParseIndexEntry("\xff\xff").ok());
}

TEST(JobObjectTest, RoundTripsAndStaysTheSameText) {
  const JobObject job{"handbook",
                      Sha256Of("plan"),
                      TestTeacher(),
                      {SectionSpec{}, SampledSpec()},
                      {SectionSpec{}, HiddenSpec(576)}};
  const std::string text = EncodeJobObject(job);
  EXPECT_EQ(*ParseJobObject(text), job);
  EXPECT_EQ(text, EncodeJobObject(*ParseJobObject(text)));
  EXPECT_THAT(text, HasSubstr(R"("sections":["stats","logits/sampled?draws=50"])"));
}

TEST(JobObjectTest, RefusesWhatIsNoJob) {
  const std::string good =
      EncodeJobObject({"j", Sha256Of("p"), TestTeacher(), {SectionSpec{}}, {}});
  for (const std::string& bad :
       {std::string(), std::string("[1]"), std::string("{\"format\":1}"),
        std::string(good).replace(good.find("stats"), 5, "statz"),
        std::string(good).replace(good.find("\"format\":1"), 10, "\"format\":2"),
        std::string(2 << 20, ' ')}) {
    EXPECT_EQ(ParseJobObject(bad).status().code(), absl::StatusCode::kDataLoss)
        << bad.substr(0, 60);
  }
}

}  // namespace
}  // namespace stillhouse
