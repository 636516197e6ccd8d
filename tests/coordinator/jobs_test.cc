#include <gmock/gmock.h>

#include "coordinator/admin_view.h"
#include "tests/coordinator/state_fixture.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

using JobsTest = StateTest;

TEST_F(JobsTest, TheSameSubmissionTwiceIsOneAndAnswersAlike) {
  EXPECT_FALSE(Submit(Submission(2)).resumed);
  const uint64_t generation = job().generation;
  const SubmitAnswer again = Submit(Submission(2));
  EXPECT_FALSE(again.resumed) << "a repeated request gets the answer of the first";
  EXPECT_EQ(job().generation, generation);
}

TEST_F(JobsTest, ALaterSubmissionOfTheSameJobResumesIt) {
  SubmitAndReconcile(2);
  Register("t", 1);
  Finish(MustLease("t", 1), "t", 1);
  ASSERT_TRUE(OnCancel(state_, "job/j", effects_).ok());
  EXPECT_EQ(job().phase, JobPhase::kCancelled);
  EXPECT_FALSE(Lease("t", 1).grant.has_value());
  SubmitEvent event = Submission(2);
  event.key = "key-2";
  EXPECT_TRUE(Submit(event).resumed);
  AnswerCache();
  EXPECT_EQ(chunk(0).state, ChunkState::kDurable);
  EXPECT_EQ(MustLease("t", 1).chunk, 1);
  EXPECT_EQ(state_.runs.at("run/j/a").phase, RunPhase::kQueued);
}

TEST_F(JobsTest, ANewPlanAsksTheCacheAboutAllAndDropsOldGrants) {
  SubmitAndReconcile(2);
  Register("t", 1);
  const GrantRef old = MustLease("t", 1);
  SubmitEvent event = Submission(3);
  event.key = "key-2";
  event.capture.plan = Sha256Of("plan 2");
  EXPECT_FALSE(Submit(event).resumed);
  EXPECT_EQ(effects_.rows.count({RowRef::Kind::kEraseChunks, "job/j"}), 1);
  EXPECT_THAT(Beat("t", 1, {{old, 10}}).cancelled, ::testing::ElementsAre(old));
  durable_ = {1};
  AnswerCache();
  EXPECT_EQ(chunk(1).state, ChunkState::kDurable);
  EXPECT_EQ(MustLease("t", 1).chunk, 0);
}

TEST_F(JobsTest, ARunOfOtherInputsIsANewOneAndTheReasonIsSaid) {
  const auto changed = [](int number) {
    SubmitEvent event = Submission(2);
    event.key = absl::StrCat("key of ", number);
    event.runs[0].hash = absl::StrCat("hash of ", number);
    event.runs[0].folder = absl::StrCat("/out/a-", number);
    return event;
  };
  EXPECT_THAT(Submit(Submission(2)).notes, ::testing::IsEmpty());
  ASSERT_TRUE(OnStartRun(state_, {"run/j/a", 5, "h", 1}, now_, effects_).ok());
  ASSERT_TRUE(OnCommitCheckpoint(state_, "run/j/a", 1, 20, "step-20.1.ab", effects_).ok());

  SubmitEvent texts = changed(1);
  texts.capture.plan = Sha256Of("plan 2");
  EXPECT_THAT(Submit(texts).notes,
              ::testing::ElementsAre("run/j/a: its texts changed since it was last submitted; this "
                                     "is a new run in /out/a-1, and what the former one left "
                                     "stays"));
  EXPECT_EQ(state_.runs.at("run/j/a").checkpoint, "");
  EXPECT_TRUE(
      absl::IsAborted(OnCommitCheckpoint(state_, "run/j/a", 1, 40, "step-40.1.cd", effects_)))
      << "of the former run's process";

  SubmitEvent teacher = changed(2);
  teacher.capture.plan = Sha256Of("plan 2");
  teacher.capture.teacher = Sha256Of("teacher 2");
  EXPECT_THAT(Submit(teacher).notes,
              ::testing::ElementsAre(HasSubstr("its teacher changed since")));
  SubmitEvent words = teacher;
  words.key = "key of 3";
  words.recipe_text = "name: j\nsteps: 3\n";
  words.runs[0].hash = "hash of 3";
  EXPECT_THAT(Submit(words).notes, ::testing::ElementsAre(HasSubstr("its recipe changed since")));
  SubmitEvent version = words;
  version.key = "key of 4";
  version.runs[0].hash = "hash of 4";
  EXPECT_THAT(Submit(version).notes, ::testing::ElementsAre(HasSubstr("an earlier version")));
  version.key = "key of 5";
  EXPECT_THAT(Submit(version).notes, ::testing::IsEmpty());
}

