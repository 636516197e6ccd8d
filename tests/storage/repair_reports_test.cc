// What repair and verify say: every damaged record and file, what is gone or at least so much of
// it, and one clear line about what they will not touch.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "tests/storage/damage_fixture.h"

namespace stillhouse {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

constexpr int kDocuments = 16;

class RepairReportsTest : public testing::Test {
 protected:
  void SetUp() override { FillCache(path_, kDocuments, /*sittings=*/2); }

  std::vector<std::string> TablesWith(const std::string& bytes) {
    std::vector<std::string> tables = DatabaseFiles(path_, ".sst");
    std::erase_if(tables, [&](const auto& table) {
      return ReadFile(table)->find(bytes) == std::string::npos;
    });
    return tables;
  }
  std::string Largest() {
    std::vector<std::string> tables = DatabaseFiles(path_, ".sst");
    return *std::max_element(tables.begin(), tables.end(), [](const auto& a, const auto& b) {
      return ReadFile(a)->size() < ReadFile(b)->size();
    });
  }
  absl::Status Opening() {
    return CacheDirectory::Open({.path = path_, .disk_reserve_bytes = 0}).status();
  }

  TempFolder folder_ = *TempFolder::Create();
  std::string path_ = JoinPath(folder_.path(), "cache");
};

TEST_F(RepairReportsTest, LossOfIndexAndRecordIsCountedByTheRecordsHead) {
  const std::string table = Largest();
  FlipBit(table, ReadFile(table)->size() / 2, 3);
  const std::vector<std::string> index = TablesWith(IndexKey(DamageItem(0).parts[0].key));
  for (const std::string& file : index) {
    // The index, not the records, which hold the key too.
    if (ReadFile(file)->find("SHrc") == std::string::npos) SH_CHECK_OK(RemoveTree(file));
  }
  const auto repaired = Repair(path_);
  ASSERT_TRUE(repaired.ok()) << repaired.status();
  EXPECT_TRUE(repaired->report.gone_at_least);
  EXPECT_THAT(repaired->gone, SizeIs(1));
  EXPECT_THAT(repaired->report.damaged_files, Contains(HasSubstr("of the family index is gone")));
  ExpectMended(path_, kDocuments, PartsOf(kDocuments) - 1);
}

TEST_F(RepairReportsTest, LossOfATableOfObjectsIsSaid) {
  const auto before = Repair(path_);
  ASSERT_TRUE(before.ok()) << before.status();
  EXPECT_FALSE(before->report.objects_gone);
  const std::string name = "artefact/0";
  const std::vector<std::string> lost = TablesWith(name);
  for (const std::string& table : lost) FlipBit(table, ReadFile(table)->find(name), 3);
  ASSERT_THAT(lost, Not(IsEmpty()));
  const auto repaired = Repair(path_);
  ASSERT_TRUE(repaired.ok()) << repaired.status();
  EXPECT_TRUE(repaired->report.objects_gone);
  EXPECT_TRUE(repaired->report.gone_at_least);
}

TEST_F(RepairReportsTest, TableThatIsGoneIsNamedAndItsPartsCounted) {
  SH_CHECK_OK(RemoveTree(Largest()));
  EXPECT_EQ(Opening().code(), absl::StatusCode::kDataLoss);
  const auto repaired = Repair(path_);
  ASSERT_TRUE(repaired.ok()) << repaired.status();
  EXPECT_FALSE(repaired->report.gone_at_least);
  EXPECT_THAT(repaired->report.damaged_files, Contains(HasSubstr("of the family data is gone")));
  const auto cache = OpenCache(path_);
  EXPECT_EQ(AskAll(*cache, kDocuments).absent, static_cast<int>(repaired->gone.size()));
  EXPECT_THAT(repaired->gone, Not(IsEmpty()));
}

// A step that meets a bad block still checks what lies before it, and goes on behind it.
TEST_F(RepairReportsTest, VerifyNamesRecordsBeforeAndBehindABadBlock) {
  const auto places = [&](CacheDirectory& cache) {
    const auto found = *cache.sections().store().Scan(kCacheData, {.keys_only = true});
    std::vector<std::string> keys;
    for (const KvEntry& entry : found.entries) keys.push_back(entry.key);
    return keys;
  };
  std::string first, last;
  {
    const auto cache = OpenCache(path_);
    const std::vector<std::string> keys = places(*cache);
    DamageRecordAt(*cache, first = keys[1]);
    DamageRecordAt(*cache, last = keys.back());
    SH_CHECK_OK(cache->Close());
  }
  const std::string table = Largest();
  FlipBit(table, ReadFile(table)->size() / 2, 3);
  const auto cache = CacheDirectory::Open({.path = path_, .read_only = true});
  ASSERT_TRUE(cache.ok()) << cache.status();
  const std::vector<std::string> problems = VerifyAll(**cache);
  for (const std::string& key : {first, last}) {
    EXPECT_THAT(problems, Contains(HasSubstr("record " + absl::BytesToHexString(key))));
  }
  EXPECT_THAT(problems, Contains(HasSubstr(BaseName(table))));
}

TEST_F(RepairReportsTest, FolderWithATablesNameIsDamage) {
  SH_CHECK_OK(MakeFolders(JoinPath(path_, "db/000123.sst")));
  const absl::Status opened = Opening();
  EXPECT_EQ(opened.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(opened.message()), HasSubstr("000123.sst is not a file"));
  const auto repaired = Repair(path_);
  ASSERT_TRUE(repaired.ok()) << repaired.status();
  EXPECT_THAT(repaired->gone, IsEmpty());
  EXPECT_TRUE(PathExists(JoinPath(repaired->report.quarantine, "db/000123.sst")));
  ExpectMended(path_, kDocuments, PartsOf(kDocuments));
}

// Pipes, devices and folders with the names of files neither hang nor stop a repair.
class OddFileTest : public RepairReportsTest, public testing::WithParamInterface<const char*> {};

TEST_P(OddFileTest, IsDamageAndRepaired) {
  const std::string prefix = GetParam();
  for (const char* kind : {"pipe", "folder", "/dev/zero"}) {
    SCOPED_TRACE(kind);
    std::string file;
    const std::vector<std::string> names = *ListFolder(JoinPath(path_, "db"));
    for (const std::string& name : names) {
      if (absl::StartsWith(name, prefix)) file = JoinPath(path_, absl::StrCat("db/", name));
    }
    if (file.empty()) file = JoinPath(path_, absl::StrCat("db/", prefix));  // after a repair
    SH_CHECK_OK(RemoveTree(file));
    if (kind == absl::string_view("pipe")) {
      ASSERT_EQ(mkfifo(file.c_str(), 0600), 0);
    } else if (kind == absl::string_view("folder")) {
      SH_CHECK_OK(MakeFolders(file));
    } else {
      ASSERT_EQ(symlink(kind, file.c_str()), 0);
    }
    const absl::Status opened = Opening();
    EXPECT_EQ(opened.code(), absl::StatusCode::kDataLoss) << opened;
    EXPECT_THAT(std::string(opened.message()), HasSubstr("is not a file"));
    const auto repaired = Repair(path_);
    ASSERT_TRUE(repaired.ok()) << repaired.status();
    EXPECT_THAT(repaired->gone, IsEmpty());
    ExpectMended(path_, kDocuments, PartsOf(kDocuments));
  }
}

INSTANTIATE_TEST_SUITE_P(Names, OddFileTest,
                         testing::Values("CURRENT", "IDENTITY", "MANIFEST-", "SYNCED_LOGS"));

TEST_F(RepairReportsTest, TableCutBeforeItsFooterIsDamage) {
  const std::string table = Largest();
  ASSERT_EQ(truncate(table.c_str(), 1000), 0);
  for (const KvReads reads : {KvReads::kMapped, KvReads::kDirect}) {
    const absl::Status opened =
        CacheDirectory::Open({.path = path_, .read_only = true, .reads = reads}).status();
    EXPECT_EQ(opened.code(), absl::StatusCode::kDataLoss) << opened;
    EXPECT_THAT(std::string(opened.message()), HasSubstr("cache repair"));
  }
}

TEST_F(RepairReportsTest, QuarantineMustBeAFolderOfItsOwn) {
  const std::string quarantine = JoinPath(path_, "quarantine");
  SH_CHECK_OK(WriteFileAtomically(quarantine, "x"));
  for (int link = 0; link < 2; ++link) {
    for (const absl::Status& status : {Opening(), Repair(path_).status()}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("quarantine is "));
    }
    SH_CHECK_OK(RemoveTree(quarantine));
    ASSERT_EQ(symlink(folder_.path().c_str(), quarantine.c_str()), 0);
  }
}

