// Repair of caches whose server was killed, so that logs hold what tables hold, too, and of logs
// that are damaged, exchanged or gone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "storage/rocks_log.h"
#include "tests/storage/damage_fixture.h"

namespace stillhouse {
namespace {

using testing::Contains;
using testing::Each;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr int kDocuments = 16;

class RepairLogsTest : public testing::Test {
 protected:
  // Each quarter of the documents and an object; then all that was flushed is `flushed`.
  void Fill(std::initializer_list<KvFamily> flushed) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      PutObject(*live_, quarter);
      PutDocuments(*live_, kDocuments * quarter / 4, kDocuments * (quarter + 1) / 4);
      if (quarter == 3) break;
      for (const KvFamily family : flushed) {
        SH_CHECK_OK(live_->sections().store().FlushFamily(family));
      }
    }
  }
  // As SIGKILL leaves it.
  void Kill() {
    CopyCache(live_path_, path_);
    logs_ = DatabaseFiles(path_, ".log");
  }
  Repaired ExpectRepairs(int whole_at_least) {
    const auto repaired = Repair(path_);
    EXPECT_TRUE(repaired.ok()) << repaired.status();
    if (!repaired.ok()) return {};
    EXPECT_TRUE(repaired->report.changed);
    EXPECT_FALSE(Repair(path_)->report.changed);
    ExpectMended(path_, kDocuments, whole_at_least);
    return *repaired;
  }
  bool HasObject(int i) {
    const auto cache = OpenCache(path_);
    const auto bytes = cache->objects().Get(absl::StrCat("artefact/", i));
    return bytes.ok() && **bytes == DamageObject(i);
  }
  absl::StatusCode Opening() {
    const auto cache = CacheDirectory::Open({.path = path_, .disk_reserve_bytes = 0});
    return cache.status().code();
  }

  TempFolder folder_ = *TempFolder::Create();
  std::string live_path_ = JoinPath(folder_.path(), "live");
  std::string path_ = JoinPath(folder_.path(), "cache");
  std::unique_ptr<CacheDirectory> live_ = OpenCache(live_path_);
  std::vector<std::string> logs_;
};

TEST_F(RepairLogsTest, WhatTablesHoldTooIsThereOnce) {
  const std::initializer_list<KvFamily> all[] = {
      {kCacheData}, {kCacheObjects}, {kCacheIndex, kCacheMeta}, {kCacheData, kCacheObjects}};
  for (const auto& flushed : all) {
    live_.reset();
    SH_CHECK_OK(RemoveTree(live_path_));
    SH_CHECK_OK(RemoveTree(path_));
    live_ = OpenCache(live_path_);
    Fill(flushed);
    Kill();
    ASSERT_GT(logs_.size(), 1u);
    SH_CHECK_OK(RemoveTree(ManifestOf(path_)));
    const Repaired repaired = ExpectRepairs(PartsOf(kDocuments));
    EXPECT_THAT(repaired.gone, IsEmpty());
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(HasObject(i)) << i;
  }
}

TEST_F(RepairLogsTest, TableAsideOfTheLogThatHoldsItMayBeDamaged) {
  Fill({kCacheData});
  Kill();
  const std::vector<std::string> tables = DatabaseFiles(path_, ".sst");
  for (const std::string& table : tables) CutFile(table, ReadFile(table)->size() / 2);
  // Small parts stand in the logs still; of the large ones each file loses some.
  const Repaired repaired = ExpectRepairs(PartsOf(kDocuments / 4 * 3) / 2);
  EXPECT_FALSE(repaired.report.gone_at_least);
  const auto cache = OpenCache(path_);
  for (int d = 0; d < kDocuments; ++d) {
    if (d % 4 == 3) continue;
    EXPECT_TRUE((*cache->sections().Find({DamageItem(d).parts[0].key}))[0].has_value()) << d;
  }
}

TEST_F(RepairLogsTest, WhatWasRemovedStaysRemoved) {
  Fill({kCacheData, kCacheObjects});
  SH_CHECK_OK(live_->objects().Remove({"artefact/0", "artefact/3"}));
  Kill();
  SH_CHECK_OK(RemoveTree(ManifestOf(path_)));
  const auto repaired = Repair(path_);
  ASSERT_TRUE(repaired.ok()) << repaired.status();
  EXPECT_THAT(repaired->gone, IsEmpty());
  for (int i = 0; i < 4; ++i) EXPECT_EQ(HasObject(i), i == 1 || i == 2) << i;
}

