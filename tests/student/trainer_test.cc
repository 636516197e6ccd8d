// Whole runs of a tiny student, against a cache and a coordinator in memory.

#include "student/trainer.h"

#include <atomic>
#include <fstream>
#include <thread>

#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/event_loop.h"
#include "common/file.h"
#include "common/random.h"
#include "common/status.h"
#include "dataset/data_order.h"
#include "formats/json.h"
#include "formats/model_files.h"
#include "formats/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/parallel.h"
#include "recipe/recipe.h"
#include "student/checkpoint.h"
#include "tests/student/fakes.h"
#include "tests/student/trainer_bench.h"

namespace stillhouse {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::SizeIs;

TEST(TrainerTest, TrainsEvaluatesCheckpointsAndExports) {
  TrainerBench bench(kTrainerRecipe);
  const absl::Status status = bench.Train();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(bench.ExitKind(), "finished");

  const auto exported = OpenModelFiles(JoinPath(bench.output, "small"));
  ASSERT_TRUE(exported.ok()) << exported.status();
  EXPECT_EQ(exported->config.layers, 2);
  EXPECT_EQ(exported->tokenizer->Fingerprint(), bench.plan->tokenizer_fingerprint());

  const auto manifest = ReadJsonFile(JoinPath(bench.spec.run_folder, "manifest.json"), 1 << 20);
  ASSERT_TRUE(manifest.ok());
  EXPECT_EQ((*manifest)["teacher_layers"], Json::parse("[0, 3]"));

  std::ifstream metrics(JoinPath(bench.spec.run_folder, "metrics.jsonl"));
  std::vector<double> losses;
  int evaluations = 0;
  for (std::string line; std::getline(metrics, line);) {
    const Json json = Json::parse(line);
    if (json.contains("loss")) losses.push_back(json["loss"].get<double>());
    if (json.contains("evaluation")) ++evaluations;
  }
  ASSERT_THAT(losses, SizeIs(7));
  EXPECT_LT(losses.back(), losses.front());
  EXPECT_EQ(evaluations, 3);  // after steps 3, 6 and 7

  const auto checkpoints = CheckpointStore(bench.spec.run_folder).List();
  ASSERT_TRUE(checkpoints.ok());
  ASSERT_THAT(*checkpoints, SizeIs(2));
  EXPECT_EQ(checkpoints->front(), bench.run.committed);
  EXPECT_THAT(checkpoints->front(), testing::StartsWith("step-7.1."));
  bench.OnLoop([&] {
    const RunReport& last = bench.run.reports.back();
    EXPECT_EQ(last.phase, "finished");
    EXPECT_EQ(last.exported_to, JoinPath(bench.output, "small"));
    EXPECT_EQ(last.step, 7u);
    ASSERT_TRUE(last.has_evaluation);
    EXPECT_EQ(last.evaluation.step, 7u);
    EXPECT_GT(last.evaluation.kl, 0);
    EXPECT_GT(last.seconds, 0);
  });
}

TEST(TrainerTest, StartsOnTheFirstChunksAndWaitsForTheRest) {
  TrainerBench bench(kTrainerRecipe);
  const std::string uninterrupted = UninterruptedExport(kTrainerRecipe);
  bench.OnLoop([&] { bench.run.states.clear(); });
  std::thread teacher([&] {
    for (uint32_t chunk = 0; chunk < bench.plan->chunk_count(); ++chunk) {
      bench.OnLoop([&] { bench.run.states[chunk] = ChunkAvailability::kDurable; });
    }
  });
  EXPECT_TRUE(bench.Train().ok());
  teacher.join();
  EXPECT_EQ(bench.Exported(), uninterrupted);
}

TEST(TrainerTest, AfterASignalARestartEndsWithTheSameBits) {
  TrainerBench bench(kTrainerRecipe);
  // The run comes as far as the data goes, then it is asked to stop.
  const uint32_t late = bench.plan->document(EpochOrder(*bench.plan, kTrainerSeed, 0).back()).chunk;
  bench.run.states.erase(late);
  bench.run.on_report = [&](const RunReport& report) {
    if (report.phase == "waiting" && report.step > 0) bench.stops[0] = true;
  };
  const absl::Status status = bench.Train();
  EXPECT_EQ(StopOf(status), RunStop::kTerminated) << status;
  EXPECT_EQ(bench.ExitKind(), "terminated");
  EXPECT_NE(bench.run.committed, "");
  bench.OnLoop([&] {
    bench.run.on_report = nullptr;
    bench.run.states[late] = ChunkAvailability::kDurable;
  });
  const absl::Status again = bench.TrainAgain();
  EXPECT_TRUE(again.ok()) << again;
  EXPECT_EQ(bench.Exported(), UninterruptedExport(kTrainerRecipe));
}

TEST(TrainerTest, AnEvaluationThatASignalInterruptedIsMadeByTheRestart) {
  TrainerBench bench(kTrainerRecipe);
  uint32_t held_out = 0;
  while (!bench.plan->chunk(held_out).held_out) ++held_out;
  bench.run.states.erase(held_out);  // the first evaluation, after step 3, waits for it
  bench.run.on_report = [&](const RunReport& report) {
    if (report.phase == "waiting" && report.step > 0) bench.stops[0] = true;
  };
  EXPECT_EQ(StopOf(bench.Train()), RunStop::kTerminated);
  EXPECT_THAT(bench.run.committed, testing::StartsWith("step-3."));
  bench.OnLoop([&] {
    bench.run.on_report = nullptr;
    bench.run.states[held_out] = ChunkAvailability::kDurable;
  });
  ASSERT_TRUE(bench.TrainAgain().ok());
  std::vector<uint64_t> evaluated;
  const std::string metrics = *ReadFile(JoinPath(bench.spec.run_folder, "metrics.jsonl"));
  for (absl::string_view line : absl::StrSplit(metrics, '\n')) {
    const auto json = ParseJson(line, "metrics.jsonl");
    if (json.ok() && json->contains("evaluation")) evaluated.push_back((*json)["step"]);
  }
  EXPECT_THAT(evaluated, testing::ElementsAre(3, 6, 7));
}

TEST(TrainerTest, KilledBeforeACommitItGoesBackToTheLastOneAndEndsWithTheSameBits) {
  TrainerBench bench(kTrainerRecipe);
  // Step 2 commits; of step 4 only the folder is there.
  bench.run.on_commit = [&] {
    if (bench.run.committed != "") bench.run.commit_status = absl::UnavailableError("gone");
  };
  const absl::Status status = bench.Train();
  EXPECT_EQ(StopOf(status), RunStop::kFailed) << status;
  bench.OnLoop([&] {
    bench.run.on_commit = nullptr;
    bench.run.commit_status = absl::OkStatus();
  });
  const absl::Status again = bench.TrainAgain();
  EXPECT_TRUE(again.ok()) << again;
  EXPECT_EQ(bench.Exported(), UninterruptedExport(kTrainerRecipe));
}

TEST(TrainerTest, ADamagedCheckpointIsRefusedAndTheOlderOneLeadsToTheSameBits) {
  TrainerBench bench(kTrainerRecipe);
  EXPECT_TRUE(bench.Train().ok());
  const std::string exported = bench.Exported();
  SH_CHECK_OK(RemoveTree(JoinPath(bench.output, "small")));
  const std::string shard =
      JoinPath(bench.spec.run_folder, "checkpoints/" + bench.run.committed + "/rank-0-of-1.state");
  std::string bytes = *ReadFile(shard);
  bytes[bytes.size() / 2] ^= 1;
  SH_CHECK_OK(WriteFileAtomically(shard, bytes));
  const absl::Status again = bench.TrainAgain();
  EXPECT_TRUE(again.ok()) << again;
  EXPECT_EQ(bench.Exported(), exported);
}

TEST(TrainerTest, WithNoReadableCheckpointItStopsAndSaysSo) {
  TrainerBench bench(kTrainerRecipe);
  ASSERT_TRUE(bench.Train().ok());
  const std::string exported = bench.Exported();
  SH_CHECK_OK(RemoveTree(JoinPath(bench.output, "small")));
  const std::string checkpoints = JoinPath(bench.spec.run_folder, "checkpoints");
  const std::vector<std::string> names = *ListFolder(checkpoints);
  for (const std::string& name : names) {
    SH_CHECK_OK(RemoveTree(JoinPath(checkpoints, name)));
  }
  const absl::Status status = bench.TrainAgain();
  EXPECT_EQ(StopOf(status), RunStop::kNoCheckpoint) << status;
  EXPECT_EQ(RunStopExitCode(StopOf(status), status), kExitCorrupt);
  EXPECT_EQ(bench.ExitKind(), "no_checkpoint");
  EXPECT_THAT(std::string(status.message()), HasSubstr(bench.run.committed));
  EXPECT_THAT(std::string(status.message()), HasSubstr("remove " + checkpoints));
  // What the message says helps.
  SH_CHECK_OK(RemoveTree(checkpoints));
  const absl::Status again = bench.TrainAgain();
  EXPECT_TRUE(again.ok()) << again;
  EXPECT_EQ(bench.Exported(), exported);
}

TEST(TrainerTest, APoisonedChunkCheckpointsAndStops) {
  TrainerBench bench(kTrainerRecipe);
  bench.OnLoop([&] {
    bench.run.states[bench.plan->training_chunk_count() - 1] = ChunkAvailability::kPoisoned;
  });
  const absl::Status status = bench.Train();
  EXPECT_EQ(StopOf(status), RunStop::kPoisoned) << status;
  EXPECT_EQ(bench.ExitKind(), "poisoned");
  bench.OnLoop([&] {
    EXPECT_EQ(bench.run.reports.back().phase, "failed");
    EXPECT_THAT(bench.run.reports.back().message, HasSubstr("chunk"));
    if (bench.run.reports.back().step > 0) {
      EXPECT_NE(bench.run.committed, "");
    }
  });
}

TEST(TrainerTest, ACancelledRunLeaves) {
  TrainerBench bench(kTrainerRecipe);
  bench.OnLoop([&] { bench.run.cancelled = true; });
  EXPECT_EQ(StopOf(bench.Train()), RunStop::kCancelled);
  EXPECT_EQ(bench.ExitKind(), "cancelled");
}

TEST(TrainerTest, ANewerProcessFencesThisOne) {
  TrainerBench bench(kTrainerRecipe);
  bench.OnLoop(
      [&] { bench.run.commit_status = absl::AbortedError("a newer process has the run"); });
  const absl::Status status = bench.Train();
  EXPECT_EQ(StopOf(status), RunStop::kSuperseded);
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
}

TEST(TrainerTest, StopsEarlyWhenNothingGetsBetter) {
  // A rate of almost nothing leaves every evaluation as it was.
  TrainerBench bench(absl::StrReplaceAll(
      kTrainerRecipe, {{"lr: 5e-3", "lr: 1e-30"},
                       {"evaluate: {every: 3}", "evaluate: {every: 1, early_stop: 2}"}}));
  ASSERT_TRUE(bench.Train().ok());
  EXPECT_THAT(bench.run.committed, testing::StartsWith("step-3."));
}

TEST(TrainerTest, AnExportOfAnotherRunIsLeftAlone) {
  TrainerBench bench(kTrainerRecipe);
  SH_CHECK_OK(MakeFolders(JoinPath(bench.output, "small")));
  ASSERT_TRUE(bench.Train().ok());
  bench.OnLoop([&] {
    EXPECT_THAT(bench.run.reports.back().exported_to, HasSubstr("/small-"));
    EXPECT_TRUE(PathExists(JoinPath(bench.run.reports.back().exported_to, "config.json")));
  });
}

TEST(TrainerTest, ADamagedExportIsWrittenAgainAndAWholeOneIsNot) {
  TrainerBench bench(kTrainerRecipe);
  ASSERT_TRUE(bench.Train().ok());
  const std::string exported = bench.Exported();
  const std::string folder = JoinPath(bench.output, "small");
  const auto record = ReadJsonFile(JoinPath(bench.spec.run_folder, "export.json"), 1 << 20);
  ASSERT_TRUE(record.ok());
  EXPECT_EQ((*record)["folder"], "small");
  bool found = false;
  for (const Json& file : (*record)["files"]) {
    if (file["name"] != "model.safetensors") continue;
    found = true;
    EXPECT_EQ(file["bytes"], exported.size());
    EXPECT_EQ(file["sha256"], Sha256Of(exported).Hex());
  }
  EXPECT_TRUE(found);
  SH_CHECK_OK(WriteFileAtomically(JoinPath(folder, "model.safetensors"), "short"));
  ASSERT_TRUE(bench.TrainAgain().ok());
  EXPECT_EQ(bench.Exported(), exported);

  // What a user put there is no reason to write it again, nor is it removed.
  SH_CHECK_OK(WriteFileAtomically(JoinPath(folder, "notes.txt"), "mine"));
  ASSERT_TRUE(bench.TrainAgain().ok());
  EXPECT_TRUE(PathExists(JoinPath(folder, "notes.txt")));
  SH_CHECK_OK(WriteFileAtomically(JoinPath(folder, "model.safetensors"), "short"));
  EXPECT_EQ(bench.TrainAgain().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(PathExists(JoinPath(folder, "notes.txt")));
}

TEST(TrainerTest, ANameThatAnotherRunTookMeanwhileIsNotThisRunsExport) {
  TrainerBench bench(kTrainerRecipe);
  // This run recorded the name and ended; then another one exported under it.
  SH_CHECK_OK(MakeFolders(bench.spec.run_folder));
  SH_CHECK_OK(WriteFileAtomically(JoinPath(bench.spec.run_folder, "export.json"),
                                  R"({"folder": "small"})"));
  const std::string another = JoinPath(FolderOf(bench.spec.run_folder), "small-00000000");
  SH_CHECK_OK(MakeFolders(another));
  SH_CHECK_OK(WriteFileAtomically(JoinPath(another, "export.json"), R"({"folder": "small"})"));
  SH_CHECK_OK(MakeFolders(JoinPath(bench.output, "small")));
  ASSERT_TRUE(bench.Train().ok());
  bench.OnLoop([&] { EXPECT_THAT(bench.run.reports.back().exported_to, HasSubstr("/small-")); });
}

TEST(TrainerTest, AnExportGoesIntoTheOutputFolderOfNow) {
  TrainerBench bench(kTrainerRecipe);
  SH_CHECK_OK(MakeFolders(bench.spec.run_folder));
  SH_CHECK_OK(WriteFileAtomically(JoinPath(bench.spec.run_folder, "export.json"),
                                  R"({"folder": "/where/it/was/before/small"})"));
  ASSERT_TRUE(bench.Train().ok());
  EXPECT_TRUE(PathExists(JoinPath(bench.output, "small/model.safetensors")));
}

TEST(TrainerTest, OtherLossesAndShapesTrainToo) {
  const std::pair<std::string, std::string> cases[] = {
      {"- {kl: {targets: sampled}, weight: 0.9}",
       "- {kl: {targets: hidden_last, temperature: 2.0}, weight: 0.9}"},
      {"- {kl: {targets: sampled}, weight: 0.9}", "- {kl: {targets: topk}, weight: 0.9}"},
      {"- {kl: {targets: sampled}, weight: 0.9}\n      ", ""},
      {"init: {from: teacher, layers: {keep: 2, by: block_influence}}", "init: {from: scratch}"},
      {"packing: true", "packing: false"},
      {"dtype: bf16", "dtype: fp32"}};
  for (const auto& [from, to] : cases) {
    std::string recipe = absl::StrReplaceAll(kTrainerRecipe, {{from, to}});
    recipe = absl::StrReplaceAll(recipe,
                                 {{"logits: {method: sampled, draws: 50}",
                                   "logits: [{method: sampled, draws: 50}, {method: topk, k: 9}]\n"
                                   "  hidden: {last: true}"}});
    TrainerBench bench(recipe);
    const absl::Status status = bench.Train();
    EXPECT_TRUE(status.ok()) << to << ": " << status;
  }
}

}  // namespace
}  // namespace stillhouse