TEST_F(JobsTest, AnAnswerToAnOldQuestionChangesNothing) {
  Submit(Submission(2));
  const std::vector<InventoryAsk> old = std::move(effects_.asks);
  effects_.asks.clear();
  SubmitEvent event = Submission(2);
  event.key = "key-2";
  Submit(event);
  OnInventory(state_, old.front(), {true, true}, now_, effects_);
  OnReconciled(state_, "job/j", old.front().generation, effects_);
  EXPECT_EQ(chunk(0).state, ChunkState::kPending);
  EXPECT_FALSE(job().reconciled);
}

TEST_F(JobsTest, ALaterRunPaysForWhatItAdded) {
  SubmitAndReconcile(1);
  Register("t", 1);
  Finish(MustLease("t", 1), "t", 1);
  EXPECT_EQ(state_.runs.at("run/j/a").teacher_rows_charged, 100);
  SubmitEvent event = Submission(1);
  event.key = "key-2";
  event.capture.sections.push_back("logits/sampled?draws=50");
  event.runs.push_back({"run/j/c", "c", "/out/c", "hash-c", 10});
  Submit(event);
  durable_.clear();
  AnswerCache();
  Finish(MustLease("t", 1), "t", 1);
  EXPECT_EQ(state_.runs.at("run/j/a").teacher_rows_charged, 100);
  EXPECT_EQ(state_.runs.at("run/j/c").teacher_rows_charged, 100);
  EXPECT_EQ(job().rows_computed, 200);
}

TEST_F(JobsTest, ALostChunkIsCapturedAgain) {
  SubmitAndReconcile(1);
  Register("t", 1);
  Finish(MustLease("t", 1), "t", 1);
  EXPECT_EQ(job().phase, JobPhase::kCaptured);
  durable_.clear();
  OnOpened(state_, now_, effects_);
  AnswerCache();
  EXPECT_EQ(job().phase, JobPhase::kCapturing);
  EXPECT_EQ(MustLease("t", 1).chunk, 0);
}

TEST_F(JobsTest, WhatIsFoundAfterARestartWasComputedForUsWhatIsFoundAtFirstWasNot) {
  durable_ = {0};
  SubmitAndReconcile(3);
  EXPECT_EQ(job().rows_computed, 0) << "it was there before";
  durable_ = {0, 1};
  OnOpened(state_, now_, effects_);
  AnswerCache();
  EXPECT_EQ(job().rows_computed, 100) << "nobody lived to report it";
  EXPECT_EQ(state_.runs.at("run/j/a").teacher_rows_charged, 100);
  ASSERT_TRUE(OnDone(state_, {{"t", 1}, {"job/j", 1, 77}, 100, 0}, now_, effects_).ok());
  EXPECT_EQ(job().rows_computed, 100) << "but if it did, it is not paid twice";
}