// One put of many parts is one batch, over many blocks of the log.
TEST_F(RepairLogsTest, DamageInALargeBatchCostsWhatLiesThere) {
  constexpr int kSmall = 400;
  const auto item = [](int d) {
    return PutItem{TestParts(SectionSpec{}, TestDocument(d), 100, d), TestProvenance({})};
  };
  const auto put = [&](int begin, int end) {
    std::vector<PutItem> items;
    for (int d = begin; d < end; ++d) items.push_back(item(d));
    SH_CHECK_OK(live_->sections().Put(items));
  };
  put(0, 10);
  put(10, kSmall - 10);
  put(kSmall - 10, kSmall);
  Kill();
  const uint64_t bytes = ReadFile(logs_.back())->size();
  ASSERT_GT(bytes, 6u * (32 << 10));
  for (const int eighth : {2, 3, 4, 5}) {
    const TempFolder copy = *TempFolder::Create();
    CopyCache(path_, copy.path());
    FlipBit(DatabaseFiles(copy.path(), ".log").back(), bytes * eighth / 8, 3);
    EXPECT_EQ(CacheDirectory::Open({.path = copy.path()}).status().code(),
              absl::StatusCode::kDataLoss);
    const auto repaired = Repair(copy.path());
    ASSERT_TRUE(repaired.ok()) << repaired.status();
    EXPECT_THAT(repaired->report.damaged_files, Contains(HasSubstr(": dropping ")));
    EXPECT_TRUE(repaired->report.gone_at_least);
    const auto mended = OpenCache(copy.path());
    int whole = 0;
    for (int d = 0; d < kSmall; ++d) {
      const auto got = *mended->sections().Get({item(d).parts[0].key}, kAnyBytes);
      EXPECT_TRUE(got[0].has_value() || (d >= 10 && d < kSmall - 10)) << d;
      whole += got[0].has_value() && got[0]->payload == item(d).parts[0].payload;
    }
    // A block of 32 KiB, and the records that reach into it and out of it; an entry of the index
    // stands in the batch for each.
    EXPECT_LE((kSmall - whole) * bytes / kSmall, 40u << 10);
    EXPECT_LT(whole, kSmall);
    EXPECT_THAT(VerifyAll(*mended), IsEmpty());
  }
}

TEST_F(RepairLogsTest, ExchangedLogsAreFoundAndPutInOrder) {
  Fill({kCacheData});
  SH_CHECK_OK(live_->objects().Remove({"artefact/0"}));
  Kill();
  ASSERT_GT(logs_.size(), 1u);
  const std::string other = JoinPath(folder_.path(), "other");
  ASSERT_EQ(rename(logs_.front().c_str(), other.c_str()), 0);
  ASSERT_EQ(rename(logs_.back().c_str(), logs_.front().c_str()), 0);
  ASSERT_EQ(rename(other.c_str(), logs_.back().c_str()), 0);
  EXPECT_EQ(Opening(), absl::StatusCode::kDataLoss);
  const Repaired repaired = ExpectRepairs(PartsOf(kDocuments));
  EXPECT_THAT(repaired.report.damaged_files, Contains(HasSubstr("is not younger than")));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(HasObject(i), i != 0) << i;
}

TEST_F(RepairLogsTest, CopyOfATableIsLeftOut) {
  Fill({kCacheData, kCacheObjects, kCacheMeta});
  Kill();
  const std::vector<std::string> tables = DatabaseFiles(path_, ".sst");
  for (size_t i = 0; i < tables.size(); ++i) {
    SH_CHECK_OK(WriteFileAtomically(JoinPath(path_, absl::StrCat("db/0009", 10 + i, ".sst")),
                                    *ReadFile(tables[i])));
  }
  SH_CHECK_OK(RemoveTree(ManifestOf(path_)));
  const Repaired repaired = ExpectRepairs(PartsOf(kDocuments));
  EXPECT_THAT(repaired.gone, IsEmpty());
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(HasObject(i)) << i;
}

