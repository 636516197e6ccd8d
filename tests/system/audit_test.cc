// `cache audit` over what `local` captured of every kind of section, by real processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/status.h"
#include "storage/cache_directory.h"
#include "storage/codec.h"
#include "storage/service/cache_client.h"
#include "storage/service/job_scan.h"
#include "tests/formats/tiny_model.h"
#include "tests/system/harness.h"

namespace stillhouse {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class AuditTest : public testing::Test {
 protected:
  AuditTest() : place_({.texts = 12, .students = 1, .steps = 1}) {
    const std::string recipe = absl::StrReplaceAll(
        *ReadFile(place_.recipe()),
        {{"  logits: {method: sampled, draws: 20}\n",
          "  logits: [{method: sampled, draws: 20}, {method: topk, k: 8}, {method: topp, p: 0.5}]\n"
          "  hidden: {last: true, layers: [0, 1], dtype: int8}\n"}});
    SH_CHECK_OK(WriteFileAtomically(place_.recipe(), recipe));
    const Finished run = place_.Local();
    SH_CHECK(run.code == 0, run.err, place_.Logs());
  }

  Finished Audit(std::vector<std::string> more) {
    std::vector<std::string> words = {"cache", "audit", "tiny", "-o", "json"};
    words.insert(words.end(), more.begin(), more.end());
    return place_.Ctl(words);
  }

  Workplace place_;
};

TEST_F(AuditTest, TheTeacherSaysAgainWhatIsStored) {
  const Finished all = Audit({"--recipe", place_.recipe(), "--sample", "100%"});
  ASSERT_EQ(all.code, 0) << all.err << all.out;
  const json report = json::parse(all.out);
  EXPECT_EQ(report["rows"], report["rows_of_job"]);
  EXPECT_EQ(report["damaged"].size(), 0u);
  std::set<std::string> kinds;
  for (const json& section : report["sections"]) {
    kinds.insert(section["section"]);
    EXPECT_GT(section["rows"], 0) << section;
    EXPECT_EQ(section["rows"], section["equal"]) << section;
    EXPECT_EQ(section["missing"], 0) << section;
  }
  EXPECT_EQ(kinds.size(), 7u) << all.out;

  // A sample is at least a batch, and the same one with the same seed.
  const Finished some = Audit({"--recipe", place_.recipe(), "--sample", "0.1%", "--seed", "7"});
  ASSERT_EQ(some.code, 0) << some.err;
  EXPECT_EQ(json::parse(some.out)["batches"], 1);
  EXPECT_EQ(some.out, Audit({"--recipe", place_.recipe(), "--sample", "0.001", "--seed", "7"}).out);
}

TEST_F(AuditTest, RefusesWhatItCannotCompare) {
  TinyModelOptions other;
  other.seed += 1;
  SH_CHECK_OK(WriteTinyModel(place_.Path("other"), other));
  const std::string cache = place_.Path("cache");
  const Finished wrong = Audit({"--dir", cache, "--model", place_.Path("other")});
  EXPECT_EQ(wrong.code, 4);
  EXPECT_THAT(wrong.err, HasSubstr("was captured from teacher"));
  EXPECT_EQ(Audit({"--dir", cache}).code, 1);
  EXPECT_EQ(Audit({"--dir", cache, "--model", place_.Path("teacher"), "--sample", "0"}).code, 1);
  const Finished none =
      place_.Ctl({"cache", "audit", "nobody", "--dir", cache, "--model", place_.Path("teacher")});
  EXPECT_EQ(none.code, 3);
  EXPECT_THAT(none.err, HasSubstr("the cache has no job nobody"));
}

// Values that are whole, of the right key and shape, and not what the teacher says: no checksum
// tells.
TEST_F(AuditTest, FindsValuesThatTheTeacherDoesNotSay) {
  {
    const auto cache = *CacheDirectory::Open({.path = place_.Path("cache")});
    const JobObject job = *ReadJob(cache->objects(), "tiny");
    PlanCache plans;
    const auto plan = *plans.Get(cache->objects(), job.plan);
    const SectionSpec stats;
    const PartKey key{SectionKey(job.teacher, plan->document(3).key, stats), 0};
    const Part part = *(*cache->sections().Get({key}, kPartBytesMax))[0];
    StatsRows rows;
    SH_CHECK_OK(DecodeStats(part.payload, part.row_count, &rows));
    rows.entropy[1] += 5;
    SH_CHECK_OK(cache->sections().Remove({{{key, stats}}}));
    SH_CHECK_OK(
        cache->sections().Put({{{{key, part.row_count, EncodeStats(rows, 0, part.row_count)}},
                                {job.teacher, job.plan, 0, stats, "somebody"}}}));
    SH_CHECK_OK(cache->Close());
  }
  const Finished verified = place_.Ctl({"cache", "verify", "--dir", place_.Path("cache")});
  EXPECT_EQ(verified.code, 0) << verified.out;
  const Finished audited = Audit({"--recipe", place_.recipe(), "--sample", "1"});
  EXPECT_EQ(audited.code, 7) << audited.err;
  const json report = json::parse(audited.out);
  EXPECT_FALSE(report["holds"].get<bool>());
  for (const json& section : report["sections"]) {
    const bool stats = section["section"] == "stats";
    EXPECT_EQ(section["holds"].get<bool>(), !stats) << section;
    if (!stats) continue;
    EXPECT_EQ(section["worst_document"], 3);
    EXPECT_EQ(section["worst_row"], 1);
    EXPECT_EQ(section["rows"].get<int>() - section["equal"].get<int>(), 1);
  }
}

}  // namespace
}  // namespace stillhouse
