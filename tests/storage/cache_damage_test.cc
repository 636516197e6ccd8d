// Bit flips and cuts at many seeded places: each is found by opening, by reading or by verify; what
// it does not touch is served; a repair brings the cache back to clean. More places by
// SH_DAMAGE_PLACES=n.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/storage/damage_fixture.h"

namespace stillhouse {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

constexpr int kDocuments = 8;
constexpr uint64_t kFooterBytes = 53;  // of a table: parts of it are padding that nothing reads

int Places() {
  const char* places = std::getenv("SH_DAMAGE_PLACES");
  return places == nullptr ? 6 : std::atoi(places);
}

// The family of a table, as far as tests need to know it: only tables of records are large.
std::vector<std::string> TablesOf(const std::string& path, bool data) {
  std::vector<std::string> files;
  for (const std::string& file : DatabaseFiles(path, ".sst")) {
    const std::string bytes = *ReadFile(file);
    if ((bytes.find("SHrc") != std::string::npos) == data) files.push_back(file);
  }
  return files;
}

class CacheDamageTest : public testing::Test {
 protected:
  void SetUp() override { FillCache(path_, kDocuments, /*sittings=*/2); }

  struct Outcome {
    bool refused = false;  // at open
    bool found = false;    // there, or by reading or verify
    Served served;
  };
  Outcome LookAt(const std::string& path) {
    Outcome outcome;
    auto cache = CacheDirectory::Open({.path = path, .disk_reserve_bytes = 0});
    if (!cache.ok()) {
      EXPECT_EQ(cache.status().code(), absl::StatusCode::kDataLoss) << cache.status();
      outcome.refused = outcome.found = true;
      return outcome;
    }
    outcome.served = AskAll(**cache, kDocuments);
    EXPECT_EQ(outcome.served.wrong, 0);
    const bool clean = VerifyAll(**cache).empty();
    outcome.found = !clean || outcome.served.damaged > 0;
    return outcome;
  }
  // After a repair the cache is clean, serves at least `whole` parts, and takes the rest again.
  void ExpectRepairs(const std::string& path, int whole) {
    const auto repaired = Repair(path);
    ASSERT_TRUE(repaired.ok()) << repaired.status();
    ExpectMended(path, kDocuments, whole);
  }
  // Flips one bit of `file` (of the original) in a copy of the cache, at a place below `limit`.
  void Flip(const std::string& file, uint64_t limit, const std::string& copy) {
    CopyCache(path_, copy);
    const uint64_t byte = random_.NextBelow(limit);
    const int bit = static_cast<int>(random_.NextBelow(8));
    place_ = absl::StrCat("seed ", kSeed, ": ", BaseName(file), " byte ", byte, " bit ", bit);
    FlipBit(JoinPath(JoinPath(copy, "db"), BaseName(file)), byte, bit);
  }

