// A cache that an earlier version wrote still says what it said. cache_v1/ is the database that
// commit 599a76b left after FillTestJob, a Put of each of Others() and a clean stop.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/file.h"
#include "common/status.h"
#include "storage/cache_verify.h"
#include "storage/service/job_scan.h"
#include "tests/storage/job_fixture.h"

namespace stillhouse {
namespace {

// What 599a76b said of it.
constexpr char kJobDigest[] = "ee1835ae5fec8bfedbd74abd2ff7c6818491bc699ae8f9429ebef902991bd14c";
constexpr char kOthersDigest[] = "b98c62944ac71ad579205b99b5531d8f07c94d310df07d89f31995fdf959cb1f";

// Besides the job "test" of FillTestJob: what it stored under TestDocument(i).
struct Other {
  int document;
  SectionSpec spec;
  uint32_t rows;
};
std::vector<Other> Others() {
  return {{0, {.kind = SectionKind::kLogitsTopK, .k = 16}, 30},
          {1, {.kind = SectionKind::kLogitsTopP, .k = 40, .p_millionths = 950'000}, 30},
          {2,
           {.kind = SectionKind::kHiddenLayer,
            .hidden_size = 128,
            .layer = 3,
            .dtype = HiddenDtype::kInt8},
           30},
          {9, HiddenSpec(8192), 130}};  // all ones, and large: ingested
}

std::vector<Part> AllOnes() {
  HiddenRows ones;
  ones.hidden_size = 8192;
  ones.values.assign(ones.hidden_size * 130, 0x3f80);
  return {{{SectionKey(TestTeacher(), TestDocument(9), HiddenSpec(8192)), 0},
           130,
           EncodeHidden(ones, 0, 130)}};
}

class OldCacheTest : public testing::Test {
 protected:
  OldCacheTest() : path_(JoinPath(folder_.path(), "cache")) {
    const std::string stored = SH_TEST_SOURCE_DIR "/tests/storage/cache_v1";
    SH_CHECK_OK(MakeFolders(JoinPath(path_, "db")));
    const std::vector<std::string> names = *ListFolder(stored);
    for (const std::string& name : names) {
      SH_CHECK_OK(WriteFileAtomically(JoinPath(JoinPath(path_, "db"), name),
                                      *ReadFile(JoinPath(stored, name))));
    }
  }

  std::unique_ptr<CacheDirectory> Open(bool read_only) {
    auto cache =
        CacheDirectory::Open({.path = path_, .read_only = read_only, .disk_reserve_bytes = 0});
    SH_CHECK_OK(cache);
    return *std::move(cache);
  }

  static void ExpectAsItWas(CacheDirectory& cache) {
    const auto plan = *ParsePlan(TestPlanBytes());
    const auto job = ReadJob(cache.objects(), "test");
    ASSERT_TRUE(job.ok()) << job.status();
    const auto digest = DigestJob(cache.sections(), *job, *plan);
    ASSERT_TRUE(digest.ok()) << digest.status();
    EXPECT_EQ(digest->missing, 0u);
    EXPECT_EQ(digest->digest.Hex(), kJobDigest);
    Sha256 others;
    for (const Other& other : Others()) {
      const PartKey key{SectionKey(TestTeacher(), TestDocument(other.document), other.spec), 0};
      const auto parts = cache.sections().Get({key}, kPartBytesMax);
      ASSERT_TRUE(parts.ok()) << parts.status();
      ASSERT_TRUE((*parts)[0].has_value()) << other.spec.Canonical();
      const auto values = CanonicalValues(other.spec, (*parts)[0]->payload, other.rows);
      ASSERT_TRUE(values.ok()) << values.status();
      others.AddRaw(*values);
    }
    EXPECT_EQ(others.Finish().Hex(), kOthersDigest);
    for (std::string next;;) {
      const auto step = VerifyCache(cache.sections(), cache.objects(), next);
      ASSERT_TRUE(step.ok()) << step.status();
      EXPECT_THAT(step->problems, testing::IsEmpty());
      next = step->next;
      if (next.empty()) break;
    }
  }

  const TempFolder folder_ = *TempFolder::Create();
  const std::string path_;
};

TEST_F(OldCacheTest, OpensForReading) { ExpectAsItWas(*Open(/*read_only=*/true)); }

TEST_F(OldCacheTest, OpensForWritingAndTakesMore) {
  {
    const auto cache = Open(/*read_only=*/false);
    ExpectAsItWas(*cache);
    const PutItem more{TestParts(SampledSpec(), TestDocument(50), 20, 50),
                       TestProvenance(SampledSpec())};
    EXPECT_EQ(cache->sections().Put({more})->at(0).stored, 1u);
    // What is there already is known by its values.
    const auto again = cache->sections().Put({{AllOnes(), TestProvenance(HiddenSpec(8192))}});
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->at(0).stored, 0u);
    EXPECT_EQ(again->at(0).mismatched, 0u);
    SH_CHECK_OK(cache->Close());
  }
  ExpectAsItWas(*Open(/*read_only=*/false));
}

}  // namespace
}  // namespace stillhouse
