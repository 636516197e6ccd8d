// One conformance suite over every KvStore.
#include "storage/kv_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/file.h"
#include "common/status.h"

namespace stillhouse {
namespace {

using testing::ElementsAre;
using testing::Optional;

constexpr KvFamily kA = 0, kB = 1;

class KvStoreTest : public testing::TestWithParam<const char*> {
 protected:
  bool OnDisk() const { return GetParam() == std::string("rocksdb"); }
  RocksOptions Options() const {
    RocksOptions options;
    options.path = JoinPath(folder_.path(), "db");
    options.families = {{.name = "a", .automatic_compaction = false}, {.name = "b"}};
    options.disk_reserve_bytes = 0;
    return options;
  }
  void SetUp() override { store_ = OnDisk() ? *OpenRocksKvStore(Options()) : MakeMemoryKvStore(2); }

  void Put(KvFamily family, const std::string& key, const std::string& value) {
    KvBatch batch;
    batch.Put(family, key, value);
    SH_CHECK_OK(store_->Write(batch, KvStore::Sync::kSync));
  }
  std::vector<std::string> Keys(KvFamily family, KvScanOptions options = {}) {
    std::vector<std::string> keys;
    const KvScanResult found = *store_->Scan(family, options);
    for (const KvEntry& entry : found.entries) keys.push_back(entry.key);
    return keys;
  }

