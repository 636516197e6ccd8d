// coordinatorctl cache …, as a user runs it: on a directory, and against a server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "common/file.h"
#include "common/status.h"
#include "storage/record.h"
#include "tests/coordinator/ctl/cache_verbs_fixture.h"
#include "tests/storage/damage_record.h"

namespace stillhouse {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class CacheVerbsTest : public CacheVerbsFixture {
 protected:
  // In each table with records a bit behind the first of each of these marks.
  struct Mark {
    const char* magic;
    size_t behind;
  };
  void FlipBitsOf(const std::vector<Mark>& marks) {
    const std::string database = JoinPath(directory_, "db");
    const std::vector<std::string> names = *ListFolder(database);
    int flipped = 0;
    for (const std::string& name : names) {
      const std::string path = JoinPath(database, name);
      std::string bytes = *ReadFile(path);
      if (!name.ends_with(".sst") || bytes.find(kPartMagic) == std::string::npos) continue;
      for (const Mark& mark : marks) bytes[bytes.find(mark.magic) + mark.behind] ^= 1;
      SH_CHECK_OK(WriteFileAtomically(path, bytes));
      ++flipped;
    }
    ASSERT_EQ(flipped, 1);
  }
};

TEST_F(CacheVerbsTest, LsNamesObjects) {
  const json listed = json::parse(Run(Dir("ls -o json")).out);
  ASSERT_EQ(listed["objects"].size(), 3u);
  EXPECT_EQ(listed["objects"][1]["name"], "job/test");
  EXPECT_EQ(listed["objects"][0]["bytes"], 1000);
  EXPECT_THAT(Run(Dir("ls job/")).out, HasSubstr("job/test"));
  EXPECT_THAT(Run(Dir("ls job/ -o yaml")).out, HasSubstr("name: job/test"));
}

TEST_F(CacheVerbsTest, StatAndDuCount) {
  const json stat = json::parse(Run(Dir("stat -o json")).out);
  EXPECT_EQ(stat["incarnation"], 1);
  EXPECT_EQ(stat["sections"], 16);
  const json usage = json::parse(Run(Dir("du test -o json")).out);
  EXPECT_EQ(usage["training"]["documents"], 6);
  EXPECT_EQ(usage["held_out"]["documents"], 2);
  EXPECT_EQ(usage["artefact_bytes"], 1000);
  EXPECT_EQ(usage["training"]["bytes"].get<int>() + usage["held_out"]["bytes"].get<int>(),
            stat["record_bytes"].get<int>() + stat["index_bytes"].get<int>());
  EXPECT_THAT(Run(Dir("du test")).out, HasSubstr("held out"));
}

TEST_F(CacheVerbsTest, DigestIsOneLine) {
  EXPECT_EQ(Run(Dir("digest test")).out, digest_ + "\n");
  EXPECT_EQ(json::parse(Run(Dir("digest test -o json")).out)["digest"], digest_);
  const Result unknown = Run(Dir("digest other"));
  EXPECT_EQ(unknown.code, kExitNotFound);
  EXPECT_THAT(unknown.errors, HasSubstr("no job other"));
}

TEST_F(CacheVerbsTest, GetWritesDecodedSections) {
  const json stats = json::parse(Run(Dir("get test --document 0 --section stats")).out);
  EXPECT_EQ(stats["section"], "stats");
  EXPECT_EQ(stats["entropy"].size(), stats["rows"].get<size_t>());
  const json sampled = json::parse(Run(Dir("get test --document 1 --section logits/sampled")).out);
  int draws = 0;
  for (const auto& count : sampled["counts"][0]) draws += count.get<int>();
  EXPECT_EQ(draws, static_cast<int>(kTestDraws));
  const json hidden = json::parse(Run(Dir("get test --document 7 --section hidden/last")).out);
  EXPECT_EQ(hidden["values"][0].size(), 8u);
  const std::string file = JoinPath(folder_.path(), "raw");
  EXPECT_EQ(Run(Dir("get test --document 7 --section hidden/last --raw --out " + file)).code, 0);
  EXPECT_EQ(ReadFile(file)->size(), hidden["rows"].get<size_t>() * 8 * 2);
  const auto device = Run(Dir("get test --document 7 --section stats --out /dev/null"));
  EXPECT_EQ(device.code, kExitFailed);
  EXPECT_THAT(device.errors, HasSubstr("--out /dev/null: not a regular file"));
  EXPECT_THAT(Run(Dir("get --object job/test")).out, HasSubstr("\"format\":1"));
  EXPECT_EQ(Run(Dir("get test --document 99 --section stats")).code, kExitNotFound);
  EXPECT_THAT(Run(Dir("get test --document 0 --section hidden/last")).errors,
              HasSubstr("it has: stats, logits/sampled"));
}

// The same plan, of every other section.
TEST_F(CacheVerbsTest, GetWritesAndNarrowsTheMostLikelyIds) {
  {
    auto cache = *CacheDirectory::Open({.path = directory_, .disk_reserve_bytes = 0});
    const auto plan = *ParsePlan(TestPlanBytes());
    JobObject job = TestJob(plan->digest());
    job.name = "more";
    job.sections.clear();
    for (const char* text :
         {"logits/topk?k=16", "logits/topp?p=0.9&k_max=16", "hidden/3?hidden_size=8&dtype=int8"}) {
      job.sections.push_back(*ParseSectionSpec(text));
      const auto document = plan->document(0);
      SH_CHECK_OK(cache->sections().Put(
          {PutItem{TestParts(job.sections.back(), document.key, document.rows(), 1),
                   TestProvenance(job.sections.back())}}));
    }
    const std::string bytes = EncodeJobObject(job);
    SH_CHECK_OK(
        cache->objects().PutPiece({JobObjectName("more"), bytes.size(), 0, false, 1, bytes}));
    SH_CHECK_OK(cache->Close());
  }
  const auto get = [&](const std::string& section) {
    return Run(Dir("get more --document 0 --section " + section));
  };
  const json top = json::parse(get("logits/topk").out);
  EXPECT_EQ(top["section"], "logits/topk?k=16");
  EXPECT_EQ(top["ids"].size(), top["rows"].get<size_t>());
  EXPECT_EQ(top["ids"][0].size(), 16u);
  double sum = std::exp(top["residual_logprob"][0].get<double>());
  for (const auto& logprob : top["logprobs"][0]) sum += std::exp(logprob.get<double>());
  EXPECT_NEAR(sum, 1, 1e-6);
  const json fewer = json::parse(get("logits/topk?k=4").out);
  EXPECT_EQ(fewer["section"], "logits/topk?k=4");
  EXPECT_EQ(fewer["served_by"], "logits/topk?k=16");
  EXPECT_EQ(fewer["ids"][0].size(), 4u);
  const std::string file = JoinPath(folder_.path(), "raw");
  EXPECT_EQ(get("logits/topk?k=4 --raw --out " + file).code, 0);
  EXPECT_EQ(ReadFile(file)->size(), top["rows"].get<size_t>() * (8 + 8 * 4));
  EXPECT_THAT(get("logits/topk?k=17").errors,
              HasSubstr("it has: logits/topk?k=16, logits/topp?p=0.9&k_max=16, hidden/3"));
  EXPECT_EQ(json::parse(get("logits/topp").out)["section"], "logits/topp?p=0.9&k_max=16");
  EXPECT_EQ(json::parse(get("hidden/3").out)["values"][0].size(), 8u);
}

TEST_F(CacheVerbsTest, VerifyFindsAFlippedBit) {
  EXPECT_EQ(Run(Dir("verify")).code, 0);
  const std::string database = JoinPath(directory_, "db");
  const std::vector<std::string> names = *ListFolder(database);
  for (const std::string& name : names) {
    if (!name.ends_with(".sst")) continue;
    std::string bytes = *ReadFile(JoinPath(database, name));
    bytes[100] ^= 1;
    SH_CHECK_OK(WriteFileAtomically(JoinPath(database, name), bytes));
  }
  const Result damaged = Run(Dir("verify -o json"));
  EXPECT_EQ(damaged.code, kExitCorrupt) << damaged.out << damaged.errors;
}

TEST_F(CacheVerbsTest, RepairKeepsWhatIsWholeAndListsWhatIsGone) {
  EXPECT_THAT(Run(Dir("repair")).out, HasSubstr("nothing to repair"));
  FlipBitsOf({{kPartMagic, 70}});  // of the first part
  const Result found = Run(Dir("verify"));
  EXPECT_EQ(found.code, kExitCorrupt);
  EXPECT_THAT(found.out, HasSubstr(" damaged"));
  const Result dry = Run(Dir("repair --dry-run"));
  EXPECT_THAT(dry.out, HasSubstr("nothing was changed"));
  EXPECT_EQ(Run(Dir("verify")).code, kExitCorrupt);
  const json repaired = json::parse(Run(Dir("repair -o json")).out);
  EXPECT_EQ(repaired["changed"], true);
  ASSERT_EQ(repaired["gone"].size(), 1u);
  EXPECT_THAT(repaired["gone"][0].get<std::string>(), HasSubstr("part: section "));
  EXPECT_TRUE(PathExists(repaired["quarantine"].get<std::string>()));
  EXPECT_EQ(Run(Dir("verify")).code, 0);
  EXPECT_EQ(json::parse(Run(Dir("du test -o json")).out)["training"]["missing"], 1);
  EXPECT_EQ(Run("repair --dir " + JoinPath(folder_.path(), "none")).code, kExitNotFound);
}

// Of a lost part whose record and origin are both damaged its job tells.
TEST_F(CacheVerbsTest, RepairNamesALostPartByItsJob) {
  FlipBitsOf({{kPartMagic, 70}, {"SHor", 40}});
  const json repaired = json::parse(Run(Dir("repair -o json")).out);
  EXPECT_EQ(repaired["gone_at_least"], false);
  ASSERT_EQ(repaired["gone"].size(), 1u);
  EXPECT_THAT(repaired["gone"][0].get<std::string>(), HasSubstr("stats of document "));
  EXPECT_THAT(repaired["gone"][0].get<std::string>(), HasSubstr(" in chunk "));
}

TEST_F(CacheVerbsTest, KnownDamageIsNoPartThatWasNotCapturedYet) {
  {
    const auto cache = *CacheDirectory::Open({.path = directory_, .disk_reserve_bytes = 0});
    const auto plan = *ParsePlan(TestPlanBytes());
    const PartKey key = TestDocumentItems(*plan, 0, 0)[0].parts[0].key;
    DamageRecordOf(*cache, key);
    SH_CHECK_OK(cache->Close());
  }
  const std::string address = Serve(directory_, "s");
  const auto ask = [&](const std::string& verb) { return Run(verb + " --server " + address); };
  const std::string folder = JoinPath(folder_.path(), "export");
  EXPECT_EQ(ask("get test --document 0 --section stats").code, kExitCorrupt);
  for (const std::string& verb : {std::string("digest test"), "export test --to " + folder}) {
    const Result told = ask(verb);
    EXPECT_EQ(told.code, kExitCorrupt) << verb << told.errors;
    EXPECT_THAT(told.errors, HasSubstr("damaged and not captured again yet"));
  }
}

TEST_F(CacheVerbsTest, ServerAnswersTheSameAndItsDirectoryIsRefused) {
  const std::string address = Serve(directory_, "s");
  const auto ask = [&](const std::string& verb) { return Run(verb + " --server " + address); };
  EXPECT_EQ(ask("digest test").out, digest_ + "\n");
  EXPECT_EQ(json::parse(ask("stat -o json").out)["incarnation"], 2);
  EXPECT_EQ(json::parse(ask("ls -o json").out)["objects"].size(), 3u);
  EXPECT_EQ(json::parse(ask("du test -o json").out)["training"]["missing"], 0);
  EXPECT_EQ(ask("verify").code, 0);
  EXPECT_EQ(ask("get test --document 0 --section stats").out,
            ask("get test --document 0 --section stats").out);
  EXPECT_EQ(json::parse(ask("gc --dry-run -o json").out)["parts"], 0);
  EXPECT_EQ(ask("pin test").code, 0);
  EXPECT_EQ(ask("rm test").code, kExitConflict);
  EXPECT_EQ(ask("unpin test").code, 0);
  EXPECT_EQ(Run(Dir("rm test")).code, kExitConflict);  // held
  const Result held = Run(Dir("stat"));
  EXPECT_EQ(held.code, kExitConflict);
  EXPECT_THAT(held.errors, HasSubstr("ask its server with --server"));
  EXPECT_EQ(ask("digest test").out, digest_ + "\n");
  EXPECT_EQ(json::parse(ask("rm test -o json").out)["sections"], 16);
  StopServers();
  EXPECT_EQ(Run(Dir("digest test")).code, kExitNotFound);
}

TEST_F(CacheVerbsTest, RmPinAndGcOnADirectory) {
  const json said = json::parse(Run(Dir("rm test --dry-run -o json")).out);
  EXPECT_EQ(said["sections"], 16);
  EXPECT_EQ(said["objects"].size(), 3u);
  EXPECT_EQ(json::parse(Run(Dir("stat -o json")).out)["sections"], 16);
  EXPECT_EQ(Run(Dir("pin job/test")).code, 0);
  const Result pinned = Run(Dir("rm job/test"));
  EXPECT_EQ(pinned.code, kExitConflict);
  EXPECT_THAT(pinned.errors, HasSubstr("cache unpin test"));
  EXPECT_EQ(std::count(pinned.errors.begin(), pinned.errors.end(), '\n'), 1) << pinned.errors;
  EXPECT_EQ(Run(Dir("unpin test")).code, 0);
  EXPECT_EQ(Run(Dir("unpin test")).code, kExitNotFound);
  EXPECT_EQ(Run(Dir("rm test --section logits/sampled?draws=50")).code, 0);
  EXPECT_EQ(json::parse(Run(Dir("du --job test -o json")).out)["training"]["missing"], 0);
  const json done = json::parse(Run(Dir("rm test -o json")).out);
  EXPECT_EQ(done["object_count"], said["object_count"]);
  const json stat = json::parse(Run(Dir("stat -o json")).out);
  EXPECT_EQ(stat["sections"], 0);
  EXPECT_EQ(stat["bytes"], 0);
  EXPECT_EQ(stat["dead_bytes"], 0);
  EXPECT_EQ(Run(Dir("rm test")).code, kExitNotFound);
  EXPECT_THAT(Run(Dir("gc")).out, HasSubstr("removed 0 sections"));
  EXPECT_EQ(Run(Dir("rm")).code, kExitFailed);
  EXPECT_EQ(Run(Dir("rm --teacher abc")).code, kExitFailed);
  EXPECT_EQ(Run("gc --dir " + JoinPath(folder_.path(), "none")).code, kExitNotFound);
  EXPECT_FALSE(PathExists(JoinPath(folder_.path(), "none")));
}

TEST_F(CacheVerbsTest, NothingThereIsOneLine) {
  const Result none = Run("stat --dir " + JoinPath(folder_.path(), "none"));
  EXPECT_EQ(none.code, kExitNotFound);
  EXPECT_EQ(std::count(none.errors.begin(), none.errors.end(), '\n'), 1) << none.errors;
  EXPECT_EQ(Run("stat --dir a --server b").code, kExitFailed);
}

}  // namespace
}  // namespace stillhouse