TEST_F(RepairLogsTest, LogThatIsGoneIsNoticed) {
  Fill({kCacheData});
  Kill();
  const auto before = live_->sections().identity();
  ASSERT_GT(logs_.size(), 2u);
  for (const std::string& log : logs_) {
    const TempFolder copy = *TempFolder::Create();
    CopyCache(path_, copy.path());
    SH_CHECK_OK(RemoveTree(JoinPath(JoinPath(copy.path(), "db"), BaseName(log))));
    const auto opened = CacheDirectory::Open({.path = copy.path(), .disk_reserve_bytes = 0});
    EXPECT_EQ(opened.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(opened.status().message()), HasSubstr(BaseName(log) + " is gone"));
    const auto repaired = Repair(copy.path());
    ASSERT_TRUE(repaired.ok()) << repaired.status();
    EXPECT_TRUE(repaired->report.gone_at_least);
    EXPECT_THAT(repaired->report.damaged_files, Contains(HasSubstr(BaseName(log))));
    const auto cache = OpenCache(copy.path());
    EXPECT_GT(cache->sections().identity().incarnation, before.incarnation);
    EXPECT_THAT(VerifyAll(*cache), IsEmpty());
  }
}

// Of the last log that is what a crash leaves; the others were synced before it.
TEST_F(RepairLogsTest, CutEndOfALogBeforeTheLastIsNoticed) {
  Fill({kCacheData});
  Kill();
  ASSERT_GT(logs_.size(), 2u);
  CutFile(logs_[1], ReadFile(logs_[1])->size() - 5);
  EXPECT_EQ(Opening(), absl::StatusCode::kDataLoss);
  const Repaired repaired = ExpectRepairs(0);
  EXPECT_TRUE(repaired.report.gone_at_least);
  EXPECT_THAT(repaired.report.damaged_files, Contains(HasSubstr("is cut off")));
}

// RocksDB numbers files with six digits and then with more: as text 1000000 comes before 999999.
TEST_F(RepairLogsTest, LogsOfMoreThanSixDigitsComeAfterTheOthers) {
  Fill({kCacheData});
  Kill();
  ASSERT_GT(logs_.size(), 2u);
  std::string note;
  for (size_t i = 0; i < logs_.size(); ++i) {
    const std::string name = absl::StrCat(1'000'001 - logs_.size() + i, ".log");
    const std::string renamed = JoinPath(JoinPath(path_, "db"), name);
    ASSERT_EQ(rename(logs_[i].c_str(), renamed.c_str()), 0);
    logs_[i] = renamed;
    absl::StrAppend(&note, name, "\n");
  }
  SH_CHECK_OK(WriteFileAtomically(JoinPath(path_, "db/SYNCED_LOGS"), note));
  // (The MANIFEST still has the old numbers, so that RocksDB is not asked.)
  EXPECT_EQ(CheckLogFiles(JoinPath(path_, "db")), absl::OkStatus());
  const auto with_cut = [&](const std::string& log) {
    const TempFolder copy = *TempFolder::Create();
    CopyCache(path_, copy.path());
    const std::string folder = JoinPath(copy.path(), "db");
    CutFile(JoinPath(folder, BaseName(log)), ReadFile(log)->size() - 5);
    return CheckLogFiles(folder).code();
  };
  EXPECT_EQ(with_cut(logs_.back()), absl::StatusCode::kOk);  // as a crash leaves it
  EXPECT_EQ(with_cut(logs_[logs_.size() - 2]), absl::StatusCode::kDataLoss);
  SH_CHECK_OK(RemoveTree(ManifestOf(path_)));
  const Repaired repaired = ExpectRepairs(PartsOf(kDocuments));
  EXPECT_THAT(repaired.report.damaged_files, Each(testing::Not(HasSubstr(".log"))));
  EXPECT_THAT(repaired.gone, IsEmpty());
}

// The store keeps its name as long as any table tells it.
TEST_F(RepairLogsTest, IdentityOutlivesDamageOfItsTable) {
  Fill({kCacheData});
  const std::string id = live_->sections().identity().store_id;
  KvBatch batch;  // another block of the table
  for (char c = 'a'; c <= 'z'; ++c) batch.Put(kCacheMeta, {'z', c}, std::string(2000, c));
  SH_CHECK_OK(live_->sections().store().Write(batch, KvStore::Sync::kSync));
  SH_CHECK_OK(live_->Close());
  CopyCache(live_path_, path_);
  int damaged = 0;
  for (const std::string& table : DatabaseFiles(path_, ".sst")) {
    const std::string bytes = *ReadFile(table);
    if (bytes.find(id) == std::string::npos) continue;
    ++damaged;
    FlipBit(table, bytes.find(std::string(2000, 'y')), 1);
  }
  ASSERT_EQ(damaged, 1);
  ASSERT_TRUE(Repair(path_).ok());
  EXPECT_EQ(OpenCache(path_)->sections().identity().store_id, id);
}