  TempFolder folder_ = *TempFolder::Create();
  std::unique_ptr<KvStore> store_;
};
INSTANTIATE_TEST_SUITE_P(Stores, KvStoreTest, testing::Values("memory", "rocksdb"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(KvStoreTest, GetFindsWhatWasPutInItsFamilyOnly) {
  Put(kA, "k", "v");
  EXPECT_THAT(*store_->Get(kA, "k"), Optional(std::string("v")));
  EXPECT_EQ(*store_->Get(kB, "k"), std::nullopt);
  EXPECT_EQ(*store_->Get(kA, "kk"), std::nullopt);
}

TEST_P(KvStoreTest, KeysAndValuesMayHoldAnyBytes) {
  const std::string key("\0\xff\0", 3), value("\xff\0", 2);
  Put(kA, key, value);
  Put(kA, "", "");
  EXPECT_THAT(*store_->Get(kA, key), Optional(value));
  EXPECT_THAT(*store_->Get(kA, ""), Optional(std::string()));
  EXPECT_THAT(Keys(kA), ElementsAre("", key));
}

TEST_P(KvStoreTest, MultiGetAnswersInOrderOfTheKeys) {
  Put(kA, "1", "one");
  Put(kA, "3", "three");
  EXPECT_THAT(*store_->MultiGet(kA, {"3", "2", "1", "3"}),
              ElementsAre(Optional(std::string("three")), std::nullopt,
                          Optional(std::string("one")), Optional(std::string("three"))));
  EXPECT_TRUE(store_->MultiGet(kA, {})->empty());
}

TEST_P(KvStoreTest, LaterChangesOfABatchWin) {
  Put(kA, "gone", "x");
  Put(kA, "r1", "x");
  Put(kA, "r2", "x");
  KvBatch batch;
  batch.Put(kA, "k", "first");
  batch.Put(kA, "k", "second");
  batch.Delete(kA, "gone");
  batch.DeleteRange(kA, "r1", "r2");
  batch.DeleteRange(kA, "z", "a");  // empty: nothing
  batch.Put(kB, "k", "other family");
  SH_CHECK_OK(store_->Write(batch, KvStore::Sync::kNoSync));
  EXPECT_THAT(Keys(kA), ElementsAre("k", "r2"));
  EXPECT_THAT(*store_->Get(kA, "k"), Optional(std::string("second")));
  EXPECT_THAT(*store_->Get(kB, "k"), Optional(std::string("other family")));
}

TEST_P(KvStoreTest, ScanKeepsRangeLimitAndDirection) {
  for (const char* key : {"a", "b", "c", "d"}) Put(kA, key, std::string(10, *key));
  EXPECT_THAT(Keys(kA), ElementsAre("a", "b", "c", "d"));
  EXPECT_THAT(Keys(kA, {.begin = "b", .end = "d"}), ElementsAre("b", "c"));
  EXPECT_THAT(Keys(kA, {.reverse = true}), ElementsAre("d", "c", "b", "a"));
  EXPECT_THAT(Keys(kA, {.begin = "b", .end = "d", .reverse = true}), ElementsAre("c", "b"));
  EXPECT_THAT(Keys(kA, {.begin = "d", .end = "b"}), ElementsAre());
  const KvScanResult two = *store_->Scan(kA, {.entries_max = 2, .keys_only = true});
  EXPECT_THAT(two.entries, ElementsAre(KvEntry{"a", ""}, KvEntry{"b", ""}));
  EXPECT_TRUE(two.more);
  const KvScanResult bytes = *store_->Scan(kA, {.bytes_max = 12});
  EXPECT_EQ(bytes.entries.size(), 2u);
  EXPECT_TRUE(bytes.more);
  EXPECT_FALSE(store_->Scan(kA, {.entries_max = 4})->more);
}

TEST_P(KvStoreTest, IngestAddsAFileOfEntries) {
  Put(kA, "a", "before");
  auto file = *store_->NewSortedFile(kA);
  SH_CHECK_OK(file->Add("b", "1"));
  SH_CHECK_OK(file->Add("c", "2"));
  EXPECT_EQ(file->Add("c", "3").code(), absl::StatusCode::kInvalidArgument);
  SH_CHECK_OK(store_->Ingest(std::move(file)));
  EXPECT_THAT(Keys(kA), ElementsAre("a", "b", "c"));
  EXPECT_THAT(*store_->Get(kA, "c"), Optional(std::string("2")));
  EXPECT_TRUE(Keys(kB).empty());
}

TEST_P(KvStoreTest, IngestRefusesToReplace) {
  Put(kA, "b", "first");
  auto file = *store_->NewSortedFile(kA);
  SH_CHECK_OK(file->Add("a", "1"));
  SH_CHECK_OK(file->Add("c", "2"));
  EXPECT_EQ(store_->Ingest(std::move(file)).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Keys(kA), ElementsAre("b"));
  EXPECT_EQ(store_->Ingest(*store_->NewSortedFile(kA)).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(KvStoreTest, ApproximateSizeGrowsWithWhatIsStored) {
  Put(kA, "k", std::string(100'000, 'x'));
  SH_CHECK_OK(store_->Flush());
  EXPECT_GT(*store_->ApproximateSize(kA, "a", "z"), 50'000u);
  EXPECT_LT(*store_->ApproximateSize(kA, "x", "z"), 50'000u);
  const std::vector<std::string> files = *store_->Files();
  for (const std::string& file : files) SH_CHECK_OK(store_->VerifyFile(file));
  SH_CHECK_OK(store_->CompactRange(kA, "a", "z"));
  EXPECT_TRUE((*store_->Get(kA, "k")).has_value());
}

TEST_P(KvStoreTest, ReopenedStoreHoldsEverything) {
  if (!OnDisk()) GTEST_SKIP() << "a memory store ends with its process";
  Put(kA, "k", "v");
  auto file = *store_->NewSortedFile(kB);
  SH_CHECK_OK(file->Add("i", "1"));
  SH_CHECK_OK(store_->Ingest(std::move(file)));
  SH_CHECK_OK(store_->Close());
  store_.reset();
  RocksOptions read_only = Options();
  read_only.read_only = true;
  store_ = *OpenRocksKvStore(read_only);
  EXPECT_THAT(*store_->Get(kA, "k"), Optional(std::string("v")));
  EXPECT_THAT(*store_->Get(kB, "i"), Optional(std::string("1")));
  KvBatch batch;
  batch.Put(kA, "k", "w");
  EXPECT_FALSE(store_->Write(batch, KvStore::Sync::kSync).ok());
}

TEST(RocksKvStoreTest, ReadOnlyOpenMakesNothing) {
  const TempFolder folder = *TempFolder::Create();
  RocksOptions options;
  options.path = JoinPath(folder.path(), "db");
  options.families = {{.name = "a"}};
  options.read_only = true;
  EXPECT_EQ(OpenRocksKvStore(options).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(PathExists(options.path));
}

TEST(RocksKvStoreTest, FileNotIngestedLeavesNothing) {
  const TempFolder folder = *TempFolder::Create();
  RocksOptions options;
  options.path = JoinPath(folder.path(), "db");
  options.ingest_folder = JoinPath(folder.path(), "building");
  options.families = {{.name = "a"}};
  options.disk_reserve_bytes = 0;
  auto store = *OpenRocksKvStore(options);
  auto file = *store->NewSortedFile(0);
  SH_CHECK_OK(file->Add("a", "1"));
  EXPECT_EQ(ListFolder(options.ingest_folder)->size(), 1u);
  file.reset();
  EXPECT_TRUE(ListFolder(options.ingest_folder)->empty());
}

TEST(RocksKvStoreTest, NoRoomOnTheDiskIsRefusedBeforeAnythingIsWritten) {
  const TempFolder folder = *TempFolder::Create();
  RocksOptions options;
  options.path = JoinPath(folder.path(), "db");
  options.families = {{.name = "a"}};
  options.disk_reserve_bytes = 1ull << 62;
  auto store = *OpenRocksKvStore(options);
  KvBatch batch;
  batch.Put(0, "k", "v");
  const absl::Status status = store->Write(batch, KvStore::Sync::kSync);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("is full"));
  EXPECT_EQ(*store->Get(0, "k"), std::nullopt);
  EXPECT_EQ(store->NewSortedFile(0).status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace stillhouse