TEST_F(RepairReportsTest, DatabaseBehindALinkIsLeftAlone) {
  const std::string database = JoinPath(path_, "db");
  ASSERT_EQ(rename(database.c_str(), JoinPath(path_, "elsewhere").c_str()), 0);
  ASSERT_EQ(symlink("elsewhere", database.c_str()), 0);
  SH_CHECK_OK(RemoveTree(JoinPath(database, "CURRENT")));
  const absl::Status refused = Repair(path_).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("db is a symbolic link"));
  // As a folder of the cache's own it can be repaired.
  ASSERT_EQ(unlink(database.c_str()), 0);
  ASSERT_EQ(rename(JoinPath(path_, "elsewhere").c_str(), database.c_str()), 0);
  ASSERT_TRUE(Repair(path_).ok());
  ExpectMended(path_, kDocuments, PartsOf(kDocuments));
}

TEST_F(RepairReportsTest, WhatMayNotBeReadIsNotDamaged) {
  if (geteuid() == 0) GTEST_SKIP() << "root may read everything";
  ASSERT_EQ(chmod(Largest().c_str(), 0), 0);
  EXPECT_EQ(Opening().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Repair(path_).status().code(), absl::StatusCode::kPermissionDenied);
  ASSERT_EQ(chmod(JoinPath(path_, "db").c_str(), 0), 0);
  EXPECT_EQ(Opening().code(), absl::StatusCode::kPermissionDenied);
  ASSERT_EQ(chmod(JoinPath(path_, "db").c_str(), 0700), 0);
}

}  // namespace
}  // namespace stillhouse
