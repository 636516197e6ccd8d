// A process that fills a cache is killed at every edge of what it does to the disk: before and
// after each sync, rename, link and deletion. What it had acknowledged is there, once, and the
// cache is clean.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/mutex.h"
#include "tests/storage/child_test.h"
#include "tests/storage/damage_fixture.h"

namespace stillhouse {
namespace {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using testing::IsEmpty;

constexpr int kPuts = 5;
constexpr int kEdgesMax = 2000;  // more than there are

// Counts edges and kills the process at one of them.
class Edges {
 public:
  explicit Edges(int last) : left_(last) {}
  void Pass() {
    MutexLock lock(mutex_);
    if (--left_ == 0) kill(getpid(), SIGKILL);
  }
  template <typename Work>
  IOStatus Around(Work work) {
    Pass();
    const IOStatus status = work();
    Pass();
    return status;
  }

 private:
  Mutex mutex_;
  int left_ ABSL_GUARDED_BY(mutex_);
};

class EdgeFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  EdgeFile(Edges& edges, std::unique_ptr<rocksdb::FSWritableFile> file)
      : rocksdb::FSWritableFileOwnerWrapper(std::move(file)), edges_(edges) {}
  IOStatus Sync(const IOOptions& options, IODebugContext* debug) override {
    return edges_.Around([&] { return target()->Sync(options, debug); });
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    return edges_.Around([&] { return target()->Fsync(options, debug); });
  }

 private:
  Edges& edges_;
};

class EdgeFiles final : public rocksdb::FileSystemWrapper {
 public:
  explicit EdgeFiles(Edges& edges)
      : rocksdb::FileSystemWrapper(rocksdb::FileSystem::Default()), edges_(edges) {}
  const char* Name() const override { return "EdgeFiles"; }
  IOStatus NewWritableFile(const std::string& path, const FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file,
                           IODebugContext* debug) override {
    std::unique_ptr<rocksdb::FSWritableFile> made;
    const IOStatus status = target()->NewWritableFile(path, options, &made, debug);
    if (status.ok()) *file = std::make_unique<EdgeFile>(edges_, std::move(made));
    return status;
  }
  IOStatus DeleteFile(const std::string& path, const IOOptions& options,
                      IODebugContext* debug) override {
    return edges_.Around([&] { return target()->DeleteFile(path, options, debug); });
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions& options,
                      IODebugContext* debug) override {
    return edges_.Around([&] { return target()->RenameFile(from, to, options, debug); });
  }
  IOStatus LinkFile(const std::string& from, const std::string& to, const IOOptions& options,
                    IODebugContext* debug) override {
    return edges_.Around([&] { return target()->LinkFile(from, to, options, debug); });
  }

 private:
  Edges& edges_;
};

// The items of put p: two small ones, or a large one that is ingested.
std::vector<PutItem> ItemsOf(int p) {
  if (p % 3 == 2) return {DamageItem(4 * p + 3)};
  return {DamageItem(4 * p), DamageItem(4 * p + 1)};
}

// Told "<cache> <file of acknowledgements> <edge>".
TEST(KillPointsChildTest, DISABLED_FillsUntilKilled) {
  const std::vector<std::string> told = absl::StrSplit(ChildTold(), ' ');
  ASSERT_EQ(told.size(), 3u);
  int last = 0;
  ASSERT_TRUE(absl::SimpleAtoi(told[2], &last));
  Edges edges(last);
  const auto files = std::make_shared<EdgeFiles>(edges);
  const std::unique_ptr<rocksdb::Env> env = rocksdb::NewCompositeEnv(files);
  const int acknowledged = open(told[1].c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  ASSERT_GE(acknowledged, 0);
  auto cache = *CacheDirectory::Open({.path = told[0], .disk_reserve_bytes = 0, .env = env.get()});
  for (int p = 0; p < kPuts; ++p) {
    SH_CHECK_OK(cache->sections().Put(ItemsOf(p)));
    ASSERT_EQ(write(acknowledged, "+", 1), 1);
    if (p == 3) SH_CHECK_OK(cache->sections().store().Flush());
  }
  SH_CHECK_OK(cache->Close());
}

TEST(KillPointsTest, NothingAcknowledgedIsLostAtAnyEdge) {
  int killed = 0;
  for (int edge = 1; edge < kEdgesMax; ++edge) {
    SCOPED_TRACE(absl::StrCat("edge ", edge));
    const TempFolder folder = *TempFolder::Create();
    const std::string path = JoinPath(folder.path(), "cache");
    const std::string acknowledgements = JoinPath(folder.path(), "acknowledged");
    const std::string output = JoinPath(folder.path(), "output");
    const int ended = RunChildTest("KillPointsChildTest.DISABLED_FillsUntilKilled",
                                   absl::StrCat(path, " ", acknowledgements, " ", edge), output);
    ASSERT_TRUE(ended == 0 || ended == -SIGKILL) << ended << *ReadFile(output);
    const auto bytes = ReadFile(acknowledgements);
    const int acknowledged = bytes.ok() ? static_cast<int>(bytes->size()) : 0;
    auto cache = CacheDirectory::Open({.path = path, .disk_reserve_bytes = 0});
    ASSERT_TRUE(cache.ok()) << cache.status();
    for (int p = 0; p < acknowledged; ++p) {
      for (const PutItem& item : ItemsOf(p)) {
        for (const Part& part : item.parts) {
          const auto got = (*cache)->sections().Get({part.key}, kAnyBytes);
          ASSERT_TRUE(got.ok()) << got.status();
          ASSERT_TRUE((*got)[0].has_value()) << "put " << p << " was acknowledged and is gone";
          EXPECT_EQ((*got)[0]->payload, part.payload);
        }
      }
    }
    EXPECT_THAT(VerifyAll(**cache), IsEmpty());
    // All of it comes again, and is there once.
    uint64_t parts = 0, counted = 0;
    for (int p = 0; p < kPuts; ++p) {
      for (const PutItem& item : ItemsOf(p)) parts += item.parts.size();
      SH_CHECK_OK((*cache)->sections().Put(ItemsOf(p)));
    }
    const auto totals = *(*cache)->sections().Totals();
    for (const auto& [spec, total] : totals) counted += total.parts;
    EXPECT_EQ(counted, parts);
    EXPECT_THAT(VerifyAll(**cache), IsEmpty());
    if (ended == 0) {
      EXPECT_EQ(acknowledged, kPuts);
      EXPECT_GT(killed, 20);
      std::printf("killed at each of %d edges\n", killed);
      return;
    }
    ++killed;
    if (HasFailure()) return;
  }
  FAIL() << "never got to the end";
}

}  // namespace
}  // namespace stillhouse
