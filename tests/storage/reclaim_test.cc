// Removing parts and giving their space back, over every store and stopped at every step.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <functional>

#include "common/file.h"
#include "common/status.h"
#include "storage/cache_verify.h"
#include "storage/teacher_cache.h"
#include "tests/storage/section_fixtures.h"
#include "tests/storage/watched_kv_store.h"

namespace stillhouse {
namespace {

using testing::IsEmpty;
using testing::SizeIs;

constexpr uint64_t kAnyBytes = 1ull << 30;
constexpr uint32_t kRows = 200;

class ReclaimTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { NewStore(); }

  // An empty store of the kind under test.
  void NewStore() {
    cache_.reset();
    store_.reset();
    if (GetParam() == std::string("memory")) {
      base_ = MakeMemoryKvStore(4);
    } else {
      base_.reset();
      folder_ = *TempFolder::Create();
      RocksOptions options;
      options.path = JoinPath(folder_.path(), "db");
      options.families = CacheFamilies();
      options.disk_reserve_bytes = 0;
      base_ = *OpenRocksKvStore(options);
    }
    store_ = std::make_unique<WatchedKvStore>(*base_);
    Reopen();
  }
  // As after a crash: what the store took is there, what the writer remembered is not. Each
  // opening begins a new segment.
  void Reopen() {
    store_->GoOn();
    cache_ = *TeacherCache::Open(*store_, "store-a");
  }
  void Put(const SectionSpec& spec, int document, uint32_t rows = kRows) {
    const PutItem item{TestParts(spec, TestDocument(document), rows, document),
                       TestProvenance(spec, document)};
    SH_CHECK_OK(cache_->Put({item}));
  }
  std::vector<Removal> Removals(const SectionSpec& spec, int document, uint32_t rows = kRows) {
    std::vector<Removal> removals;
    for (const Part& part : TestParts(spec, TestDocument(document), rows, document)) {
      removals.push_back({part.key, spec});
    }
    return removals;
  }
  // All of it with the values that were put: 1; none of it: 0; else -1.
  int Held(const SectionSpec& spec, int document, uint32_t rows = kRows) {
    const auto parts = TestParts(spec, TestDocument(document), rows, document);
    std::vector<PartKey> keys;
    for (const Part& part : parts) keys.push_back(part.key);
    const auto got = cache_->Get(keys, kAnyBytes);
    if (!got.ok()) return -1;
    size_t held = 0;
    for (size_t i = 0; i < parts.size(); ++i) held += (*got)[i] == parts[i];
    return held == parts.size() ? 1 : held == 0 ? 0 : -1;
  }
  // Until there is nothing left to do, or something failed.
  absl::StatusOr<ReclaimStep> ReclaimAll(ReclaimOptions options = {}) {
    ReclaimStep all;
    for (int steps = 0; steps < 1000; ++steps) {
      SH_ASSIGN_OR_RETURN(const ReclaimStep step, cache_->Reclaim(options));
      EXPECT_LE(step.bytes_copied, kReclaimStepBytes + kPartBytesMax + kRecordOverheadBytes + 12);
      all.bytes_copied += step.bytes_copied;
      all.bytes_freed += step.bytes_freed;
      all.segments_freed += step.segments_freed;
      if (step.done) return all;
      if (step.compact.has_value()) SH_RETURN_IF_ERROR(cache_->CompactFreed(*step.compact));
      options.compacted = step.compact;
    }
    return absl::InternalError("it never ends");
  }
  std::vector<std::string> Problems() {
    const auto objects = *ObjectStore::Open(*store_, /*writable=*/true);
    std::vector<std::string> problems;
    std::string next;
    do {
      const VerifyStep step = *VerifyCache(*cache_, *objects, next);
      problems.insert(problems.end(), step.problems.begin(), step.problems.end());
      next = step.next;
    } while (!next.empty());
    return problems;
  }
  void ExpectCountsAreRight() {
    EXPECT_EQ(*ReadSegments(*store_), *CountSegments(*store_));
    SpecTotals sum;
    const auto all = *cache_->Totals();
    for (const auto& [spec, totals] : all) {
      sum.parts += totals.parts;
      sum.record_bytes += totals.record_bytes;
      sum.index_bytes += totals.index_bytes;
    }
    uint64_t index_bytes = 0;
    const auto index = store_->Scan(kCacheIndex, {})->entries;
    for (const KvEntry& entry : index) index_bytes += entry.key.size() + entry.value.size();
    EXPECT_EQ(sum.parts, index.size());
    EXPECT_EQ(sum.index_bytes, index_bytes);
    EXPECT_EQ(sum.record_bytes, cache_->Space()->live_bytes);
  }
  // The database's files of tables, with their sizes.
  std::map<std::string, uint64_t> Files() {
    std::map<std::string, uint64_t> files;
    if (GetParam() == std::string("memory")) return files;
    const std::string database = JoinPath(folder_.path(), "db");
    const std::vector<std::string> names = *ListFolder(database);
    for (const std::string& name : names) {
      struct stat info {};
      if (name.ends_with(".sst") && stat(JoinPath(database, name).c_str(), &info) == 0) {
        files[name] = static_cast<uint64_t>(info.st_size);
      }
    }
    return files;
  }
  uint64_t FileBytes() {
    uint64_t bytes = 0;
    for (const auto& [name, size] : Files()) bytes += size;
    return bytes;
  }