TEST_F(JobsTest, StudentsHearOfEveryState) {
  SubmitAndReconcile(4);
  Register("t", 1);
  Finish(MustLease("t", 1), "t", 1);
  for (uint64_t i = 1; i <= kChunkFailuresMax; ++i) {
    Register("t", i);
    const GrantRef grant = MustLease("t", i);
    EXPECT_EQ(grant.chunk, 1);
    Fail(grant, "t", i, /*chunk_at_fault=*/true);
  }
  ASSERT_TRUE(OnStartRun(state_, {"run/j/a", 5, "h", 1}, now_, effects_).ok());
  const WantEvent want{"run/j/a", 1, {{0, {}}, {1, {}}, {2, absl::Seconds(-3)}}};
  absl::StatusOr<WantAnswerRow> answer = OnWant(state_, want, now_, effects_);
  ASSERT_TRUE(answer.ok());
  EXPECT_THAT(answer->states, ::testing::ElementsAre(ChunkAnswer::kDurable, ChunkAnswer::kPoisoned,
                                                     ChunkAnswer::kPending));
  Pass(kLeaseLength + kNeedsTeacherAfter + absl::Seconds(1));
  answer = OnWant(state_, want, now_, effects_);
  EXPECT_EQ(answer->states[2], ChunkAnswer::kNeedsTeacher);
  EXPECT_TRUE(
      absl::IsInvalidArgument(OnWant(state_, {"run/j/a", 1, {{4, {}}}}, now_, effects_).status()));
  EXPECT_TRUE(absl::IsAborted(OnWant(state_, {"run/j/a", 0, {{0, {}}}}, now_, effects_).status()));
  ASSERT_TRUE(OnCancel(state_, "run/j/a", effects_).ok());
  EXPECT_TRUE(OnWant(state_, want, now_, effects_)->cancelled);
}

TEST_F(JobsTest, CheckpointsAreFencedByEpoch) {
  SubmitAndReconcile(1);
  ASSERT_TRUE(OnStartRun(state_, {"run/j/a", 5, "h", 1}, now_, effects_).ok());
  EXPECT_TRUE(OnCommitCheckpoint(state_, "run/j/a", 1, 20, "step-20.1.ab", effects_).ok());
  ASSERT_TRUE(OnStartRun(state_, {"run/j/a", 6, "h", 2}, now_, effects_).ok());
  EXPECT_TRUE(
      absl::IsAborted(OnCommitCheckpoint(state_, "run/j/a", 1, 40, "step-40.1.cd", effects_)));
  EXPECT_TRUE(OnCommitCheckpoint(state_, "run/j/a", 2, 40, "step-40.2.ef", effects_).ok());
  EXPECT_TRUE(OnCommitCheckpoint(state_, "run/j/a", 2, 40, "step-40.2.ef", effects_).ok());
  EXPECT_TRUE(
      absl::IsAborted(OnCommitCheckpoint(state_, "run/j/a", 2, 20, "step-20.1.ab", effects_)));
  EXPECT_TRUE(
      absl::IsInvalidArgument(OnCommitCheckpoint(state_, "run/j/a", 2, 60, "../escape", effects_)));
  EXPECT_EQ(state_.runs.at("run/j/a").checkpoint, "step-40.2.ef");
  // The next process found it damaged and went back to an older one.
  ASSERT_TRUE(OnStartRun(state_, {"run/j/a", 7, "h", 3}, now_, effects_).ok());
  EXPECT_TRUE(OnCommitCheckpoint(state_, "run/j/a", 3, 30, "step-30.3.aa", effects_).ok());
  EXPECT_EQ(state_.runs.at("run/j/a").checkpoint, "step-30.3.aa");
}

TEST_F(JobsTest, BadSubmissionsAreRefusedByName) {
  const auto refused = [&](auto change) {
    SubmitEvent event = Submission(2);
    change(event);
    return OnSubmit(state_, event, now_, effects_).status();
  };
  EXPECT_THAT(refused([](SubmitEvent& e) { e.chunks.clear(); }).message(),
              HasSubstr("1 to 1000000 chunks, not 0"));
  EXPECT_THAT(refused([](SubmitEvent& e) { e.name = "a/b"; }).message(), HasSubstr("holds a '/'"));
  EXPECT_THAT(refused([](SubmitEvent& e) { e.name = std::string("a\0b", 3); }).message(),
              HasSubstr("printable"));
  EXPECT_THAT(refused([](SubmitEvent& e) { e.key = ""; }).message(), HasSubstr("idempotency"));
  EXPECT_THAT(refused([](SubmitEvent& e) { e.runs[1].name = e.runs[0].name; }).message(),
              HasSubstr("stands twice"));
  EXPECT_TRUE(state_.jobs.empty());
  Submit(Submission(2));
  SubmitEvent other = Submission(2);
  other.name = "k";
  EXPECT_TRUE(absl::IsAlreadyExists(OnSubmit(state_, other, now_, effects_).status()));
}

