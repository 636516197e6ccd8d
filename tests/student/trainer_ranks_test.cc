// Whole runs of a tiny student on ranks that are threads, against a cache and a coordinator in
// memory.
#include <cmath>
#include <fstream>

#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/status.h"
#include "dataset/data_order.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "student/checkpoint.h"
#include "tests/student/trainer_bench.h"

namespace stillhouse {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

std::string OnRanks(int ranks, const std::string& recipe = kTrainerRecipe) {
  return absl::StrReplaceAll(
      recipe, {{"    dtype: bf16\n", absl::StrCat("    dtype: bf16\n    ranks: ", ranks, "\n")}});
}
std::string InFp32(const std::string& recipe) {
  return absl::StrReplaceAll(recipe, {{"    dtype: bf16\n", "    dtype: fp32\n"}});
}

std::vector<Json> Metrics(const TrainerBench& bench) {
  std::vector<Json> lines;
  const auto text = ReadFile(JoinPath(bench.spec.run_folder, "metrics.jsonl"));
  SH_CHECK_OK(text);
  for (absl::string_view line : absl::StrSplit(*text, '\n', absl::SkipEmpty())) {
    lines.push_back(Json::parse(line.begin(), line.end()));
  }
  return lines;
}

TEST(TrainerRanksTest, SeveralRanksTrainAndAreEvaluatedAsOne) {
  TrainerBench one(InFp32(OnRanks(1)));
  ASSERT_TRUE(one.Train().ok()) << one.ends[0];
  const std::vector<Json> wanted = Metrics(one);
  for (const int ranks : {2, 3}) {
    TrainerBench many(InFp32(OnRanks(ranks)));
    ASSERT_TRUE(many.Train().ok()) << many.ends[0];
    EXPECT_THAT(many.ends, Each(absl::OkStatus()));
    EXPECT_EQ(many.ExitKind(), "finished");
    const std::vector<Json> got = Metrics(many);
    ASSERT_EQ(got.size(), wanted.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i]["step"], wanted[i]["step"]);
      if (got[i].contains("loss")) {
        EXPECT_EQ(got[i]["counted_rows"], wanted[i]["counted_rows"]);
        for (const char* key : {"loss", "grad_norm", "kl_sampled"}) {
          const double value = wanted[i][key];
          EXPECT_NEAR(got[i][key].get<double>(), value, 2e-3 * std::abs(value)) << key << " " << i;
        }
      } else {
        const Json &a = got[i]["evaluation"], &b = wanted[i]["evaluation"];
        EXPECT_EQ(a["rows"], b["rows"]);
        for (const char* key : {"perplexity", "kl", "kl_se", "jsd", "teacher_perplexity"}) {
          EXPECT_NEAR(a[key].get<double>(), b[key].get<double>(), 2e-3 * b[key].get<double>())
              << key;
        }
      }
    }
  }
}

TEST(TrainerRanksTest, TheSameRanksGiveTheSameBits) {
  for (const int ranks : {2, 3}) {
    EXPECT_EQ(UninterruptedExport(OnRanks(ranks)), UninterruptedExport(OnRanks(ranks)));
  }
}

TEST(TrainerRanksTest, AStopOnOneRankStopsAllAtTheSameStepAndARestartEndsWithTheSameBits) {
  const std::string uninterrupted = UninterruptedExport(OnRanks(2));
  for (const size_t stopped : {size_t{0}, size_t{1}}) {
    TrainerBench bench(OnRanks(2));
    const uint32_t late =
        bench.plan->document(EpochOrder(*bench.plan, kTrainerSeed, 0).back()).chunk;
    bench.run.states.erase(late);
    bench.run.on_report = [&](const RunReport& report) {
      if (report.step > 0) bench.stops[stopped] = true;
    };
    bench.Train().IgnoreError();
    for (const absl::Status& end : bench.ends) {
      EXPECT_EQ(StopOf(end), RunStop::kTerminated) << end;
    }
    EXPECT_EQ(bench.ExitKind(), "terminated");
    EXPECT_NE(bench.run.committed, "");
    bench.OnLoop([&] {
      bench.run.on_report = nullptr;
      bench.run.states[late] = ChunkAvailability::kDurable;
    });
    ASSERT_TRUE(bench.TrainAgain().ok()) << bench.ends[0];
    EXPECT_EQ(bench.Exported(), uninterrupted);
  }
}

