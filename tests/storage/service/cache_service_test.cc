#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "storage/service/cache_admin.h"
#include "tests/storage/job_fixture.h"
#include "tests/storage/section_fixtures.h"
#include "tests/storage/service/cache_fixtures.h"

namespace stillhouse {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

PutItem Item(const SectionSpec& spec, const Digest& document, uint32_t rows, uint64_t seed = 1) {
  return {TestParts(spec, document, rows, seed), TestProvenance(spec)};
}

TEST(CacheServiceTest, PartsComeBackInTheOrderAskedFor) {
  ServedCache cache;
  const PutItem a = Item(SectionSpec{}, TestDocument(1), 30);
  const PutItem b = Item(SampledSpec(), TestDocument(1), 30);
  const StoreAck ack = *cache.Put(a);
  EXPECT_EQ(ack.store_id, "store-a");
  EXPECT_EQ(ack.incarnation, 1u);
  EXPECT_EQ(ack.stored, 1u);
  EXPECT_EQ(cache.Put(b)->stored, 1u);
  EXPECT_EQ(cache.Put(b)->already, 1u);
  EXPECT_EQ(cache.Put(Item(SampledSpec(), TestDocument(1), 30, /*seed=*/2))->mismatched, 1u);
  const PartKey absent{Sha256Of("absent"), 0};
  EXPECT_THAT(*cache.Get({b.parts[0].key, absent, a.parts[0].key}),
              ElementsAre(b.parts[0], std::nullopt, a.parts[0]));
  EXPECT_TRUE(cache.Get({})->empty());
}

TEST(CacheServiceTest, MoreThanOneMessageHoldsIsFetchedInSeveral) {
  ServedCache cache;
  const SectionSpec spec = HiddenSpec(8192);
  std::vector<PartKey> keys;
  std::vector<std::optional<Part>> all;
  for (int d = 0; d < 3; ++d) {
    const PutItem item = Item(spec, TestDocument(d), 768, d);  // 12 MiB each
    ASSERT_TRUE(cache.Put(item).ok());
    for (const Part& part : item.parts) {
      keys.push_back(part.key);
      all.push_back(part);
    }
  }
  EXPECT_TRUE(*cache.Get(keys) == all);
}

TEST(CacheServiceTest, LostAndRepeatedMessagesChangeNothing) {
  ServedCache cache;
  int count = 0;
  cache.network.SetFate([&count](const MemoryNetwork::Delivery&) -> std::vector<absl::Duration> {
    switch (++count % 3) {
      case 0:
        return {};
      case 1:
        return {absl::ZeroDuration(), absl::Milliseconds(50)};
      default:
        return {absl::Milliseconds(10)};
    }
  });
  std::vector<PartKey> keys;
  for (int d = 0; d < 20; ++d) {
    const PutItem item = Item(SectionSpec{}, TestDocument(d), 10, d);
    ASSERT_TRUE(cache.Put(item).ok());
    keys.push_back(item.parts[0].key);
  }
  const auto parts = *cache.Get(keys);
  EXPECT_THAT(parts, Each(testing::Ne(std::nullopt)));
  EXPECT_EQ(cache.sections->Totals()->at("stats").sections, 20u);
}

TEST(CacheServiceTest, BusyServerIsAskedAgain) {
  ServedCache cache({.pending_bytes_max = 1});
  cache.store->put_time = absl::Seconds(1);
  int answered = 0;
  for (int d = 0; d < 3; ++d) {
    PutItem item = Item(SectionSpec{}, TestDocument(d), 10, d);
    cache.client->Put(item.parts, item.provenance, [&answered](absl::StatusOr<StoreAck> ack) {
      SH_CHECK_OK(ack);
      ++answered;
    });
  }
  cache.executor.Advance(absl::Milliseconds(1500));
  EXPECT_EQ(answered, 1);
  cache.executor.Advance(absl::Seconds(60));
  EXPECT_EQ(answered, 3);
}

TEST(CacheServiceTest, FullDiskReachesTheClientAsItIs) {
  ServedCache cache;
  cache.store->write_error = absl::ResourceExhaustedError("the disk is full");
  EXPECT_EQ(cache.Put(Item(SectionSpec{}, TestDocument(1), 10)).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(CacheServiceTest, NobodyThereEndsWithTheDeadline) {
  ServedCache cache;
  cache.Stop();
  EXPECT_EQ(cache.Get({PartKey{}}).status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(CacheServiceTest, MalformedPutsAreRefused) {
  ServedCache cache;
  PutItem item = Item(SectionSpec{}, TestDocument(1), 10);
  std::string damaged(item.parts[0].payload.view());
  damaged[3] ^= 0x55;
  damaged.pop_back();
  item.parts[0].payload = damaged;
  EXPECT_FALSE(cache.Put(item).ok());
  item.parts.clear();
  EXPECT_EQ(cache.Put(item).status().code(), absl::StatusCode::kInvalidArgument);
  item.parts.assign(5, Part{{}, 1, std::string(4 << 20, 'x')});
  EXPECT_EQ(cache.Put(item).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(cache.sections->Totals()->empty());
}

TEST(CacheServiceTest, ObjectsTravelInPieces) {
  ServedCache cache;
  std::string bytes((10 << 20) + 7, 'x');
  for (size_t i = 0; i < bytes.size(); i += 1000) bytes[i] = static_cast<char>(i / 1000);
  const std::string name = absl::StrCat("sha256/", Sha256Of(bytes).Hex());
  EXPECT_EQ(cache.PutObject(name, bytes)->stored, 1u);
  EXPECT_EQ(cache.PutObject(name, bytes)->already, 1u);
  EXPECT_EQ(**cache.GetObject(name), bytes);
  EXPECT_EQ(cache.PutObject("job/empty", "")->stored, 1u);
  EXPECT_EQ(**cache.GetObject("job/empty"), "");
  EXPECT_EQ(cache.GetObject("job/none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(cache.PutObject(name, "other").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CacheServiceTest, UploadBeginsAgainWhenTheServerWasStartedAgain) {
  ServedCache cache;
  const std::string bytes(20 << 20, 'y');
  std::optional<absl::StatusOr<StoreAck>> result;
  // Half the pieces arrive, then the server is another process.
  int pieces = 0;
  bool restarted = false;
  cache.network.SetFate([&](const MemoryNetwork::Delivery& message) -> std::vector<absl::Duration> {
    if (message.to_server && ++pieces == 3 && !restarted) return {};
    return {absl::ZeroDuration()};
  });
  cache.client->PutObject("artefact/x", std::make_shared<const std::string>(bytes), {},
                          [&result](absl::StatusOr<StoreAck> ack) { result = std::move(ack); });
  cache.executor.RunUntilIdle();
  EXPECT_FALSE(result.has_value());
  cache.Stop();
  restarted = true;
  cache.Start();
  cache.executor.Advance(absl::Seconds(60));
  ASSERT_TRUE(result.has_value());
  SH_CHECK_OK(*result);
  EXPECT_EQ((*result)->incarnation, 2u);
  EXPECT_EQ(**cache.GetObject("artefact/x"), bytes);
}

TEST(CacheServiceTest, ObjectReplacedWhileItIsReadIsReadAsOne) {
  ServedCache cache;
  const std::string before(6 << 20, 'a'), after(9 << 20, 'b');
  ASSERT_TRUE(cache.PutObject("job/x", before).ok());
  int answers = 0;
  cache.network.SetFate([&](const MemoryNetwork::Delivery& message) -> std::vector<absl::Duration> {
    if (!message.to_server && ++answers == 1) {
      for (uint64_t offset = 0; offset < after.size(); offset += kPartBytesMax) {
        SH_CHECK_OK(cache.objects->PutPiece(
            {"job/x", after.size(), offset, true, 99, after.substr(offset, kPartBytesMax)}));
      }
    }
    return {absl::ZeroDuration()};
  });
  EXPECT_EQ(**cache.GetObject("job/x"), after);
}

class JobTest : public testing::Test {
 protected:
  void SetUp() override {
    PutWholePlan(cache_);
    for (uint32_t d = 0; d < plan_->document_count(); ++d) PutDocument(cache_, d, d);
  }
  void PutWholePlan(ServedCache& cache) {
    const auto bytes = TestPlanBytes();
    plan_ = *ParsePlan(bytes);
    SH_CHECK_OK(cache.PutObject(PlanObjectName(plan_->digest()), *bytes));
    SH_CHECK_OK(cache.PutObject(JobObjectName("test"), EncodeJobObject(Job())));
    SH_CHECK_OK(cache.PutObject(ArtefactObjectName(TestTeacher(), "head"), std::string(1000, 'h')));
  }
  JobObject Job() const { return TestJob(plan_->digest()); }
  void PutDocument(ServedCache& cache, uint32_t d, uint64_t seed) {
    for (const PutItem& item : TestDocumentItems(*plan_, d, seed)) SH_CHECK_OK(cache.Put(item));
  }
  std::vector<bool> Inventory(ServedCache& cache, std::vector<uint32_t> chunks = {},
                              std::vector<std::string> first_chunk_artefacts = {}) {
    return *cache.Wait<std::vector<bool>>([&](auto done) {
      cache.client->Inventory(
          {plan_->digest(), TestTeacher(), Job().sections, Job().held_out_sections,
           std::move(chunks), std::move(first_chunk_artefacts)},
          std::move(done));
    });
  }
  static JobDigest DigestOf(ServedCache& cache) {
    PlanCache plans;
    return *CacheAdmin(*cache.sections, *cache.objects, plans).DigestOfJob("test");
  }

  std::shared_ptr<const Plan> plan_;
  ServedCache cache_;
};

TEST_F(JobTest, InventoryTellsWholeChunksFromOthers) {
  EXPECT_THAT(Inventory(cache_), Each(true));
  ServedCache other;
  PutWholePlan(other);
  EXPECT_THAT(Inventory(other), Each(false));
  const PlanChunk first = plan_->chunk(0), last = plan_->chunk(plan_->chunk_count() - 1);
  ASSERT_TRUE(last.held_out);
  for (uint32_t d = first.begin; d < first.end; ++d) PutDocument(other, d, d);
  for (uint32_t d = last.begin; d + 1 < last.end; ++d) PutDocument(other, d, d);
  EXPECT_THAT(Inventory(other, {0, plan_->chunk_count() - 1}), ElementsAre(true, false));
  PutDocument(other, last.end - 1, 1);
  EXPECT_THAT(Inventory(other, {plan_->chunk_count() - 1}), ElementsAre(true));
}

TEST_F(JobTest, FirstChunkIsWholeOnlyWithItsArtefacts) {
  const std::string name = InfluenceArtefactName(plan_->digest());
  EXPECT_THAT(Inventory(cache_, {1, 0}, {"head", name}), ElementsAre(true, false));
  SH_CHECK_OK(cache_.PutObject(ArtefactObjectName(TestTeacher(), name), "{}"));
  EXPECT_THAT(Inventory(cache_, {1, 0}, {"head", name}), ElementsAre(true, true));
}

TEST_F(JobTest, InventoryOfAnUnknownPlanOrChunkIsRefused) {
  const auto ask = [&](Digest plan, std::vector<uint32_t> chunks) {
    return cache_
        .Wait<std::vector<bool>>([&](auto done) {
          cache_.client->Inventory({plan, TestTeacher(), {SectionSpec{}}, {}, chunks},
                                   std::move(done));
        })
        .status()
        .code();
  };
  EXPECT_EQ(ask(Sha256Of("no plan"), {}), absl::StatusCode::kNotFound);
  EXPECT_EQ(ask(plan_->digest(), {99}), absl::StatusCode::kInvalidArgument);
}

TEST_F(JobTest, DigestDependsOnValuesOnly) {
  const JobDigest digest = DigestOf(cache_);
  EXPECT_EQ(digest.sections, 16u);
  EXPECT_EQ(digest.missing, 0u);
  ServedCache other;  // the same in another order and with what the job does not want
  PutWholePlan(other);
  EXPECT_EQ(DigestOf(other).missing, 16u);
  SH_CHECK_OK(other.Put(Item(SectionSpec{}, Sha256Of("unwanted"), 5)));
  for (uint32_t d = plan_->document_count(); d-- > 0;) PutDocument(other, d, d);
  EXPECT_EQ(DigestOf(other).digest, digest.digest);
  ServedCache third;
  PutWholePlan(third);
  for (uint32_t d = 0; d < plan_->document_count(); ++d) PutDocument(third, d, d == 3 ? 99 : d);
  EXPECT_NE(DigestOf(third).digest, digest.digest);
}

TEST_F(JobTest, DigestIsThatOfTheFormat) {
  std::vector<std::pair<Digest, Digest>> values;
  for (uint32_t d = 0; d < plan_->document_count(); ++d) {
    const PlanDocument document = plan_->document(d);
    const bool held_out = plan_->chunk(document.chunk).held_out;
    for (const SectionSpec& spec : held_out ? Job().held_out_sections : Job().sections) {
      const Part part = TestParts(spec, document.key, document.rows(), d)[0];
      values.emplace_back(part.key.section,
                          Sha256Of(*CanonicalValues(spec, part.payload, part.row_count)));
    }
  }
  std::sort(values.begin(), values.end());
  Sha256 sha;
  sha.AddField("stillhouse job digest 1");
  for (const auto& [key, value] : values) sha.AddDigest(key).AddDigest(value);
  EXPECT_EQ(DigestOf(cache_).digest, sha.Finish());
}

TEST_F(JobTest, UsageCountsRecordsIndexAndArtefacts) {
  PlanCache plans;
  CacheAdmin admin(*cache_.sections, *cache_.objects, plans);
  const JobUsage usage = *admin.UsageOfJob("job/test");
  EXPECT_EQ(usage.training.documents, 6u);
  EXPECT_EQ(usage.training.rows, plan_->training_rows());
  EXPECT_EQ(usage.training.sections, 12u);
  EXPECT_EQ(usage.training.missing, 0u);
  EXPECT_EQ(usage.held_out.documents, 2u);
  EXPECT_EQ(usage.artefact_bytes, 1000u);
  const CacheStat stat = *admin.Stat();
  EXPECT_EQ(usage.training.record_bytes + usage.held_out.record_bytes, stat.all.record_bytes);
  EXPECT_EQ(usage.training.index_bytes + usage.held_out.index_bytes, stat.all.index_bytes);
  EXPECT_EQ(stat.objects, 3u);
  EXPECT_EQ(stat.object_bytes, 1000 + usage.plan_bytes + EncodeJobObject(Job()).size());
}

TEST_F(JobTest, UnknownJobSaysWhereToLook) {
  PlanCache plans;
  const auto status =
      CacheAdmin(*cache_.sections, *cache_.objects, plans).DigestOfJob("other").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cache ls"));
}

}  // namespace
}  // namespace stillhouse