  static constexpr uint64_t kSeed = 4;
  RandomStream random_{kSeed};
  std::string place_;
  TempFolder folder_ = *TempFolder::Create();
  std::string path_ = JoinPath(folder_.path(), "cache");
};

TEST_F(CacheDamageTest, FlipsInTablesOfRecordsAreFoundAndCostLittle) {
  for (const std::string& file : TablesOf(path_, /*data=*/true)) {
    const uint64_t size = ReadFile(file)->size();
    for (int i = 0; i < Places(); ++i) {
      const TempFolder copy = *TempFolder::Create();
      Flip(file, size - kFooterBytes, copy.path());
      SCOPED_TRACE(place_);
      const Outcome outcome = LookAt(copy.path());
      EXPECT_TRUE(outcome.found);
      // One block is hit: a large record, or some of the small ones. All others are served.
      if (!outcome.refused) {
        EXPECT_GE(outcome.served.whole, PartsOf(kDocuments) - 6);
      }
      ExpectRepairs(copy.path(), PartsOf(kDocuments) - 1);
    }
  }
}

// Of the index nothing is lost: it is made again before the cache serves.
TEST_F(CacheDamageTest, FlipsInOtherTablesLoseNoPart) {
  for (const std::string& file : TablesOf(path_, /*data=*/false)) {
    const uint64_t size = ReadFile(file)->size();
    for (int i = 0; i < Places() / 2; ++i) {
      const TempFolder copy = *TempFolder::Create();
      Flip(file, size - kFooterBytes, copy.path());
      SCOPED_TRACE(place_);
      const Outcome outcome = LookAt(copy.path());
      if (!outcome.refused) {
        EXPECT_EQ(outcome.served.whole, PartsOf(kDocuments));
      }
      ExpectRepairs(copy.path(), PartsOf(kDocuments));
    }
  }
}

TEST_F(CacheDamageTest, IndexThatCannotBeReadIsMadeAgainAtOpen) {
  // The index is the family whose keys are section keys.
  const PartKey key = DamageItem(kDocuments - 2).parts[0].key;
  int tried = 0;
  for (const std::string& file : TablesOf(path_, /*data=*/false)) {
    const std::string bytes = *ReadFile(file);
    if (bytes.find(IndexKey(key)) == std::string::npos) continue;
    for (const uint64_t at : {uint64_t{3}, bytes.size() / 2, bytes.size() - 1}) {
      SCOPED_TRACE(at);
      ++tried;
      const TempFolder copy = *TempFolder::Create();
      CopyCache(path_, copy.path());
      FlipBit(JoinPath(JoinPath(copy.path(), "db"), BaseName(file)), at, 2);
      {
        const auto cache = OpenCache(copy.path());
        EXPECT_EQ(AskAll(*cache, kDocuments).whole, PartsOf(kDocuments));
        EXPECT_THAT(VerifyAll(*cache), IsEmpty());
        EXPECT_EQ(cache->sections().Totals()->at("stats").parts, 4u);
        // It can be written to, which a damaged block would have prevented.
        PutDocuments(*cache, 100, 104);
        SH_CHECK_OK(cache->Close());
      }
      // The damaged file is kept.
      const std::vector<std::string> kept = *ListFolder(JoinPath(copy.path(), "quarantine/open-1"));
      EXPECT_THAT(kept, testing::Contains(BaseName(file)));
      const auto again = OpenCache(copy.path());
      EXPECT_EQ(AskAll(*again, kDocuments).whole, PartsOf(kDocuments));
    }
  }
  EXPECT_EQ(tried, 3);
}

TEST_F(CacheDamageTest, FlipsInCurrentAndManifestLoseNothing) {
  for (const std::string& file : {JoinPath(path_, "db/CURRENT"), ManifestOf(path_)}) {
    const uint64_t size = ReadFile(file)->size();
    for (int i = 0; i < Places(); ++i) {
      const TempFolder copy = *TempFolder::Create();
      Flip(file, size, copy.path());
      SCOPED_TRACE(place_);
      const Outcome outcome = LookAt(copy.path());
      // One that looks like a torn tail is opened; what is then unnamed has been set aside.
      if (!outcome.refused) {
        EXPECT_EQ(outcome.served.damaged, 0);
      }
      ExpectRepairs(copy.path(), PartsOf(kDocuments));
    }
  }
}

// RocksDB takes a MANIFEST cut at its end for the traces of a crash, and would delete the files
// that it then does not name.
TEST_F(CacheDamageTest, CutManifestLosesNoFile) {
  const uint64_t size = ReadFile(ManifestOf(path_))->size();
  int absent = 0;
  for (int i = 1; i <= 2 * Places(); ++i) {
    const TempFolder copy = *TempFolder::Create();
    CopyCache(path_, copy.path());
    const uint64_t left = size - size * i / (2 * Places() + 1);
    SCOPED_TRACE(absl::StrCat("cut to ", left, " of ", size));
    CutFile(ManifestOf(copy.path()), left);
    auto cache = CacheDirectory::Open({.path = copy.path(), .disk_reserve_bytes = 0});
    if (cache.ok()) {
      const Served served = AskAll(**cache, kDocuments);
      EXPECT_EQ(served.wrong + served.damaged, 0);
      absent += served.absent;
      // Segments are numbered as before the cut: what was there must not be mixed with what comes.
      PutDocuments(**cache, 200, 205);
      SH_CHECK_OK((*cache)->Close());
      ExpectRepairs(copy.path(), PartsOf(kDocuments));
      const auto mended = OpenCache(copy.path());
      for (int d = 200; d < 205; ++d) {
        for (const Part& part : DamageItem(d).parts) {
          EXPECT_EQ((*mended->sections().Get({part.key}, kAnyBytes))[0]->payload, part.payload);
        }
      }
    } else {
      EXPECT_EQ(cache.status().code(), absl::StatusCode::kDataLoss) << cache.status();
      ExpectRepairs(copy.path(), PartsOf(kDocuments));
    }
  }
  EXPECT_GT(absent, 0);  // files were set aside and taken back
}

TEST_F(CacheDamageTest, FlipsInTheLogAreFoundAndRepaired) {
  const TempFolder live = *TempFolder::Create();
  const auto cache = OpenCache(live.path());
  constexpr int kMany = 120;
  const auto item = [](int d) {
    return PutItem{TestParts(SectionSpec{}, TestDocument(d), 100, d), TestProvenance({})};
  };
  for (int d = 0; d < kMany; ++d) SH_CHECK_OK(cache->sections().Put({item(d)}));
  const std::string log = DatabaseFiles(live.path(), ".log").back();
  const uint64_t size = ReadFile(log)->size();
  // In its last block damage may look like a write that a crash cut short.
  constexpr uint64_t kBlock = 32 << 10;
  ASSERT_GT(size, 3 * kBlock);
  for (int i = 0; i < 2 * Places(); ++i) {
    const TempFolder copy = *TempFolder::Create();
    CopyCache(live.path(), copy.path());
    const uint64_t byte = random_.NextBelow(size - 2 * kBlock);
    SCOPED_TRACE(absl::StrCat("byte ", byte, " of ", size));
    FlipBit(JoinPath(JoinPath(copy.path(), "db"), BaseName(log)), byte,
            static_cast<int>(random_.NextBelow(8)));
    EXPECT_EQ(CacheDirectory::Open({.path = copy.path()}).status().code(),
              absl::StatusCode::kDataLoss);
    ASSERT_TRUE(Repair(copy.path()).ok());
    const auto mended = OpenCache(copy.path());
    int whole = 0;
    for (int d = 0; d < kMany; ++d) {
      const auto got = *mended->sections().Get({item(d).parts[0].key}, kAnyBytes);
      whole += got[0].has_value() && got[0]->payload == item(d).parts[0].payload;
    }
    EXPECT_GE(whole, kMany / 2);
    EXPECT_THAT(VerifyAll(*mended), IsEmpty());
  }
}

TEST_F(CacheDamageTest, DamagedPartIsToldOnceThenCapturedAgain) {
  const std::vector<Part> parts = DamageItem(1).parts;
  const PartKey key = parts[0].key;
  {
    const auto cache = OpenCache(path_);
    DamageRecordOf(*cache, key);
    const SpecTotals before = cache->sections().Totals()->at("logits/sampled?draws=50");

    const PartKey sound = DamageItem(0).parts[0].key;
    EXPECT_THAT(*cache->sections().Get({sound, key}, kAnyBytes), SizeIs(1));
    const absl::Status told = cache->sections().Get({key}, kAnyBytes).status();
    EXPECT_EQ(told.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(told.message()), HasSubstr(key.section.ShortHex()));
    EXPECT_EQ(cache->sections().Find({key})->at(0), std::nullopt);
    EXPECT_TRUE(cache->sections().HasUnsavedDamage());
    SH_CHECK_OK(cache->sections().SaveDamage());
    EXPECT_FALSE(cache->sections().HasUnsavedDamage());
    EXPECT_EQ(cache->sections().Totals()->at("logits/sampled?draws=50").parts, before.parts);
    SH_CHECK_OK(cache->Close());
  }
  {
    const auto cache = OpenCache(path_);
    EXPECT_EQ(cache->sections().damaged_parts(), 1u);
    EXPECT_FALSE((*cache->sections().Get({key}, kAnyBytes))[0].has_value());
    const SpecTotals before = cache->sections().Totals()->at("logits/sampled?draws=50");
    const PutCounts counts = (*cache->sections().Put({DamageItem(1)}))[0];
    EXPECT_EQ(counts.stored, 1u);
    EXPECT_EQ(counts.mismatched, 0u);
    EXPECT_EQ((*cache->sections().Get({key}, kAnyBytes))[0]->payload, parts[0].payload);
    const SpecTotals after = cache->sections().Totals()->at("logits/sampled?draws=50");
    EXPECT_EQ(after.parts, before.parts);
    EXPECT_EQ(after.sections, before.sections);
    EXPECT_EQ(after.rows, before.rows);
    SH_CHECK_OK(cache->Close());
  }
  const auto cache = OpenCache(path_);
  EXPECT_EQ(cache->sections().damaged_parts(), 0u);
  EXPECT_EQ(AskAll(*cache, kDocuments).whole, PartsOf(kDocuments));
}

// A damaged block of the database: verify names every part in it, and still sees what lies behind.
TEST_F(CacheDamageTest, VerifyNamesEachPartOfADamagedBlock) {
  for (const std::string& file : TablesOf(path_, /*data=*/true)) {
    const std::string bytes = *ReadFile(file);
    if (bytes.find("SHrc") > 4096 || bytes.size() > 1'000'000) continue;
    const TempFolder copy = *TempFolder::Create();
    CopyCache(path_, copy.path());
    FlipBit(JoinPath(JoinPath(copy.path(), "db"), BaseName(file)), bytes.find("SHrc") + 1, 0);
    const auto cache = OpenCache(copy.path());
    const std::vector<std::string> problems = VerifyAll(*cache);
    const Served served = AskAll(*cache, kDocuments);
    EXPECT_THAT(problems, Not(IsEmpty()));
    // Verify noted them: they are absent now.
    EXPECT_EQ(served.damaged, 0);
    const auto named = std::count_if(problems.begin(), problems.end(), [](const auto& problem) {
      return problem.starts_with("index ");
    });
    EXPECT_EQ(named, served.absent);
    EXPECT_GT(served.whole, 0);
    PutDocuments(*cache, 0, kDocuments);
    EXPECT_EQ(AskAll(*cache, kDocuments).whole, PartsOf(kDocuments));
    return;
  }
  FAIL() << "no table of small records";
}

TEST_F(CacheDamageTest, LeftoversOfACrashGoOnceTheyHoldNothingMore) {
  const TempFolder crashed = *TempFolder::Create();
  {
    // An ingested file whose edit of the MANIFEST was not written.
    const auto cache = OpenCache(path_);
    CopyCache(path_, crashed.path());
    SH_CHECK_OK(cache->sections().Put({DamageItem(103)}));
    std::set<std::string> before;
    for (const std::string& file : DatabaseFiles(crashed.path(), ".sst")) {
      before.insert(BaseName(file));
    }
    int copied = 0;
    for (const std::string& file : DatabaseFiles(path_, ".sst")) {
      if (before.contains(BaseName(file))) continue;
      ++copied;
      SH_CHECK_OK(WriteFileAtomically(JoinPath(JoinPath(crashed.path(), "db"), BaseName(file)),
                                      *ReadFile(file)));
    }
    ASSERT_EQ(copied, 1);
  }
  const std::string aside = JoinPath(crashed.path(), "quarantine/open-1");
  {
    const auto cache = OpenCache(crashed.path());
    EXPECT_THAT(*ListFolder(aside), SizeIs(1));
    EXPECT_EQ(AskAll(*cache, kDocuments).whole, PartsOf(kDocuments));
    SH_CHECK_OK(cache->Close());
  }
  {
    const auto cache = OpenCache(crashed.path());
    EXPECT_THAT(*ListFolder(aside), SizeIs(1));  // its parts are in no other place
    SH_CHECK_OK(cache->sections().Put({DamageItem(103)}));
    SH_CHECK_OK(cache->Close());
  }
  const auto cache = OpenCache(crashed.path());
  EXPECT_FALSE(PathExists(JoinPath(crashed.path(), "quarantine")));
  EXPECT_THAT(VerifyAll(*cache), IsEmpty());
}

}  // namespace
}  // namespace stillhouse
