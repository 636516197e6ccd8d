// What a removal, a collection and a release take, and what they leave.
#include "storage/service/cache_space.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "storage/service/cache_admin.h"
#include "tests/storage/job_fixture.h"
#include "tests/storage/watched_kv_store.h"

namespace stillhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

class CacheSpaceTest : public testing::Test {
 protected:
  CacheSpaceTest() { NewCache(); }

  void NewCache() {
    base_ = MakeMemoryKvStore(4);
    store_ = std::make_unique<WatchedKvStore>(*base_);
    Reopen();
  }
  void Reopen() {
    store_->GoOn();
    sections_ = *TeacherCache::Open(*store_, "store-a");
    objects_ = *ObjectStore::Open(*store_, /*writable=*/true);
  }
  // The job "test", wholly captured, with its plan and an artefact.
  void FillTest() {
    PutObject(PlanObjectName(plan_->digest()), *plan_bytes_);
    PutJob(TestJob(plan_->digest()));
    PutObject(ArtefactObjectName(TestTeacher(), "head"), std::string(1000, 'h'));
    PutObject(ArtefactObjectName(TestTeacher(), InfluenceArtefactName(plan_->digest())), "{}");
    for (uint32_t d = 0; d < plan_->document_count(); ++d) {
      SH_CHECK_OK(sections_->Put(TestDocumentItems(*plan_, d, d)));
    }
  }
  void PutObject(const std::string& name, const std::string& bytes) {
    SH_CHECK_OK(objects_->Put(name, bytes));
  }
  void PutJob(const JobObject& job) { PutObject(JobObjectName(job.name), EncodeJobObject(job)); }
  // Wants the statistics of the same plan, and nothing else.
  JobObject StatsOnly(const std::string& name) {
    JobObject job = TestJob(plan_->digest());
    job.name = name;
    job.sections = job.held_out_sections = {SectionSpec{}};
    return job;
  }
  // `between` runs before each step.
  absl::StatusOr<SpaceResult> Run(
      const SpaceRequest& request, const std::function<void()>& between = [] {}) {
    SpaceTask task(request, plans_);
    while (task.next() != SpaceTask::Next::kDone) {
      between();
      SH_RETURN_IF_ERROR(task.Step(*sections_, *objects_));
    }
    return task.result();
  }
  absl::StatusOr<SpaceResult> Remove(const std::string& job) {
    return Run({.what = SpaceRequest::What::kRemove, .job = job});
  }
  absl::StatusOr<SpaceResult> Collect() { return Run({}); }
  uint64_t Missing(const std::string& job) {
    return CacheAdmin(*sections_, *objects_, plans_).DigestOfJob(job)->missing;
  }
  std::vector<std::string> Objects() {
    std::vector<std::string> names;
    const auto found = *objects_->List("", "", 100);
    for (const ObjectInfo& object : found) names.push_back(object.name);
    return names;
  }
  size_t Entries(KvFamily family) { return store_->Scan(family, {})->entries.size(); }
  std::vector<std::string> Specs() {
    std::vector<std::string> specs;
    const auto totals = *sections_->Totals();
    for (const auto& [spec, total] : totals) specs.push_back(spec);
    return specs;
  }

  const std::shared_ptr<const std::string> plan_bytes_ = TestPlanBytes();
  const std::shared_ptr<const Plan> plan_ = *ParsePlan(plan_bytes_);
  PlanCache plans_;
  std::unique_ptr<KvStore> base_;
  std::unique_ptr<WatchedKvStore> store_;
  std::unique_ptr<TeacherCache> sections_;
  std::unique_ptr<ObjectStore> objects_;
};

TEST_F(CacheSpaceTest, TheLastJobTakesEverythingWithIt) {
  FillTest();
  const uint64_t parts = Entries(kCacheIndex);
  const SpaceResult result = *Remove("test");
  EXPECT_EQ(result.sections, 16u);
  EXPECT_EQ(result.parts, parts);
  EXPECT_EQ(result.object_count, 4u);
  EXPECT_GT(result.bytes_freed, 0u);
  EXPECT_EQ(result.bytes_used, 0u);
  EXPECT_THAT(Objects(), IsEmpty());
  EXPECT_EQ(Entries(kCacheIndex), 0u);
  EXPECT_EQ(Entries(kCacheData), 0u);
  EXPECT_EQ(Entries(kCacheObjects), 0u);
  EXPECT_TRUE(absl::IsNotFound(Remove("test").status()));
}