TEST_F(JobsTest, CancelKnowsItsJobsAndRuns) {
  SubmitAndReconcile(2);
  EXPECT_TRUE(absl::IsNotFound(OnCancel(state_, "job/none", effects_)));
  EXPECT_TRUE(OnCancel(state_, "run/j/b", effects_).ok());
  EXPECT_EQ(state_.runs.at("run/j/b").phase, RunPhase::kCancelled);
  EXPECT_EQ(job().phase, JobPhase::kCapturing);
  EXPECT_TRUE(OnCancel(state_, "j", effects_).ok());
  EXPECT_TRUE(OnCancel(state_, "j", effects_).ok());
  EXPECT_EQ(state_.runs.at("run/j/a").phase, RunPhase::kCancelled);
}

TEST_F(JobsTest, PeopleSeeRateAndTimeLeft) {
  SubmitAndReconcile(10);
  Register("t", 1);
  for (int i = 0; i < 4; ++i) {
    const GrantRef grant = MustLease("t", 1);
    Pass(absl::Seconds(2));
    Finish(grant, "t", 1);
  }
  const absl::StatusOr<AdminView> view = ViewState(state_, "", now_);
  ASSERT_TRUE(view.ok());
  EXPECT_DOUBLE_EQ(view->jobs[0].rows_per_s, 50);
  EXPECT_DOUBLE_EQ(view->jobs[0].seconds_left, 12);
  EXPECT_DOUBLE_EQ(view->jobs[0].capture_seconds, 8);
  EXPECT_EQ(view->jobs[0].chunks_durable, 4);
  EXPECT_EQ(view->workers[0].rows_done, 400);
  const absl::StatusOr<AdminView> back = ParseAdminView(SerializeAdminView(*view));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(SerializeAdminView(*back), SerializeAdminView(*view));
  EXPECT_EQ(back->runs[1].name, "run/j/b");
  EXPECT_EQ(ViewState(state_, "run/j/b", now_)->runs.size(), 1);
  EXPECT_EQ(ViewState(state_, "b", now_)->runs[0].name, "run/j/b");
  EXPECT_TRUE(absl::IsNotFound(ViewState(state_, "k", now_).status()));
}

TEST_F(JobsTest, PeopleSeeWhatIsStoredOfAChunkThatIsNotYetWhole) {
  SubmitAndReconcile(2);
  Register("t", 1);
  const GrantRef grant = MustLease("t", 1);
  Beat("t", 1, {{grant, 30, 0}});
  EXPECT_EQ(ViewState(state_, "j", now_)->jobs[0].rows_durable, 30);
  Finish(grant, "t", 1);
  EXPECT_EQ(ViewState(state_, "j", now_)->jobs[0].rows_durable, 100);
}

TEST_F(JobsTest, PeopleSeeWhyAChunkIsGivenUpBeforeTheJobEnds) {
  SubmitAndReconcile(2);
  for (uint64_t incarnation = 1; incarnation <= kChunkFailuresMax; ++incarnation) {
    Register("t", incarnation);
    Fail(MustLease("t", incarnation), "t", incarnation, /*chunk_at_fault=*/true);
  }
  EXPECT_EQ(job().phase, JobPhase::kCapturing);
  EXPECT_EQ(job().problem, "1 chunk cannot be computed; chunk 0: nan");
}

}  // namespace
}  // namespace stillhouse