TEST(TrainerRanksTest, ACancelledRunEndsOnAllRanks) {
  TrainerBench bench(OnRanks(3));
  bench.run.on_report = [&](const RunReport& report) {
    if (report.step > 0) bench.run.cancelled = true;
  };
  const uint32_t late = bench.plan->document(EpochOrder(*bench.plan, kTrainerSeed, 0).back()).chunk;
  bench.run.states.erase(late);  // it is not quicker than the word
  bench.Train().IgnoreError();
  for (const absl::Status& end : bench.ends) EXPECT_EQ(StopOf(end), RunStop::kCancelled) << end;
}

TEST(TrainerRanksTest, KilledBeforeACommitItGoesBackToTheLastOneAndEndsWithTheSameBits) {
  TrainerBench bench(OnRanks(3));
  bench.run.on_commit = [&] {
    if (bench.run.committed != "") bench.run.commit_status = absl::UnavailableError("gone");
  };
  bench.Train().IgnoreError();
  for (const absl::Status& end : bench.ends) EXPECT_EQ(StopOf(end), RunStop::kFailed) << end;
  bench.OnLoop([&] {
    bench.run.on_commit = nullptr;
    bench.run.commit_status = absl::OkStatus();
  });
  ASSERT_TRUE(bench.TrainAgain().ok()) << bench.ends[0];
  EXPECT_EQ(bench.Exported(), UninterruptedExport(OnRanks(3)));
}

TEST(TrainerRanksTest, ADamagedShardIsRefusedByAllAndTheOlderCheckpointLeadsToTheSameBits) {
  TrainerBench bench(OnRanks(2));
  ASSERT_TRUE(bench.Train().ok()) << bench.ends[0];
  const std::string exported = bench.Exported();
  SH_CHECK_OK(RemoveTree(JoinPath(bench.output, "small")));
  const std::string shard =
      JoinPath(bench.spec.run_folder, "checkpoints/" + bench.run.committed + "/rank-1-of-2.state");
  std::string bytes = *ReadFile(shard);
  bytes[bytes.size() / 2] ^= 1;
  SH_CHECK_OK(WriteFileAtomically(shard, bytes));
  ASSERT_TRUE(bench.TrainAgain().ok()) << bench.ends[0];
  EXPECT_EQ(bench.Exported(), exported);
}

TEST(TrainerRanksTest, ARankWhoseDataIsLostStopsAllOfThemWithItsReason) {
  TrainerBench bench(OnRanks(2));
  for (auto& [chunk, state] : bench.run.states) {
    if (chunk > 2) state = ChunkAvailability::kPoisoned;
  }
  bench.Train().IgnoreError();
  for (const absl::Status& end : bench.ends) EXPECT_EQ(StopOf(end), RunStop::kPoisoned) << end;
  EXPECT_EQ(bench.ExitKind(), "poisoned");
}

TEST(TrainerRanksTest, AnotherNumberOfRanksThanTheRecipesIsRefused) {
  TrainerBench bench(OnRanks(2));
  bench.ranks = 3;
  bench.Train().IgnoreError();
  for (const absl::Status& end : bench.ends) {
    EXPECT_TRUE(absl::IsFailedPrecondition(end)) << end;
    EXPECT_THAT(std::string(end.message()), HasSubstr("has 2 ranks, not 3"));
  }
}

}  // namespace
}  // namespace stillhouse