TEST_F(CacheSpaceTest, WhatAnotherJobWantsStays) {
  FillTest();
  PutJob(StatsOnly("other"));
  EXPECT_EQ(Remove("test")->sections, 8u);
  EXPECT_THAT(Specs(), ElementsAre("stats"));
  EXPECT_EQ(Missing("other"), 0u);
  EXPECT_THAT(
      Objects(),
      UnorderedElementsAre(
          "job/other", PlanObjectName(plan_->digest()), ArtefactObjectName(TestTeacher(), "head"),
          ArtefactObjectName(TestTeacher(), InfluenceArtefactName(plan_->digest()))));
}

TEST_F(CacheSpaceTest, ADryRunSaysTheSameAndChangesNothing) {
  FillTest();
  PutJob(StatsOnly("other"));
  const auto before = store_->Scan(kCacheIndex, {})->entries;
  for (const std::string job : {"test", "other"}) {
    SpaceRequest request{.what = SpaceRequest::What::kRemove, .job = job, .dry_run = true};
    const SpaceResult said = *Run(request);
    EXPECT_EQ(store_->Scan(kCacheIndex, {})->entries, before);
    EXPECT_EQ(Objects().size(), 5u);
    if (job == "other") continue;
    request.dry_run = false;
    const SpaceResult done = *Run(request);
    EXPECT_EQ(said.sections, done.sections);
    EXPECT_EQ(said.parts, done.parts);
    EXPECT_EQ(said.part_bytes, done.part_bytes);
    EXPECT_EQ(said.object_bytes, done.object_bytes);
    EXPECT_EQ(said.objects, done.objects);
    break;
  }
}

TEST_F(CacheSpaceTest, APinKeepsWhatItsJobWanted) {
  FillTest();
  SH_CHECK_OK(PinJob(*objects_, "job/test"));  // its whole name or the short one
  const absl::Status refused = Remove("test").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("test is pinned"));
  PutJob(StatsOnly("test"));  // submitted again, as another job
  EXPECT_EQ(Collect()->parts, 0u);
  SH_CHECK_OK(UnpinJob(*objects_, "test"));
  EXPECT_EQ(Collect()->sections, 8u);
  EXPECT_THAT(Specs(), ElementsAre("stats"));
  EXPECT_TRUE(absl::IsNotFound(UnpinJob(*objects_, "test")));
  EXPECT_TRUE(absl::IsNotFound(PinJob(*objects_, "nobody")));
}

TEST_F(CacheSpaceTest, ACollectionTakesWhatNobodyWants) {
  FillTest();
  PutObject(PlanObjectName(Sha256Of("x")), "x");
  PutObject(ArtefactObjectName(Sha256Of("another teacher"), "head"), "h");
  PutObject(ArtefactObjectName(TestTeacher(), InfluenceArtefactName(Sha256Of("x"))), "{}");
  SH_CHECK_OK(sections_->Put(
      {PutItem{TestParts(SectionSpec{}, TestDocument(77), 10, 1), TestProvenance(SectionSpec{})}}));
  const SpaceResult said = *Run({.dry_run = true});
  const SpaceResult done = *Collect();
  EXPECT_EQ(done.object_count, 3u);
  EXPECT_EQ(done.parts, 1u);
  EXPECT_EQ(said.parts, done.parts);
  EXPECT_EQ(said.objects, done.objects);
  EXPECT_EQ(Missing("test"), 0u);
  EXPECT_EQ(Collect()->object_count, 0u);
}

TEST_F(CacheSpaceTest, WithoutAPlanNothingIsCollected) {
  FillTest();
  SH_CHECK_OK(objects_->Remove({PlanObjectName(plan_->digest())}));
  const absl::Status refused = Collect().status();
  EXPECT_TRUE(absl::IsNotFound(refused));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("job/test: without its plan"));
  EXPECT_FALSE(
      CheckJobIsWhole(*objects_, "job/test", EncodeJobObject(TestJob(plan_->digest()))).ok());
  SH_CHECK_OK(Remove("test"));
  EXPECT_GT(Collect()->parts, 0u);
  EXPECT_EQ(Entries(kCacheIndex), 0u);
}