  TempFolder folder_ = *TempFolder::Create();
  std::unique_ptr<KvStore> base_;
  std::unique_ptr<WatchedKvStore> store_;
  std::unique_ptr<TeacherCache> cache_;
};
INSTANTIATE_TEST_SUITE_P(Stores, ReclaimTest, testing::Values("memory", "rocksdb"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(ReclaimTest, RemovedPartsAreGoneAndCounted) {
  for (int d = 0; d < 4; ++d) Put(SectionSpec{}, d);
  Put(SampledSpec(), 1);
  ExpectCountsAreRight();
  const uint64_t before = cache_->Space()->live_bytes;
  std::vector<Removal> gone = Removals(SectionSpec{}, 1);
  gone.push_back(gone.front());                                   // twice is once
  gone.push_back({{Sha256Of("never there"), 0}, SectionSpec{}});  // passed over
  const RemoveCounts counts = *cache_->Remove(gone);
  EXPECT_EQ(counts.sections, 1u);
  EXPECT_EQ(counts.parts, 1u);
  EXPECT_EQ(Held(SectionSpec{}, 1), 0);
  EXPECT_EQ(Held(SectionSpec{}, 0), 1);
  EXPECT_EQ(Held(SampledSpec(), 1), 1);
  EXPECT_EQ(cache_->Space()->live_bytes + cache_->Space()->dead_bytes, before);
  EXPECT_GT(cache_->Space()->dead_bytes, 0u);
  ExpectCountsAreRight();
  EXPECT_EQ(cache_->Remove(gone)->parts, 0u);
  Put(SectionSpec{}, 1);  // and may be captured again
  EXPECT_EQ(Held(SectionSpec{}, 1), 1);
  ExpectCountsAreRight();
  EXPECT_THAT(Problems(), IsEmpty());
}

TEST_P(ReclaimTest, NoTotalsAreLeftOfASectionThatIsGone) {
  Put(SectionSpec{}, 1);
  SH_CHECK_OK(cache_->Remove(Removals(SectionSpec{}, 1)));
  EXPECT_THAT(*cache_->Totals(), IsEmpty());
}

TEST_P(ReclaimTest, OnlySegmentsLessThanHalfAliveAreRewritten) {
  for (int d = 0; d < 6; ++d) Put(SectionSpec{}, d);
  Reopen();
  for (int d = 6; d < 12; ++d) Put(SectionSpec{}, d);
  for (const int d : {0, 6, 7, 8, 9}) SH_CHECK_OK(cache_->Remove(Removals(SectionSpec{}, d)));
  const ReclaimStep done = *ReclaimAll();
  EXPECT_EQ(done.segments_freed, 1u);
  EXPECT_GT(done.bytes_copied, 0u);
  const auto segments = *ReadSegments(*store_);
  EXPECT_TRUE(segments.contains(1));  // one of its six is dead
  EXPECT_GT(segments.at(1).dead_bytes, 0u);
  EXPECT_FALSE(segments.contains(2));
  for (int d = 0; d < 12; ++d) EXPECT_EQ(Held(SectionSpec{}, d), d != 0 && (d < 6 || d > 9)) << d;
  ExpectCountsAreRight();
  EXPECT_EQ(ReclaimAll({.live_share_max = 1})->segments_freed, 1u);
  EXPECT_EQ(cache_->Space()->dead_bytes, 0u);
  ExpectCountsAreRight();
  EXPECT_THAT(Problems(), IsEmpty());
}

TEST_P(ReclaimTest, LargePartsMoveThroughAFileOfTheirOwn) {
  const SectionSpec spec = HiddenSpec(8192);  // parts of 4 MiB
  for (int d = 0; d < 4; ++d) Put(spec, d, 300);
  for (int d = 0; d < 3; ++d) SH_CHECK_OK(cache_->Remove(Removals(spec, d, 300)));
  const uint64_t before = FileBytes();
  const ReclaimStep done = *ReclaimAll({.live_share_max = 1});
  EXPECT_GE(done.segments_freed, 3u);
  for (int d = 0; d < 4; ++d) EXPECT_EQ(Held(spec, d, 300), d == 3) << d;
  EXPECT_EQ(cache_->Space()->dead_bytes, 0u);
  ExpectCountsAreRight();
  if (GetParam() == std::string("rocksdb")) {
    EXPECT_LT(FileBytes(), before / 3);
  }
}

TEST_P(ReclaimTest, SpaceOnDiskIsFreedWithoutWritingTheRestAnew) {
  if (GetParam() == std::string("memory")) GTEST_SKIP() << "it has no files";
  const SectionSpec spec = HiddenSpec(512);
  for (int segment = 0; segment < 6; ++segment) {
    for (int d = 0; d < 4; ++d) Put(spec, 4 * segment + d, 1000);  // 1 MiB each, through the log
    SH_CHECK_OK(store_->Flush());
    Reopen();
  }
  for (int d = 4; d < 8; ++d) SH_CHECK_OK(cache_->Remove(Removals(spec, d, 1000)));
  const uint64_t before = FileBytes();
  const std::map<std::string, uint64_t> files = Files();
  const ReclaimStep done = *ReclaimAll();
  EXPECT_EQ(done.segments_freed, 1u);
  EXPECT_EQ(done.bytes_copied, 0u);
  EXPECT_LT(FileBytes(), before - (3 << 20));
  const std::map<std::string, uint64_t> left = Files();
  int data_files_gone = 0;
  for (const auto& [name, bytes] : files) {
    data_files_gone += bytes > (1 << 20) && !left.contains(name);
  }
  EXPECT_EQ(data_files_gone, 1);
  for (int d = 0; d < 24; ++d) EXPECT_EQ(Held(spec, d, 1000), d < 4 || d > 7) << d;
}

// A crash at any edge: nothing is lost, nothing is there twice, and the next opening finishes it.
TEST_P(ReclaimTest, StoppedBetweenAnyTwoStepsNothingIsLost) {
  const SectionSpec large = HiddenSpec(4096);
  int stops = 0;
  for (int after = 0;; ++after) {
    NewStore();
    for (int d = 0; d < 5; ++d) Put(SectionSpec{}, d);
    Put(large, 5, 300);
    Reopen();
    for (int d = 6; d < 9; ++d) Put(SectionSpec{}, d);
    const auto removed = [](int d) { return d < 3 || d == 6 || d == 7; };
    store_->StopAfter(after);
    std::vector<Removal> going;
    for (int d = 0; d < 9; ++d) {
      const std::vector<Removal> more = Removals(SectionSpec{}, d);
      if (removed(d)) going.insert(going.end(), more.begin(), more.end());
    }
    bool ended = cache_->Remove(absl::MakeSpan(going).first(2)).ok() && cache_->Remove(going).ok();
    ended = ended && ReclaimAll({.live_share_max = 1}).ok();
    stops += !ended;
    Reopen();
    for (int d = 0; d < 9; ++d) {
      const int held = d == 5 ? Held(large, d, 300) : Held(SectionSpec{}, d);
      EXPECT_TRUE(held == 1 || (removed(d) && held == 0)) << "document " << d << " after " << after;
    }
    EXPECT_THAT(Problems(), IsEmpty()) << after;
    SH_CHECK_OK(cache_->Remove(going));
    SH_CHECK_OK(ReclaimAll({.live_share_max = 1}));
    ExpectCountsAreRight();
    EXPECT_EQ(cache_->Space()->dead_bytes, 0u) << after;
    EXPECT_THAT(*ReadFreedSegments(*store_), IsEmpty());
    for (int d = 0; d < 9; ++d) {
      EXPECT_EQ(d == 5 ? Held(large, d, 300) : Held(SectionSpec{}, d), !removed(d)) << after;
    }
    if (ended) break;
  }
  EXPECT_GT(stops, 6);
}

// Ingested parts that move are in a file of their own, which a crash may leave without its index.
TEST_P(ReclaimTest, StoppedWhileLargePartsMoveTheyAreThereOnce) {
  const SectionSpec spec = HiddenSpec(4096);
  for (int after = 0;; ++after) {
    NewStore();
    std::vector<PutItem> group;
    for (int d = 0; d < 4; ++d) {
      group.push_back({TestParts(spec, TestDocument(d), 300, d), TestProvenance(spec)});
    }
    SH_CHECK_OK(cache_->Put(group));  // one file, one segment
    SH_CHECK_OK(cache_->Remove(Removals(spec, 0, 300)));
    SH_CHECK_OK(cache_->Remove(Removals(spec, 2, 300)));
    SH_CHECK_OK(cache_->Remove(Removals(spec, 3, 300)));
    store_->StopAfter(after);
    const bool ended = ReclaimAll().ok();
    Reopen();
    for (int d = 0; d < 4; ++d) EXPECT_EQ(Held(spec, d, 300), d == 1) << d << " after " << after;
    SH_CHECK_OK(ReclaimAll());
    EXPECT_EQ(store_->Scan(kCacheData, {})->entries.size(), 2u);  // origin and part
    ExpectCountsAreRight();
    if (ended) break;
  }
}

TEST_P(ReclaimTest, ReadsUnderWaySucceed) {
  for (int d = 0; d < 4; ++d) Put(SectionSpec{}, d);
  for (int d = 1; d < 4; ++d) SH_CHECK_OK(cache_->Remove(Removals(SectionSpec{}, d)));
  bool moved = false;
  // Between the look into the index and that for the record, the segment is freed.
  store_->BeforeRead(kCacheData, [&] {
    SH_CHECK_OK(ReclaimAll());
    moved = true;
  });
  EXPECT_EQ(Held(SectionSpec{}, 0), 1);
  EXPECT_TRUE(moved);
  store_->BeforeRead(kCacheData, [&] {
    SH_CHECK_OK(cache_->Remove(Removals(SectionSpec{}, 0)));
    SH_CHECK_OK(ReclaimAll());
  });
  EXPECT_EQ(Held(SectionSpec{}, 0), 0);  // removed meanwhile is not damaged
}

TEST_P(ReclaimTest, StepsAreBoundedAndPutsGoBetween) {
  const SectionSpec spec = HiddenSpec(2048);  // parts of 4 MiB
  std::vector<PutItem> group;
  for (int d = 0; d < 8; ++d) {
    group.push_back({TestParts(spec, TestDocument(d), 1000, d), TestProvenance(spec)});
  }
  SH_CHECK_OK(cache_->Put(group));
  for (int d = 0; d < 5; ++d) SH_CHECK_OK(cache_->Remove(Removals(spec, d, 1000)));
  ReclaimOptions options;
  int steps = 0;
  for (;; ++steps) {
    const ReclaimStep step = *cache_->Reclaim(options);
    if (step.done) break;
    Put(SectionSpec{}, 100 + steps);
    if (step.compact.has_value()) SH_CHECK_OK(cache_->CompactFreed(*step.compact));
    options.compacted = step.compact;
  }
  EXPECT_GE(steps, 3);
  for (int d = 0; d < 8; ++d) EXPECT_EQ(Held(spec, d, 1000), d >= 5);
  for (int d = 0; d < steps; ++d) EXPECT_EQ(Held(SectionSpec{}, 100 + d), 1);
  ExpectCountsAreRight();
}

TEST_P(ReclaimTest, CachesOfEarlierVersionsAreCountedFirst) {
  for (int d = 0; d < 4; ++d) Put(SectionSpec{}, d);
  KvBatch old;  // as the first version left it: no rows
  old.Delete(kCacheMeta, std::string(kSegmentsCountedKey));
  old.Delete(kCacheMeta, SegmentRowKey(1));
  SH_CHECK_OK(store_->Write(old, KvStore::Sync::kSync));
  Reopen();
  Put(SectionSpec{}, 4);
  for (int d = 0; d < 3; ++d) SH_CHECK_OK(cache_->Remove(Removals(SectionSpec{}, d)));
  EXPECT_EQ(ReclaimAll()->segments_freed, 1u);
  for (int d = 0; d < 5; ++d) EXPECT_EQ(Held(SectionSpec{}, d), d >= 3);
  ExpectCountsAreRight();
}

TEST_P(ReclaimTest, SegmentsWithADamagedRecordStay) {
  for (int d = 0; d < 4; ++d) Put(SectionSpec{}, d);
  const std::string place =
      PlaceKey((*cache_->Find({Removals(SectionSpec{}, 3).front().key}))[0]->place);
  std::string record = **store_->Get(kCacheData, place);
  record[100] ^= 1;
  KvBatch damage;
  damage.Put(kCacheData, place, record);
  SH_CHECK_OK(store_->Write(damage, KvStore::Sync::kSync));
  for (int d = 0; d < 3; ++d) SH_CHECK_OK(cache_->Remove(Removals(SectionSpec{}, d)));
  EXPECT_EQ(ReclaimAll()->segments_freed, 0u);
  EXPECT_EQ(*store_->Get(kCacheData, place), record);
  EXPECT_THAT(Problems(), SizeIs(1));
}

TEST_P(ReclaimTest, NumbersOfFreedSegmentsAreNotUsedAgain) {
  Put(SectionSpec{}, 1);
  SH_CHECK_OK(cache_->Remove(Removals(SectionSpec{}, 1)));
  const ReclaimStep freed = *cache_->Reclaim();
  ASSERT_EQ(freed.compact, 1u);  // a crash now leaves the mark, and no record
  Reopen();
  Put(SectionSpec{}, 2);
  EXPECT_TRUE(ReadSegments(*store_)->contains(2));
  SH_CHECK_OK(ReclaimAll());
  EXPECT_EQ(Held(SectionSpec{}, 2), 1);
}

}  // namespace
}  // namespace stillhouse
