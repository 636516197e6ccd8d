// KvStore::Visit over every store and every way to read, and which way is chosen.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "common/file.h"
#include "common/status.h"
#include "storage/choose_reads.h"
#include "storage/kv_store.h"

namespace stillhouse {
namespace {

using testing::ElementsAre;

constexpr uint64_t kMiB = 1 << 20;

std::string LargeValue(char fill) { return std::string(300'000, fill); }

class KvVisitTest : public testing::TestWithParam<const char*> {
 protected:
  bool OnDisk() const { return GetParam() != std::string("memory"); }
  RocksOptions Options() const {
    RocksOptions options;
    options.path = JoinPath(folder_.path(), "db");
    options.families = {{.name = "a", .automatic_compaction = false}};
    options.disk_reserve_bytes = 0;
    options.reads = GetParam() == std::string("direct") ? KvReads::kDirect : KvReads::kMapped;
    return options;
  }
  void SetUp() override {
    const std::string probe = JoinPath(folder_.path(), "probe");
    SH_CHECK_OK(WriteFileAtomically(probe, "x"));
    if (Options().reads == KvReads::kDirect && !SupportsDirectReads(probe)) {
      GTEST_SKIP() << "this file system has no direct reads";
    }
    store_ = OnDisk() ? *OpenRocksKvStore(Options()) : MakeMemoryKvStore(1);
    // Large ones in a file of their own, small ones in the log and, once flushed, in another.
    auto file = *store_->NewSortedFile(0);
    for (const char key : {'b', 'd', 'f'}) {
      SH_CHECK_OK(file->Add(std::string(1, key), LargeValue(key)));
    }
    SH_CHECK_OK(store_->Ingest(std::move(file)));
    KvBatch batch;
    for (int i = 0; i < 100; ++i) batch.Put(0, SmallKey(i), std::string(1000, 's'));
    SH_CHECK_OK(store_->Write(batch, KvStore::Sync::kSync));
  }
  static std::string SmallKey(int i) { return absl::StrCat("small ", 100 + i); }

  std::vector<KvWanted> All() const {
    std::vector<KvWanted> wanted;
    for (const char key : {'a', 'b', 'c', 'd', 'f'})
      wanted.push_back({std::string(1, key), 300'000});
    for (int i = 0; i < 100; ++i) wanted.push_back({SmallKey(i), 1000});
    wanted.push_back({SmallKey(100), 1000});
    return wanted;
  }

  TempFolder folder_ = *TempFolder::Create();
  std::unique_ptr<KvStore> store_;
};
INSTANTIATE_TEST_SUITE_P(Stores, KvVisitTest, testing::Values("memory", "mapped", "direct"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(KvVisitTest, ShowsEveryValueInOrderAndWhatIsAbsent) {
  const std::vector<KvWanted> wanted = All();
  for (const bool flushed : {false, true}) {
    if (flushed) SH_CHECK_OK(store_->Flush());
    size_t next = 0, absent = 0;
    SH_CHECK_OK(store_->Visit(0, wanted, [&](size_t i, std::optional<absl::string_view> value) {
      EXPECT_EQ(i, next++);
      if (!value.has_value()) {
        ++absent;
        return absl::OkStatus();
      }
      const std::string& key = wanted[i].key;
      EXPECT_TRUE(*value == (key.size() == 1 ? LargeValue(key[0]) : std::string(1000, 's'))) << key;
      return absl::OkStatus();
    }));
    EXPECT_EQ(next, wanted.size());
    EXPECT_EQ(absent, 3u);
  }
  SH_CHECK_OK(store_->Visit(0, {}, [](size_t, std::optional<absl::string_view>) {
    return absl::InternalError("nothing was asked for");
  }));
}

TEST_P(KvVisitTest, AnErrorOfTheVisitorEndsIt) {
  size_t last = 0;
  const absl::Status status =
      store_->Visit(0, All(), [&](size_t i, std::optional<absl::string_view>) {
        last = i;
        return i == 3 ? absl::AbortedError("enough") : absl::OkStatus();
      });
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_EQ(last, 3u);
}

TEST_P(KvVisitTest, ReadsAgainWhatItsVisitorFindsWrong) {
  std::vector<size_t> seen;
  const std::vector<KvWanted> wanted = {KvWanted{"b", 300'000}, KvWanted{"d", 300'000}};
  const absl::Status status =
      store_->Visit(0, wanted, [&](size_t i, std::optional<absl::string_view>) {
        seen.push_back(i);
        return i == 1 ? absl::DataLossError("a checksum of the visitor's own") : absl::OkStatus();
      });
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  if (GetParam() == std::string("mapped")) {
    EXPECT_THAT(seen, ElementsAre(0, 1, 1));
  } else {
    EXPECT_THAT(seen, ElementsAre(0, 1));
  }
}

// One byte of each value in turn.
TEST_P(KvVisitTest, ADamagedFileIsDataLossAndItsNeighboursAreServed) {
  if (!OnDisk()) GTEST_SKIP() << "no file";
  SH_CHECK_OK(store_->Close());
  store_.reset();
  std::string path;
  const std::vector<std::string> names = *ListFolder(Options().path);
  for (const std::string& name : names) {
    const std::string candidate = JoinPath(Options().path, name);
    if (absl::EndsWith(name, ".sst") && ReadFile(candidate)->size() > 600'000) path = candidate;
  }
  const std::string bytes = *ReadFile(path);
  for (const char key : {'b', 'd', 'f'}) {
    std::string damaged = bytes;
    damaged[damaged.find(LargeValue(key)) + 150'000] ^= 4;
    SH_CHECK_OK(WriteFileAtomically(path, damaged));
    RocksOptions options = Options();
    options.read_only = true;
    store_ = *OpenRocksKvStore(options);
    for (const char asked : {'b', 'd', 'f'}) {
      const std::vector<KvWanted> wanted = {KvWanted{std::string(1, asked), 300'000}};
      const absl::Status status =
          store_->Visit(0, wanted, [&](size_t, std::optional<absl::string_view> value) {
            return value == LargeValue(asked) ? absl::OkStatus()
                                              : absl::DataLossError("other bytes");
          });
      EXPECT_EQ(status.code(), asked == key ? absl::StatusCode::kDataLoss : absl::StatusCode::kOk)
          << status;
    }
    store_.reset();
  }
}

TEST(ChooseReadsTest, MapsWhatFitsIntoThreeQuartersOfMemory) {
  EXPECT_EQ(ChooseReads(0, 0), KvReads::kMapped);
  EXPECT_EQ(ChooseReads(750 * kMiB, 1000 * kMiB), KvReads::kMapped);
  EXPECT_EQ(ChooseReads(751 * kMiB, 1000 * kMiB), KvReads::kDirect);
}

class MemoryForFilesTest : public testing::Test {
 protected:
  void Write(const std::string& path, const std::string& text) {
    const std::string whole = JoinPath(folder_.path(), path);
    SH_CHECK_OK(MakeFolders(FolderOf(whole)));
    SH_CHECK_OK(WriteFileAtomically(whole, text));
  }
  uint64_t Found() const { return MemoryForFiles(folder_.path()) / kMiB; }
  TempFolder folder_ = *TempFolder::Create();
};

TEST_F(MemoryForFilesTest, IsWhatTheMachineHasAvailable) {
  Write("proc/meminfo", "MemTotal:  8388608 kB\nMemAvailable:    4194304 kB\n");
  EXPECT_EQ(Found(), 4096u);
}

TEST_F(MemoryForFilesTest, IsTheLeastLimitOfAGroupAndThoseAboveIt) {
  Write("proc/meminfo", "MemAvailable:    4194304 kB\n");
  Write("proc/self/cgroup", "0::/job/step\n");
  Write("sys/fs/cgroup/job/step/memory.max", "max\n");
  EXPECT_EQ(Found(), 4096u);
  Write("sys/fs/cgroup/job/memory.max", absl::StrCat(512 * kMiB, "\n"));
  EXPECT_EQ(Found(), 512u);
}

TEST_F(MemoryForFilesTest, KnowsTheFirstVersionOfControlGroups) {
  Write("proc/self/cgroup", "5:devices:/\n4:cpu,memory:/a\n");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", absl::StrCat(256 * kMiB, "\n"));
  EXPECT_EQ(Found(), 256u);
}

TEST_F(MemoryForFilesTest, HasNoLimitWhereNothingIsTold) { EXPECT_GT(Found(), 1ull << 40); }

}  // namespace
}  // namespace stillhouse
