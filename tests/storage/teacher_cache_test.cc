#include "storage/teacher_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "common/file.h"
#include "common/status.h"
#include "storage/cache_verify.h"
#include "tests/storage/section_fixtures.h"

namespace stillhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr uint64_t kAnyBytes = 1ull << 30;

// Over a memory store, and over RocksDB.
class TeacherCacheTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (GetParam() == std::string("memory")) {
      store_ = MakeMemoryKvStore(4);
    } else {
      RocksOptions options;
      options.path = JoinPath(folder_.path(), "db");
      options.families = CacheFamilies();
      options.disk_reserve_bytes = 0;
      store_ = *OpenRocksKvStore(options);
    }
    Reopen();
  }
  void Reopen() {
    cache_ = *TeacherCache::Open(*store_, "store-a");
    objects_ = *ObjectStore::Open(*store_, /*writable=*/true);
  }
  PutCounts Put(const SectionSpec& spec, int document, uint32_t rows, uint64_t seed = 1,
                const std::string& producer_class = "cpu test") {
    PutItem item{TestParts(spec, TestDocument(document), rows, seed), TestProvenance(spec)};
    item.provenance.producer_class = producer_class;
    SH_CHECK_OK(CheckPut(item));
    return (*cache_->Put({item}))[0];
  }
  static std::vector<PartKey> Keys(const std::vector<Part>& parts) {
    std::vector<PartKey> keys;
    for (const Part& part : parts) keys.push_back(part.key);
    return keys;
  }
  bool Holds(const SectionSpec& spec, int document, uint32_t rows, uint64_t seed = 1) {
    const auto parts = TestParts(spec, TestDocument(document), rows, seed);
    const auto got = *cache_->Get(Keys(parts), kAnyBytes);
    for (size_t i = 0; i < parts.size(); ++i) {
      if (!got[i].has_value() || got[i]->payload != parts[i].payload ||
          got[i]->row_count != parts[i].row_count) {
        return false;
      }
    }
    return true;
  }
  std::vector<KvEntry> All(KvFamily family) { return store_->Scan(family, {})->entries; }
  VerifyStep VerifyAll() {
    VerifyStep all;
    std::string next;
    do {
      const VerifyStep step = *VerifyCache(*cache_, *objects_, next, /*limit=*/3);
      all.records += step.records;
      all.unreferenced += step.unreferenced;
      all.problems.insert(all.problems.end(), step.problems.begin(), step.problems.end());
      next = step.next;
    } while (!next.empty());
    return all;
  }
  void Overwrite(KvFamily family, const std::string& key, const std::string& value) {
    KvBatch batch;
    batch.Put(family, key, value);
    SH_CHECK_OK(store_->Write(batch, KvStore::Sync::kSync));
  }

  TempFolder folder_ = *TempFolder::Create();
  std::unique_ptr<KvStore> store_;
  std::unique_ptr<TeacherCache> cache_;
  std::unique_ptr<ObjectStore> objects_;
};
INSTANTIATE_TEST_SUITE_P(Stores, TeacherCacheTest, testing::Values("memory", "rocksdb"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(TeacherCacheTest, GivesBackWhatWasPut) {
  EXPECT_EQ(Put(SectionSpec{}, 1, 100).stored, 1u);
  EXPECT_EQ(Put(SampledSpec(), 1, 100).stored, 1u);
  EXPECT_TRUE(Holds(SectionSpec{}, 1, 100));
  EXPECT_TRUE(Holds(SampledSpec(), 1, 100));
  const auto absent =
      *cache_->Get(Keys(TestParts(SectionSpec{}, TestDocument(2), 5, 1)), kAnyBytes);
  EXPECT_THAT(absent, ElementsAre(std::nullopt));
}

TEST_P(TeacherCacheTest, LargePartsGoThroughAFileOfTheirOwn) {
  const SectionSpec spec = HiddenSpec(8192);  // 256 rows a part
  EXPECT_EQ(Put(spec, 1, 600).stored, 3u);
  EXPECT_EQ(Put(SectionSpec{}, 1, 600).stored, 1u);
  EXPECT_TRUE(Holds(spec, 1, 600));
  const auto entries = *cache_->Find(Keys(TestParts(spec, TestDocument(1), 600, 1)));
  EXPECT_EQ(entries[0]->place, (Place{1, 1}));  // slot 0 is their origin
  EXPECT_EQ(entries[2]->place, (Place{1, 3}));
  EXPECT_THAT(VerifyAll().problems, IsEmpty());
}

TEST_P(TeacherCacheTest, GetStopsAtTheByteLimitButGivesOne) {
  const SectionSpec spec = HiddenSpec(8192);
  Put(spec, 1, 600);
  const auto keys = Keys(TestParts(spec, TestDocument(1), 600, 1));
  EXPECT_THAT(*cache_->Get(keys, 1), SizeIs(1));
  EXPECT_THAT(*cache_->Get(keys, 9 << 20), SizeIs(2));
  EXPECT_THAT(*cache_->Get(keys, kAnyBytes), SizeIs(3));
}

TEST_P(TeacherCacheTest, FirstWriteWinsAndOthersAreCounted) {
  Put(SectionSpec{}, 1, 50, /*seed=*/1);
  const PutCounts same = Put(SectionSpec{}, 1, 50, /*seed=*/1);
  EXPECT_EQ(same.already, 1u);
  EXPECT_EQ(same.stored, 0u);
  EXPECT_EQ(Put(SectionSpec{}, 1, 50, /*seed=*/2).mismatched, 1u);
  EXPECT_EQ(Put(SectionSpec{}, 1, 50, /*seed=*/3, "another machine").mismatched, 1u);
  EXPECT_EQ(Put(SectionSpec{}, 1, 49, /*seed=*/1).mismatched, 1u);
  EXPECT_TRUE(Holds(SectionSpec{}, 1, 50, /*seed=*/1));
}

// Values are compared as decoded: another coding of the same rows is the same.
TEST_P(TeacherCacheTest, OtherBytesForTheSameValuesAreTheSame) {
  StatsRows rows;
  rows.entropy = rows.logsumexp = rows.top1_logprob = rows.next_logprob = {0.0f};
  rows.top1_id = {0};
  Part part{{SectionKey(TestTeacher(), TestDocument(1), SectionSpec{}), 0}, 1, {}};
  part.payload = EncodeStats(rows, 0, 1);
  SH_CHECK_OK(cache_->Put({PutItem{{part}, TestProvenance(SectionSpec{})}}));
  // Columns of 8 bits where the encoder needs none.
  std::string other(1, static_cast<char>(CodecId::kStatsFixed));
  for (int column = 0; column < 5; ++column) other.append("\0\10\0", 3);
  ASSERT_NE(other, part.payload);
  part.payload = other;
  EXPECT_EQ((*cache_->Put({PutItem{{part}, TestProvenance(SectionSpec{})}}))[0].already, 1u);
}

TEST_P(TeacherCacheTest, OneKeyTwiceInAGroupIsStoredOnce) {
  const auto parts = TestParts(SectionSpec{}, TestDocument(1), 10, 1);
  const auto others = TestParts(SectionSpec{}, TestDocument(1), 10, 2);
  const PutItem a{parts, TestProvenance(SectionSpec{})};
  const PutItem b{others, TestProvenance(SectionSpec{})};
  const auto counts = *cache_->Put({a, a, b});
  EXPECT_EQ(counts[0].stored, 1u);
  EXPECT_EQ(counts[1].already, 1u);
  EXPECT_EQ(counts[2].mismatched, 1u);
  EXPECT_TRUE(Holds(SectionSpec{}, 1, 10, 1));
}

TEST_P(TeacherCacheTest, OriginIsStoredOncePerSegment) {
  Put(SectionSpec{}, 1, 10);
  Put(SectionSpec{}, 2, 10);
  Put(SampledSpec(), 1, 10);
  int origins = 0;
  for (const KvEntry& entry : All(kCacheData)) origins += IsOriginRecord(entry.value);
  EXPECT_EQ(origins, 2);
  const auto entry = (*cache_->Find(Keys(TestParts(SampledSpec(), TestDocument(1), 10, 1))))[0];
  const auto bytes = *store_->Get(kCacheData, PlaceKey(entry->place));
  const PartRecord record = *ParsePartRecord(*bytes);
  EXPECT_EQ(*cache_->OriginOf(entry->place, record.origin), TestProvenance(SampledSpec()));
}

TEST_P(TeacherCacheTest, EachOpeningHasAHigherIncarnationAndANewSegment) {
  EXPECT_EQ(cache_->identity().incarnation, 1u);
  Put(SectionSpec{}, 1, 10);
  Reopen();
  EXPECT_EQ(cache_->identity().incarnation, 2u);
  EXPECT_EQ(cache_->identity().store_id, "store-a");
  Put(SectionSpec{}, 2, 10);
  EXPECT_TRUE(Holds(SectionSpec{}, 1, 10));
  const auto entry = (*cache_->Find(Keys(TestParts(SectionSpec{}, TestDocument(2), 10, 1))))[0];
  EXPECT_EQ(entry->place.segment, 2u);
  const auto reader = *TeacherCache::OpenReadOnly(*store_);
  EXPECT_EQ(reader->identity().incarnation, 2u);
}

TEST_P(TeacherCacheTest, AnotherFormatIsRefused) {
  Overwrite(kCacheMeta, "format", "2");
  const absl::Status status = TeacherCache::Open(*store_, "x").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("format 2"));
}

TEST_P(TeacherCacheTest, PutsThatFitNoSectionAreRefused) {
  const auto good = TestParts(SectionSpec{}, TestDocument(1), 10, 1);
  const auto refused = [&](auto change) {
    PutItem item{good, TestProvenance(SectionSpec{})};
    change(item);
    return !CheckPut(item).ok();
  };
  EXPECT_FALSE(refused([](PutItem&) {}));
  EXPECT_TRUE(refused([](PutItem& item) { item.parts.clear(); }));
  EXPECT_TRUE(refused([](PutItem& item) { item.parts[0].key.row_begin = 5; }));
  EXPECT_TRUE(refused([](PutItem& item) { item.parts[0].row_count = 11; }));
  EXPECT_TRUE(refused([](PutItem& item) { item.parts[0].row_count = 0; }));
  EXPECT_TRUE(refused([](PutItem& item) {
    SharedBytes& payload = item.parts[0].payload;
    payload = std::string(payload.view().substr(0, payload.size() - 1));
  }));
  EXPECT_TRUE(refused([](PutItem& item) { item.parts[0].payload = {}; }));
  EXPECT_TRUE(refused([](PutItem& item) { item.provenance.spec = SampledSpec(); }));
  EXPECT_TRUE(refused([](PutItem& item) { item.provenance.producer_class.resize(5000); }));
}

TEST_P(TeacherCacheTest, TotalsCountEveryByte) {
  Put(SectionSpec{}, 1, 100);
  Put(SectionSpec{}, 2, 50);
  Put(SectionSpec{}, 2, 50);
  const SpecTotals totals = cache_->Totals()->at("stats");
  EXPECT_EQ(totals.sections, 2u);
  EXPECT_EQ(totals.parts, 2u);
  EXPECT_EQ(totals.rows, 150u);
  uint64_t records = 0, index = 0;
  for (const KvEntry& entry : All(kCacheData)) {
    if (!IsOriginRecord(entry.value)) records += entry.key.size() + entry.value.size();
  }
  for (const KvEntry& entry : All(kCacheIndex)) index += entry.key.size() + entry.value.size();
  EXPECT_EQ(totals.record_bytes, records);
  EXPECT_EQ(totals.index_bytes, index);
}

TEST_P(TeacherCacheTest, FlippedBitsInHeaderAndPayloadAreFoundByGetAndVerify) {
  Put(SectionSpec{}, 1, 100);
  const auto keys = Keys(TestParts(SectionSpec{}, TestDocument(1), 100, 1));
  const std::string place = PlaceKey((*cache_->Find(keys))[0]->place);
  const std::string record = **store_->Get(kCacheData, place);
  EXPECT_THAT(VerifyAll().problems, IsEmpty());
  for (const size_t byte :
       {size_t{0}, size_t{5}, size_t{20}, size_t{50}, size_t{57}, size_t{100}, record.size() - 1}) {
    std::string damaged = record;
    damaged[byte] ^= 0x10;
    Overwrite(kCacheData, place, damaged);
    EXPECT_EQ(cache_->Get(keys, kAnyBytes).status().code(), absl::StatusCode::kDataLoss) << byte;
    EXPECT_FALSE((*cache_->Get(keys, kAnyBytes))[0].has_value()) << byte << ": told once";
    EXPECT_THAT(VerifyAll().problems, SizeIs(1)) << byte;
    Reopen();  // the note was not saved
  }
  Overwrite(kCacheData, place, record.substr(0, record.size() - 3));  // a truncated tail
  EXPECT_EQ(cache_->Get(keys, kAnyBytes).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(VerifyAll().problems, SizeIs(1));
  Overwrite(kCacheData, place, record);
  Reopen();
  EXPECT_TRUE(Holds(SectionSpec{}, 1, 100));
}

TEST_P(TeacherCacheTest, SwappedRecordsAreCaughtAlsoWithinADocument) {
  const SectionSpec spec = HiddenSpec(65536);  // 32 rows a part
  Put(spec, 1, 64);
  const auto keys = Keys(TestParts(spec, TestDocument(1), 64, 1));
  const auto entries = *cache_->Find(keys);
  const std::string a = PlaceKey(entries[0]->place), b = PlaceKey(entries[1]->place);
  const std::string at_a = **store_->Get(kCacheData, a), at_b = **store_->Get(kCacheData, b);
  Overwrite(kCacheData, a, at_b);
  Overwrite(kCacheData, b, at_a);
  const absl::Status status = cache_->Get({keys[1]}, kAnyBytes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("row 32: the record in its place is of"));
  EXPECT_THAT(VerifyAll().problems, SizeIs(2));
}

TEST_P(TeacherCacheTest, RecordsThatNoIndexEntryNamesAreHarmlessAndCounted) {
  Put(SectionSpec{}, 1, 10);
  // What a crash between ingestion and index leaves.
  PartRecord record{.key = {Sha256Of("lost"), 0}, .row_count = 10, .codec = 1};
  const std::string payload = TestPayload(SectionSpec{}, 10, 5);
  record.payload = payload;
  Overwrite(kCacheData, PlaceKey({7, 0}), EncodeOriginRecord(TestProvenance(SectionSpec{})));
  Overwrite(kCacheData, PlaceKey({7, 1}), EncodePartRecord(record));
  const VerifyStep all = VerifyAll();
  EXPECT_THAT(all.problems, IsEmpty());
  EXPECT_EQ(all.unreferenced, 1u);
  Reopen();
  Put(SectionSpec{}, 2, 10);
  const auto entry = (*cache_->Find(Keys(TestParts(SectionSpec{}, TestDocument(2), 10, 1))))[0];
  EXPECT_EQ(entry->place.segment, 8u);
}

TEST_P(TeacherCacheTest, SmallPartsThatFillASegmentAreAFileOfTheirOwn) {
  cache_->set_segment_bytes(10'000);
  Put(SectionSpec{}, 1, 10);
  std::vector<PutItem> items;
  for (int document = 2; document < 60; ++document) {
    items.push_back({TestParts(SectionSpec{}, TestDocument(document), 100, /*seed=*/document),
                     TestProvenance(SectionSpec{})});
  }
  ASSERT_TRUE(cache_->Put(items).ok());
  Reopen();
  std::set<uint64_t> segments;
  for (const PutItem& item : items) {
    const auto entry = (*cache_->Find(Keys(item.parts)))[0];
    ASSERT_TRUE(entry.has_value());
    segments.insert(entry->place.segment);
    EXPECT_EQ((**cache_->Get(Keys(item.parts), kAnyBytes)->begin()), item.parts[0]);
  }
  EXPECT_THAT(segments, ElementsAre(2u));
  EXPECT_THAT(VerifyAll().problems, IsEmpty());
}

TEST_P(TeacherCacheTest, IndexEntryWithoutRecordIsFound) {
  Put(SectionSpec{}, 1, 10);
  const auto keys = Keys(TestParts(SectionSpec{}, TestDocument(1), 10, 1));
  KvBatch batch;
  batch.Delete(kCacheData, PlaceKey((*cache_->Find(keys))[0]->place));
  SH_CHECK_OK(store_->Write(batch, KvStore::Sync::kSync));
  EXPECT_EQ(cache_->Get(keys, kAnyBytes).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(VerifyAll().problems, ElementsAre(HasSubstr("its record is gone")));
}

class ObjectStoreTest : public TeacherCacheTest {
 protected:
  absl::StatusOr<ObjectProgress> PutWhole(const std::string& name, const std::string& bytes,
                                          uint64_t upload, bool replace = false) {
    absl::StatusOr<ObjectProgress> progress;
    for (uint64_t offset = 0; offset == 0 || offset < bytes.size(); offset += kPartBytesMax) {
      progress = objects_->PutPiece(
          {name, bytes.size(), offset, replace, upload, bytes.substr(offset, kPartBytesMax)});
      if (!progress.ok() || progress->complete) return progress;
    }
    return progress;
  }
};
INSTANTIATE_TEST_SUITE_P(Stores, ObjectStoreTest, testing::Values("memory", "rocksdb"),
                         [](const auto& info) { return std::string(info.param); });

std::string Bytes(size_t size, uint64_t seed) {
  RandomStream random(seed);
  std::string bytes(size, ' ');
  for (char& byte : bytes) byte = static_cast<char>(random.Next32());
  return bytes;
}

TEST_P(ObjectStoreTest, ObjectsOfAnySizeComeBack) {
  for (const size_t size :
       {size_t{0}, size_t{1}, size_t{kPartBytesMax}, size_t{kPartBytesMax} + 1}) {
    const std::string name = absl::StrCat("artefact/", size), bytes = Bytes(size, size);
    EXPECT_TRUE(PutWhole(name, bytes, size)->complete);
    EXPECT_EQ(**objects_->Get(name), bytes);
  }
  EXPECT_EQ(objects_->Get("artefact/none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(objects_->Get("artefact/1", 0).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(VerifyAll().problems, IsEmpty());
}

TEST_P(ObjectStoreTest, PiecesTakenTwiceChangeNothing) {
  const std::string bytes = Bytes(kPartBytesMax + 5, 1);
  const ObjectPiece first{"a", bytes.size(), 0, false, 1, bytes.substr(0, kPartBytesMax)};
  const ObjectPiece last{"a", bytes.size(), kPartBytesMax, false, 1, bytes.substr(kPartBytesMax)};
  EXPECT_FALSE(objects_->PutPiece(first)->complete);
  EXPECT_FALSE(objects_->PutPiece(first)->complete);
  EXPECT_EQ(objects_->Stat("a").status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(objects_->PutPiece(last)->complete);
  EXPECT_TRUE(objects_->PutPiece(last)->complete);
  EXPECT_EQ(**objects_->Get("a"), bytes);
}

TEST_P(ObjectStoreTest, UploadThatTheServerForgotMustBeginAgain) {
  const std::string bytes = Bytes(kPartBytesMax + 5, 1);
  SH_CHECK_OK(objects_->PutPiece({"a", bytes.size(), 0, false, 1, bytes.substr(0, kPartBytesMax)}));
  EXPECT_THAT(All(kCacheObjects), SizeIs(1));
  Reopen();
  EXPECT_THAT(All(kCacheObjects), IsEmpty());
  EXPECT_EQ(
      objects_->PutPiece({"a", bytes.size(), kPartBytesMax, false, 1, bytes.substr(kPartBytesMax)})
          .status()
          .code(),
      absl::StatusCode::kAborted);
  EXPECT_TRUE(PutWhole("a", bytes, 2)->complete);
  EXPECT_EQ(**objects_->Get("a"), bytes);
}

TEST_P(ObjectStoreTest, HashNamesAreVerified) {
  const std::string name = absl::StrCat("sha256/", Sha256Of("good").Hex());
  EXPECT_EQ(PutWhole(name, "evil", 1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(objects_->Stat(name).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(PutWhole(name, "good", 2)->already);
  EXPECT_TRUE(PutWhole(name, "good", 3)->already);
}

TEST_P(ObjectStoreTest, OtherBytesNeedReplace) {
  EXPECT_TRUE(PutWhole("job/a", "one", 1)->complete);
  EXPECT_TRUE(PutWhole("job/a", "one", 2)->already);
  EXPECT_EQ(PutWhole("job/a", "two", 3).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(**objects_->Get("job/a"), "one");
  EXPECT_TRUE(PutWhole("job/a", "two", 4, /*replace=*/true)->complete);
  EXPECT_EQ(**objects_->Get("job/a"), "two");
  EXPECT_THAT(All(kCacheObjects), SizeIs(2));  // a header and a piece: the old ones are gone
}

TEST_P(ObjectStoreTest, PiecesOfWrongSizesAreRefused) {
  EXPECT_FALSE(objects_->PutPiece({"", 1, 0, false, 1, "x"}).ok());
  EXPECT_FALSE(objects_->PutPiece({"a", 2, 0, false, 1, "x"}).ok());
  EXPECT_FALSE(objects_->PutPiece({"a", 5, 1, false, 1, "x"}).ok());
  EXPECT_FALSE(objects_->PutPiece({"a", kPartBytesMax, kPartBytesMax, false, 1, ""}).ok());
  EXPECT_FALSE(objects_->PutPiece({std::string(513, 'a'), 1, 0, false, 1, "x"}).ok());
}

TEST_P(ObjectStoreTest, ListsByPrefixInPages) {
  for (const char* name : {"a/1", "a/2", "a/3", "b/1"}) SH_CHECK_OK(PutWhole(name, "x", 1));
  const auto names = [&](absl::string_view prefix, absl::string_view after, int limit) {
    std::vector<std::string> found;
    const auto listed = *objects_->List(prefix, after, limit);
    for (const ObjectInfo& object : listed) found.push_back(object.name);
    return found;
  };
  EXPECT_THAT(names("", "", 10), ElementsAre("a/1", "a/2", "a/3", "b/1"));
  EXPECT_THAT(names("a/", "", 2), ElementsAre("a/1", "a/2"));
  EXPECT_THAT(names("a/", "a/2", 2), ElementsAre("a/3"));
  EXPECT_THAT(names("c", "", 2), IsEmpty());
}

TEST_P(ObjectStoreTest, DamagedPiecesAreFound) {
  SH_CHECK_OK(PutWhole("a", "some bytes", 1));
  std::string key, value;
  for (const KvEntry& entry : All(kCacheObjects)) {
    if (entry.key[0] == 'p') key = entry.key, value = entry.value;
  }
  value[20] ^= 1;
  Overwrite(kCacheObjects, key, value);
  EXPECT_EQ(objects_->Get("a").status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(VerifyAll().problems, SizeIs(1));
}

}  // namespace
}  // namespace stillhouse
