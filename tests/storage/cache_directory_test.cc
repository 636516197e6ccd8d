#include "storage/cache_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/file.h"
#include "common/status.h"
#include "storage/cache_verify.h"
#include "tests/storage/section_fixtures.h"

namespace stillhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kAnyBytes = 1ull << 30;

// The parts of one section, stored in a cache at `path` that is closed again.
std::vector<Part> StoreAndClose(const std::string& path) {
  const auto cache = *CacheDirectory::Open({.path = path, .disk_reserve_bytes = 0});
  const SectionSpec spec = HiddenSpec(8192);
  const std::vector<Part> parts = TestParts(spec, TestDocument(1), 256, 1);
  SH_CHECK_OK(cache->sections().Put({PutItem{parts, TestProvenance(spec)}}));
  SH_CHECK_OK(cache->Close());
  return parts;
}

TEST(CacheDirectoryTest, IsHeldByOneWriterOrManyReaders) {
  const TempFolder folder = *TempFolder::Create();
  const std::string path = JoinPath(folder.path(), "cache");
  EXPECT_EQ(CacheDirectory::Open({.path = path, .read_only = true}).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(PathExists(path));
  auto writer = *CacheDirectory::Open({.path = path});
  const absl::Status second = CacheDirectory::Open({.path = path}).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.message()), HasSubstr("held by another process"));
  EXPECT_EQ(CacheDirectory::Open({.path = path, .read_only = true}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  const std::string store_id = writer->sections().identity().store_id;
  SH_CHECK_OK(writer->Close());
  const auto reader = *CacheDirectory::Open({.path = path, .read_only = true});
  const auto other = *CacheDirectory::Open({.path = path, .read_only = true});
  EXPECT_EQ(reader->sections().identity().incarnation, 1u);
  EXPECT_EQ(reader->sections().identity().store_id, store_id);
  EXPECT_EQ(CacheDirectory::Open({.path = path}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(CacheDirectoryTest, FilesBeingPreparedAreRemovedAtOpen) {
  const TempFolder folder = *TempFolder::Create();
  SH_CHECK_OK(WriteFileAtomically(JoinPath(folder.path(), "1-1.ingest"), "half"));
  SH_CHECK_OK(WriteFileAtomically(JoinPath(folder.path(), "mine.txt"), "kept"));
  const auto cache = *CacheDirectory::Open({.path = folder.path()});
  EXPECT_THAT(*ListFolder(folder.path()), ElementsAre("STILLHOUSE.LOCK", "db", "mine.txt"));
}

// RocksDB would make a new database there and delete the files that no manifest names.
TEST(CacheDirectoryTest, WithoutCurrentItIsRefusedAndNothingIsTouched) {
  const TempFolder folder = *TempFolder::Create();
  const auto parts = StoreAndClose(folder.path());
  const std::string database = JoinPath(folder.path(), "db");
  const std::string current = JoinPath(database, "CURRENT");
  const std::string content = *ReadFile(current);
  SH_CHECK_OK(RemoveTree(current));
  const std::vector<std::string> names = *ListFolder(database);
  for (int i = 0; i < 2; ++i) {
    const absl::Status refused = CacheDirectory::Open({.path = folder.path()}).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("the file CURRENT is gone"));
    EXPECT_EQ(*ListFolder(database), names);
  }
  SH_CHECK_OK(WriteFileAtomically(current, content));
  const auto cache = *CacheDirectory::Open({.path = folder.path()});
  EXPECT_TRUE((*cache->sections().Get({parts[0].key}, 1 << 30))[0].has_value());
}

// A bit flipped on the disk itself, under a cache that was closed cleanly.
TEST(CacheDirectoryTest, FlippedBitInAFileIsFoundByGetAndVerify) {
  const TempFolder folder = *TempFolder::Create();
  const auto parts = StoreAndClose(folder.path());
  const std::string database = JoinPath(folder.path(), "db");
  std::string largest;
  std::string bytes;
  const std::vector<std::string> names = *ListFolder(database);
  for (const std::string& name : names) {
    if (!name.ends_with(".sst")) continue;
    const std::string content = *ReadFile(JoinPath(database, name));
    if (content.size() > bytes.size()) largest = JoinPath(database, name), bytes = content;
  }
  bytes[bytes.size() / 2] ^= 4;
  SH_CHECK_OK(WriteFileAtomically(largest, bytes));
  const auto cache = *CacheDirectory::Open({.path = folder.path(), .read_only = true});
  EXPECT_EQ(cache->sections().Get({parts[0].key}, kAnyBytes).status().code(),
            absl::StatusCode::kDataLoss);
  const VerifyStep step = *VerifyCache(cache->sections(), cache->objects(), "");
  EXPECT_THAT(step.problems, ElementsAre(HasSubstr(BaseName(largest))));
}

// Damage in the middle of the log must not open as if the rest had never been written.
TEST(CacheDirectoryTest, FlippedBitInTheLogIsRefusedAtOpenAndNamesWhatToDo) {
  const TempFolder folder = *TempFolder::Create();
  const TempFolder copy = *TempFolder::Create();
  auto cache = *CacheDirectory::Open({.path = folder.path(), .disk_reserve_bytes = 0});
  for (int i = 0; i < 20; ++i) {
    SH_CHECK_OK(cache->sections().Put(
        {PutItem{TestParts(SectionSpec{}, TestDocument(i), 2000, i), TestProvenance({})}}));
  }
  // What a power loss now would leave.
  const std::string from = JoinPath(folder.path(), "db"), to = JoinPath(copy.path(), "db");
  SH_CHECK_OK(MakeFolders(to));
  const std::vector<std::string> names = *ListFolder(from);
  for (const std::string& name : names) {
    std::string bytes = *ReadFile(JoinPath(from, name));
    if (name.ends_with(".log")) bytes[bytes.size() / 2] ^= 1;
    SH_CHECK_OK(WriteFileAtomically(JoinPath(to, name), bytes));
  }
  const absl::Status status = CacheDirectory::Open({.path = copy.path()}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("is damaged"));
}

}  // namespace
}  // namespace stillhouse