TEST_F(CacheSpaceTest, SectionsOfAJobGoAndTheJobKnowsIt) {
  FillTest();
  const SpaceResult result = *Run({.what = SpaceRequest::What::kRemove,
                                   .job = "test",
                                   .sections = {SampledSpec(), HiddenSpec(8)}});
  EXPECT_EQ(result.sections, 8u);
  EXPECT_THAT(Specs(), ElementsAre("stats"));
  EXPECT_EQ(*ReadJob(*objects_, "test"), StatsOnly("test"));
  EXPECT_EQ(Missing("test"), 0u);
  EXPECT_TRUE(absl::IsNotFound(
      Run({.what = SpaceRequest::What::kRemove, .sections = {SampledSpec()}}).status()));
}

TEST_F(CacheSpaceTest, ATeachersJobsGoTogether) {
  FillTest();
  JobObject other = StatsOnly("other");
  other.teacher = Sha256Of("another teacher");
  PutJob(other);
  PutJob(StatsOnly("third"));
  SH_CHECK_OK(Run({.what = SpaceRequest::What::kRemove, .teacher = TestTeacher()}));
  EXPECT_EQ(Entries(kCacheIndex), 0u);
  EXPECT_THAT(Objects(), UnorderedElementsAre("job/other", PlanObjectName(plan_->digest())));
}

TEST_F(CacheSpaceTest, AJobThatComesMeanwhileKeepsWhatItWants) {
  FillTest();
  int steps = 0;
  SpaceRequest request{.what = SpaceRequest::What::kRemove, .job = "test"};
  // Jobs, rewrite, mark, find; then it comes, before the first removal.
  SH_CHECK_OK(Run(request, [&] {
    if (++steps == 5) PutJob(StatsOnly("newcomer"));
  }));
  EXPECT_GT(steps, 5);
  EXPECT_EQ(Missing("newcomer"), 0u);
  EXPECT_THAT(Specs(), ElementsAre("stats"));
}

TEST_F(CacheSpaceTest, ReleasedChunksGoAndTheirJobStays) {
  FillTest();
  const PlanChunk first = plan_->chunk(0);
  const SpaceResult result =
      *Run({.what = SpaceRequest::What::kRelease, .job = "test", .chunks = {0}});
  EXPECT_EQ(result.sections, 2u * (first.end - first.begin));
  EXPECT_EQ(Missing("test"), result.sections);
  EXPECT_EQ(Objects().size(), 4u);
  PutJob(StatsOnly("other"));
  EXPECT_EQ(Run({.what = SpaceRequest::What::kRelease, .job = "test", .chunks = {1}})->sections,
            plan_->chunk(1).end - plan_->chunk(1).begin);  // not the statistics
  EXPECT_EQ(
      Run({.what = SpaceRequest::What::kRelease, .job = "test", .chunks = {99}}).status().code(),
      absl::StatusCode::kInvalidArgument);
}

TEST_F(CacheSpaceTest, StoppedAnywhereACollectionFinishesIt) {
  for (int after = 0;; ++after) {
    NewCache();
    FillTest();
    PutJob(StatsOnly("other"));
    store_->StopAfter(after);
    const bool ended = Remove("test").ok();
    Reopen();
    EXPECT_EQ(Missing("other"), 0u) << after;
    const auto left = ReadJob(*objects_, "test");
    if (left.ok()) {
      EXPECT_EQ(Missing("test"), 0u) << after;  // as long as it is there, it is whole
      SH_CHECK_OK(Remove("test"));
    }
    SH_CHECK_OK(Collect());
    EXPECT_EQ(Missing("other"), 0u);
    EXPECT_THAT(Specs(), ElementsAre("stats"));
    EXPECT_EQ(*ReadSegments(*store_), *CountSegments(*store_));
    if (ended) break;
    ASSERT_LT(after, 100);
  }
}

}  // namespace
}  // namespace stillhouse
