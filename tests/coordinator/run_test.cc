// The transitions are numbered in coordinator/run.h.
#include "coordinator/run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace stillhouse {
namespace {

Run MakeRun() {
  Run run;
  run.setup = {"run/handbook/half", "half", "/runs/half-1234", "h1", 40};
  run.job = "job/handbook";
  return run;
}

RunProgress Phase(const std::string& phase) {
  RunProgress progress;
  progress.phase = phase;
  return progress;
}

RunProgress Evaluated(uint64_t step, double kl) {
  RunProgress progress = Phase("training");
  progress.evaluation = RunEvaluation{.step = step, .kl = kl};
  return progress;
}

TEST(RunTest, T1_EveryNewProcessTakesAHigherEpochAndFencesTheOlder) {
  auto run = MakeRun();
  ASSERT_TRUE(StartRun(run, 11).ok());
  EXPECT_EQ(run.epoch, 1);
  ASSERT_TRUE(StartRun(run, 11).ok());
  EXPECT_EQ(run.epoch, 1) << "a repeated request";
  ASSERT_TRUE(StartRun(run, 12).ok());
  EXPECT_EQ(run.epoch, 2);
  EXPECT_TRUE(absl::IsAborted(StartRun(run, 11))) << "a delayed request of the older process";
  EXPECT_TRUE(absl::IsAborted(CheckRunEpoch(run, 1)));
  EXPECT_TRUE(CheckRunEpoch(run, 2).ok());
}

TEST(RunTest, T1_EpochZeroIsNobodys) { EXPECT_TRUE(absl::IsAborted(CheckRunEpoch(MakeRun(), 0))); }

TEST(RunTest, T2_PhasesAndEvaluationsAreJournaledAtOnceNumbersNowAndThen) {
  auto run = MakeRun();
  ASSERT_TRUE(StartRun(run, 11).ok());
  EXPECT_TRUE(ApplyReport(run, Phase("training"), absl::Seconds(1)));
  EXPECT_FALSE(ApplyReport(run, Phase("training"), absl::Seconds(2)));
  EXPECT_TRUE(ApplyReport(run, Evaluated(20, 1.5), absl::Seconds(3)));
  EXPECT_FALSE(ApplyReport(run, Phase("training"), absl::Seconds(4)));
  EXPECT_TRUE(ApplyReport(run, Phase("training"), absl::Seconds(13)));
  EXPECT_EQ(RunStateName(run), "training");
}

TEST(RunTest, T2_BestIsTheLowestKlAndFinalTheLatest) {
  auto run = MakeRun();
  ASSERT_TRUE(StartRun(run, 11).ok());
  ApplyReport(run, Evaluated(10, 2.0), absl::Seconds(1));
  ApplyReport(run, Evaluated(20, 1.0), absl::Seconds(2));
  ApplyReport(run, Evaluated(30, 1.5), absl::Seconds(3));
  EXPECT_EQ(run.best->step, 20);
  EXPECT_EQ(run.final->step, 30);
  EXPECT_EQ(run.last.evaluation->step, 30);
}

TEST(RunTest, T3_FinishedIsFinal) {
  auto run = MakeRun();
  ASSERT_TRUE(StartRun(run, 11).ok());
  RunProgress done = Phase("finished");
  done.exported_to = "/out/half";
  EXPECT_TRUE(ApplyReport(run, done, absl::Seconds(1)));
  EXPECT_EQ(RunStateName(run), "finished");
  EXPECT_TRUE(absl::IsFailedPrecondition(StartRun(run, 12)));
  EXPECT_FALSE(ApplyReport(run, Phase("training"), absl::Seconds(2)));
  EXPECT_FALSE(CancelRun(run));
  ResubmitRun(run, run.setup);
  EXPECT_EQ(run.phase, RunPhase::kFinished);
  EXPECT_EQ(run.last.exported_to, "/out/half");
}

TEST(RunTest, T4_AFailedRunMayStartAgain) {
  auto run = MakeRun();
  ASSERT_TRUE(StartRun(run, 11).ok());
  ApplyReport(run, Phase("failed"), absl::Seconds(1));
  EXPECT_EQ(RunStateName(run), "failed");
  ASSERT_TRUE(StartRun(run, 12).ok());
  EXPECT_EQ(RunStateName(run), "loading");
  EXPECT_EQ(run.epoch, 2);
}

TEST(RunTest, T5_SubmittedAgainGoesOnWhereItWas) {
  auto run = MakeRun();
  ASSERT_TRUE(StartRun(run, 11).ok());
  run.checkpoint = "step-20";
  ASSERT_TRUE(CancelRun(run));
  ResubmitRun(run, run.setup);
  EXPECT_EQ(run.phase, RunPhase::kQueued);
  EXPECT_EQ(run.checkpoint, "step-20");
}

TEST(RunTest, T5_ANewTextIsANewRunWhoseEpochsGoOn) {
  auto run = MakeRun();
  ASSERT_TRUE(StartRun(run, 11).ok());
  run.checkpoint = "step-20";
  RunSetup changed = run.setup;
  changed.hash = "h2";
  ResubmitRun(run, changed);
  EXPECT_EQ(run.phase, RunPhase::kQueued);
  EXPECT_EQ(run.checkpoint, "");
  EXPECT_TRUE(absl::IsAborted(StartRun(run, 11))) << "the process of the old text";
  EXPECT_TRUE(absl::IsAborted(CheckRunEpoch(run, 1))) << "what it still sends";
  ASSERT_TRUE(StartRun(run, 12).ok());
  EXPECT_EQ(run.epoch, 3);
}

TEST(RunTest, T6_ACancelledRunDoesNotStart) {
  auto run = MakeRun();
  EXPECT_TRUE(CancelRun(run));
  EXPECT_FALSE(CancelRun(run));
  EXPECT_TRUE(absl::IsCancelled(StartRun(run, 11)));
}

}  // namespace
}  // namespace stillhouse