// Whatever happens to its files, a repair ends with a clean cache that serves nothing wrong and
// needs no second one. Fails with its seed; more seeds by SH_REPAIR_SEEDS=n.
class AnyDamageTest : public RepairLogsTest {
 protected:
  std::string RandomFile(const std::string& suffix) {
    const std::vector<std::string> files = DatabaseFiles(path_, suffix);
    return files.empty() ? "" : files[random_.NextBelow(files.size())];
  }
  void Damage() {
    const std::string file = RandomFile(random_.NextBelow(3) == 0 ? ".log" : ".sst");
    const std::string other = RandomFile(file.substr(file.size() - 4));
    const uint64_t size = ReadFile(file)->size();
    const uint64_t kind = random_.NextBelow(6);
    SCOPED_TRACE(absl::StrCat(kind, " ", BaseName(file)));
    if (kind == 0) {
      SH_CHECK_OK(RemoveTree(file));
    } else if (kind == 1 && size > 0) {
      FlipBit(file, random_.NextBelow(size), static_cast<int>(random_.NextBelow(8)));
    } else if (kind == 2) {
      CutFile(file, size / 2);
      like_a_crash_ = like_a_crash_ || (file.ends_with(".log") && size > 1);
    } else if (kind == 3) {
      const std::string name = absl::StrCat("0008", 10 + random_.NextBelow(90));
      SH_CHECK_OK(WriteFileAtomically(
          JoinPath(path_, absl::StrCat("db/", name, file.substr(file.size() - 4))),
          *ReadFile(file)));
    } else if (kind == 4) {
      const std::string bytes = *ReadFile(other);
      SH_CHECK_OK(WriteFileAtomically(other, *ReadFile(file)));
      SH_CHECK_OK(WriteFileAtomically(file, bytes));
    } else {
      const char* names[] = {"db/CURRENT", "db/SYNCED_LOGS"};
      const uint64_t name = random_.NextBelow(2);
      SH_CHECK_OK(RemoveTree(JoinPath(path_, names[name])));
      like_a_crash_ = like_a_crash_ || name == 1;  // together with a log
    }
    done_ += absl::StrCat(kind, " ", BaseName(file), "; ");
  }

  // Is what is not there told by the opening, a reading or verify?
  bool IsTold() {
    const auto cache = CacheDirectory::Open({.path = path_, .read_only = true});
    if (!cache.ok()) return true;
    const Served served = AskAll(**cache, kDocuments);
    EXPECT_EQ(served.wrong, 0);
    return served.absent + served.damaged == 0 || !VerifyAll(**cache).empty();
  }

  RandomStream random_{0};
  bool like_a_crash_ = false;  // which nothing can tell
  std::string done_;
};

TEST_F(AnyDamageTest, IsRepaired) {
  Fill({kCacheData, kCacheObjects});
  const char* text = std::getenv("SH_REPAIR_SEEDS");
  const int seeds = text == nullptr ? 4 : std::atoi(text);
  for (int seed = 1; seed <= seeds && !HasFailure(); ++seed) {
    random_ = RandomStream(seed);
    done_.clear();
    like_a_crash_ = false;
    SH_CHECK_OK(RemoveTree(path_));
    Kill();
    for (uint64_t n = random_.NextBelow(3) + 1; n > 0; --n) Damage();
    SCOPED_TRACE(absl::StrCat("seed ", seed, ": ", done_));
    EXPECT_TRUE(like_a_crash_ || IsTold());
    const auto repaired = Repair(path_);
    ASSERT_TRUE(repaired.ok()) << repaired.status();
    const auto again = Repair(path_);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_FALSE(again->report.changed);
    ExpectMended(path_, kDocuments, 0);
  }
}

}  // namespace
}  // namespace stillhouse
