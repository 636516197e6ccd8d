#include <gmock/gmock.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status.h"

#include "tests/coordinator/state_fixture.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

using WorkersTest = StateTest;

TEST_F(WorkersTest, ASilentWorkerIsLostAndItsChunkRetriedAloneElsewhere) {
  SubmitAndReconcile(2);
  Register("t", 1);
  Register("u", 1);
  Finish(MustLease("t", 1), "t", 1);
  const GrantRef lost = MustLease("t", 1);
  for (int i = 0; i < 3; ++i) {
    Pass(absl::Seconds(5));
    Beat("u", 1);
  }
  EXPECT_EQ(chunk(1).state, ChunkState::kPending);
  EXPECT_TRUE(chunk(1).solo);
  EXPECT_THAT(chunk(1).failures, IsEmpty()) << "a first loss says nothing about the chunk";
  EXPECT_TRUE(Beat("t", 1, {{lost, 40}}).unknown_worker);
  EXPECT_EQ(MustLease("u", 1).chunk, 1);
}

TEST_F(WorkersTest, HeartbeatsKeepALeaseAndAGapOfOursCostsNobodyAnything) {
  SubmitAndReconcile(1);
  Register("t", 1);
  const GrantRef grant = MustLease("t", 1);
  for (int i = 0; i < 8; ++i) {
    Pass(absl::Seconds(5));
    EXPECT_THAT(Beat("t", 1, {{grant, static_cast<uint64_t>(i + 1)}}).cancelled, IsEmpty());
  }
  now_ += absl::Minutes(10);  // suspended, say
  ObserveTime(state_, now_);
  OnTick(state_, now_, effects_);
  EXPECT_EQ(chunk(0).state, ChunkState::kLeased);
  Pass(absl::Seconds(16));
  EXPECT_EQ(chunk(0).state, ChunkState::kPending);
}

TEST_F(WorkersTest, ARenewalWithoutProgressIsRefused) {
  SubmitAndReconcile(1);
  Register("t", 1);
  const GrantRef grant = MustLease("t", 1);
  for (int i = 0; i < 12; ++i) {
    Pass(absl::Seconds(5));
    EXPECT_THAT(Beat("t", 1, {{grant, 10}}).cancelled, IsEmpty()) << i;
  }
  Pass(absl::Seconds(5));
  EXPECT_THAT(Beat("t", 1, {{grant, 10}}).cancelled, IsEmpty()) << "60 s since 10 rows were new";
  Pass(absl::Seconds(5));
  EXPECT_THAT(Beat("t", 1, {{grant, 10}}).cancelled, ElementsAre(grant));
  EXPECT_EQ(chunk(0).state, ChunkState::kPending);
}

TEST_F(WorkersTest, WhereChunksAreSlowMoreTimeWithoutProgressIsAllowed) {
  SubmitAndReconcile(4);
  Register("t", 1);
  for (int c = 0; c < 3; ++c) {
    const GrantRef grant = MustLease("t", 1);
    for (uint64_t rows = 1; rows <= 20; ++rows) {
      Pass(absl::Seconds(5));
      Beat("t", 1, {{grant, rows}});
    }
    Finish(grant, "t", 1);
  }
  const GrantRef grant = MustLease("t", 1);
  const absl::Duration started = now_;
  while (Beat("t", 1, {{grant, 10}}).cancelled.empty()) Pass(absl::Seconds(5));
  EXPECT_GE(now_ - started, kStallMedians * absl::Seconds(100));
  EXPECT_LE(now_ - started, kStallMedians * absl::Seconds(100) + absl::Seconds(10));
}

TEST_F(WorkersTest, AChunkThatKillsEachWorkerThatTouchesItIsPoisoned) {
  SubmitAndReconcile(2);
  for (uint64_t incarnation = 1; incarnation <= 4; ++incarnation) {
    Register("t", incarnation);  // the process before is thereby known to be dead
    EXPECT_EQ(chunk(0).solo_losses.size(), incarnation < 3 ? 0 : incarnation - 2);
    EXPECT_EQ(chunk(0).state, ChunkState::kPending);
    EXPECT_EQ(MustLease("t", incarnation).chunk, 0);
  }
  Register("t", 5);
  EXPECT_EQ(chunk(0).state, ChunkState::kPoisoned);
  EXPECT_EQ(chunk(0).failures.size(), kChunkFailuresMax);
  Finish(MustLease("t", 5), "t", 5);
  EXPECT_EQ(job().phase, JobPhase::kFailed);
  EXPECT_THAT(job().problem,
              HasSubstr("chunk 0: 3 workers were lost while they computed it alone"));
}

TEST_F(WorkersTest, ADeadlyChunkIsFoundAmongHealthyOnes) {
  SubmitAndReconcile(60);
  uint64_t incarnation = 1;
  Register("t", incarnation);
  for (uint32_t c = 0; c < 60; ++c) {
    for (GrantRef grant = MustLease("t", incarnation);; grant = MustLease("t", incarnation)) {
      if (grant.chunk != 20) {
        Finish(grant, "t", incarnation);
        break;
      }
      Register("t", ++incarnation);
      if (chunk(20).state == ChunkState::kPoisoned) break;
      ASSERT_LT(incarnation, 10);
    }
  }
  EXPECT_EQ(incarnation, 5) << "four workers are all that it cost";
  EXPECT_EQ(job().chunks.CountIn(ChunkState::kDurable), 59);
}

// Eight workers, each killed when it has computed one chunk more or two: every chunk that is under
// way then is lost, and one worker goes to the same chunk again and again.
TEST_F(WorkersTest, PreemptionOfWorkersIsNotTheChunksFault) {
  constexpr int kWorkers = 8;
  constexpr int kChunks = 400;
  SubmitAndReconcile(kChunks);
  uint64_t incarnation = 1;
  Register("w0", incarnation);
  Finish(MustLease("w0", incarnation), "w0", incarnation);
  size_t most_losses = 0;
  for (int round = 0; job().phase == JobPhase::kCapturing && round < 2000; ++round) {
    // A wave takes them all, whatever they hold.
    ++incarnation;
    for (int w = 0; w < kWorkers; ++w) Register(absl::StrCat("w", w), incarnation);
    for (int w = 0; w < kWorkers; ++w) {
      const std::string name = absl::StrCat("w", w);
      const LeaseAnswer leased = Lease(name, incarnation);
      // The first chunk that is pending is the unlucky one: it is not finished for ten waves.
      if (!leased.grant.has_value()) continue;
      if (leased.grant->chunk == 1 && round < 10) continue;
      if (w % 2 == 0) Finish(*leased.grant, name, incarnation);
    }
    most_losses = std::max<size_t>(most_losses, chunk(1).losses);
    ASSERT_EQ(job().chunks.CountIn(ChunkState::kPoisoned), 0) << "after wave " << round;
  }
  EXPECT_EQ(job().phase, JobPhase::kCaptured);
  EXPECT_GE(most_losses, 6u) << "the test is not hard enough";
}

TEST_F(WorkersTest, ThereIsAnEndToLossesHoweverUsual) {
  SubmitAndReconcile(1);
  uint64_t incarnation = 1;
  while (chunk(0).state != ChunkState::kPoisoned) {
    ASSERT_LE(incarnation, kSoloLossesMax + 2);
    job().workers_lost = 1'000'000;  // elsewhere
    Register("t", ++incarnation);
    if (chunk(0).state == ChunkState::kPending) MustLease("t", incarnation);
  }
  EXPECT_EQ(incarnation, kSoloLossesMax + 3);
}

TEST_F(WorkersTest, AHangAloneIsTheChunksFault) {
  SubmitAndReconcile(1);
  for (uint64_t incarnation = 1; incarnation <= 4; ++incarnation) {
    Register("t", incarnation);
    const GrantRef grant = MustLease("t", incarnation);
    while (Beat("t", incarnation, {{grant, 10}}).cancelled.empty()) Pass(absl::Seconds(5));
    EXPECT_EQ(chunk(0).failures.size(), incarnation - 1);
    Beat("t", incarnation, {}, "left");
  }
  EXPECT_EQ(chunk(0).state, ChunkState::kPoisoned);
}

TEST_F(WorkersTest, AWorkerThatFailsChunkAfterChunkIsAskedToLeave) {
  SubmitAndReconcile(5);
  Register("t", 1);
  Register("u", 1);
  Finish(MustLease("u", 1), "u", 1);
  for (int i = 0; i < kWorkerFailuresMax; ++i) {
    Fail(MustLease("t", 1), "t", 1, /*chunk_at_fault=*/false);
    Beat("u", 1);
  }
  EXPECT_THAT(Lease("t", 1).leave, HasSubstr("failed one after another in t"));
  EXPECT_EQ(effects_.rows.count({RowRef::Kind::kQuarantine, "t"}), 1);
  Register("t", 2);
  EXPECT_TRUE(Lease("t", 2).grant.has_value()) << "a fresh process has a clean record";
}

TEST_F(WorkersTest, FailuresOfGrantsThatTheSenderNeverHeldAreIgnoredAndCounted) {
  SubmitAndReconcile(2);
  Register("t", 1);
  Register("u", 1);
  const GrantRef grant = MustLease("t", 1);
  Fail({"job/j", 0, 0}, "nobody", 1, /*chunk_at_fault=*/true);
  Fail({"job/j", 1, grant.epoch + 1}, "nobody", 2, true);
  Fail(grant, "nobody", 3, true);                     // another's
  Fail(grant, "u", 1, true);                          // another's, from one that is known
  Fail(grant, "t", 2, true);                          // of a process that never was
  Fail({"job/j", 1, grant.epoch}, "t", 1, true);      // for another chunk
  Fail({"job/j", 0, grant.epoch + 1}, "t", 1, true);  // for a grant to come
  EXPECT_EQ(state_.failures_disbelieved, 7);
  EXPECT_THAT(effects_.warnings, SizeIs(3)) << "the 1st, the 2nd and the 4th";
  EXPECT_THAT(chunk(0).failures, IsEmpty());
  EXPECT_THAT(chunk(1).failures, IsEmpty());
  EXPECT_EQ(chunk(0).state, ChunkState::kLeased);
  EXPECT_EQ(state_.workers.at("t").failures_in_a_row, 0);
  Fail(grant, "t", 1, true);
  EXPECT_THAT(chunk(0).failures, SizeIs(1)) << "its holder is believed";
}

TEST_F(WorkersTest, ALateFailureCountsAlsoWhenTheLeaseRanOutOrTheProcessWasReplaced) {
  SubmitAndReconcile(1);
  Register("t", 1);
  const GrantRef expired = MustLease("t", 1);
  Pass(kLeaseLength + absl::Seconds(1));
  ASSERT_EQ(chunk(0).state, ChunkState::kPending);
  Fail(expired, "t", 1, /*chunk_at_fault=*/true);
  EXPECT_THAT(chunk(0).failures, SizeIs(1));
  Register("t", 2);
  const GrantRef replaced = MustLease("t", 2);
  Register("t", 3);
  Fail(replaced, "t", 2, true);
  EXPECT_THAT(chunk(0).failures, SizeIs(2));
  Fail(replaced, "t", 2, true);
  EXPECT_THAT(chunk(0).failures, SizeIs(2)) << "a repeated report";
  EXPECT_EQ(state_.failures_disbelieved, 0);
}

TEST_F(WorkersTest, ALateFailureOfAnOldPlanSaysNothingAboutTheNewOne) {
  SubmitAndReconcile(2);
  Register("t", 1);
  const GrantRef old = MustLease("t", 1);
  SubmitEvent other = Submission(3);
  other.key = "key-2";
  other.capture.plan = Sha256Of("plan 2");
  Submit(other);
  AnswerCache();
  Fail(old, "t", 1, /*chunk_at_fault=*/true);
  EXPECT_THAT(chunk(0).failures, IsEmpty());
  EXPECT_EQ(state_.failures_disbelieved, 1);
}

TEST_F(WorkersTest, SuccessClearsTheRecord) {
  SubmitAndReconcile(8);
  Register("t", 1);
  for (int i = 0; i < 2 * kWorkerFailuresMax; ++i) {
    if (i % 2 == 0) {
      Finish(MustLease("t", 1), "t", 1);
    } else {
      Fail(MustLease("t", 1), "t", 1, /*chunk_at_fault=*/false);
    }
  }
  EXPECT_EQ(Lease("t", 1).leave, "");
}

TEST_F(WorkersTest, ADoneThatTheCacheDoesNotConfirmCountsAgainstTheWorker) {
  SubmitAndReconcile(1);
  Register("t", 1);
  for (int i = 0; i < kWorkerFailuresMax; ++i) {
    const GrantRef grant = MustLease("t", 1);
    ASSERT_TRUE(OnDone(state_, {{"t", 1}, grant, 100, 0}, now_, effects_).ok());
    EXPECT_EQ(chunk(0).state, ChunkState::kConfirming);
    AnswerCache();
    EXPECT_EQ(chunk(0).state, ChunkState::kPending);
  }
  EXPECT_THAT(Lease("t", 1).leave, HasSubstr("not in the cache"));
}

TEST_F(WorkersTest, ADelayedLeaseRequestGrantsNothing) {
  SubmitAndReconcile(3);
  Register("t", 1);
  const LeaseEvent old{{"t", 1}, ++sequence_};
  Finish(MustLease("t", 1), "t", 1);
  EXPECT_FALSE(OnLease(state_, old, now_, effects_).grant.has_value());
  EXPECT_EQ(state_.leases.size(), 0);
}

TEST_F(WorkersTest, AskedAgainTheSameGrantIsAnsweredAgain) {
  SubmitAndReconcile(3);
  Register("t", 1);
  const GrantRef grant = MustLease("t", 1);
  EXPECT_EQ(MustLease("t", 1), grant);
  EXPECT_EQ(state_.leases.size(), 1);
}

TEST_F(WorkersTest, ALaterProcessOfTheSameNameReplacesTheEarlierForGood) {
  SubmitAndReconcile(1);
  Register("t", 1);
  MustLease("t", 1);
  Register("t", 2);
  EXPECT_EQ(chunk(0).state, ChunkState::kPending);
  EXPECT_TRUE(Beat("t", 1).unknown_worker);
  EXPECT_TRUE(absl::IsAborted(OnRegister(state_, Registration("t", 1), now_, effects_).status()));
  EXPECT_EQ(MustLease("t", 2).chunk, 0);
}

TEST_F(WorkersTest, ALeavingWorkerGivesBackWithoutBlame) {
  SubmitAndReconcile(1);
  Register("t", 1);
  const GrantRef grant = MustLease("t", 1);
  ASSERT_TRUE(OnFailed(state_, {{"t", 1}, grant, "draining", false, true}, now_, effects_).ok());
  EXPECT_EQ(chunk(0).state, ChunkState::kPending);
  EXPECT_FALSE(chunk(0).solo);
  EXPECT_EQ(state_.workers.at("t").failures_in_a_row, 0);
  Beat("t", 1, {}, "left");
  EXPECT_EQ(state_.workers.at("t").life, WorkerLife::kLeft);
}

TEST_F(WorkersTest, AfterARestartGrantsArePresentedAgainAndEpochsGoOn) {
  SubmitAndReconcile(3);
  Register("t", 1);
  Finish(MustLease("t", 1), "t", 1);
  const GrantRef held = MustLease("t", 1);
  // A coordinator that knows only what was journaled.
  State restarted;
  restarted.incarnation = state_.incarnation + 1;
  restarted.jobs["job/j"].name = "job/j";
  restarted.jobs["job/j"].capture = job().capture;
  restarted.jobs["job/j"].chunks = ChunkTable(job().chunks.specs());
  state_ = std::move(restarted);
  OnOpened(state_, now_, effects_);
  EXPECT_TRUE(Beat("t", 1, {{held, 10}}).unknown_worker);
  EXPECT_THAT(Register("t", 1, {held}), ElementsAre(held));
  AnswerCache();
  EXPECT_EQ(chunk(0).state, ChunkState::kDurable) << "found in the cache";
  EXPECT_EQ(chunk(1).state, ChunkState::kLeased);
  Register("u", 1);
  const GrantRef next = MustLease("u", 1);
  EXPECT_EQ(next.chunk, 2);
  EXPECT_GT(next.epoch, held.epoch);
  Finish(held, "t", 1);
  EXPECT_EQ(chunk(1).state, ChunkState::kDurable);
}

TEST_F(WorkersTest, GrantsOfASettledChunkOrAFutureCoordinatorAreNotKept) {
  SubmitAndReconcile(2);
  durable_ = {0};
  Register("t", 1);
  Finish(MustLease("t", 1), "t", 1);
  EXPECT_THAT(Register("t", 1, {{"job/j", 0, 1}}), IsEmpty());
  EXPECT_THAT(Register("t", 1, {{"job/j", 1, uint64_t{99} << 32}}), IsEmpty());
  EXPECT_THAT(Register("t", 1, {{"job/j", 7, 1}}), IsEmpty());
  EXPECT_THAT(Register("t", 1, {{"job/none", 0, 1}}), IsEmpty());
}

TEST_F(WorkersTest, AGrantThatIsStillToComeIsNotKept) {
  SubmitAndReconcile(5);
  Register("t", 1);
  const GrantRef first = MustLease("t", 1);
  Finish(first, "t", 1);
  std::vector<GrantRef> coming;
  for (uint64_t i = 1; i <= 3; ++i) coming.push_back({"job/j", 1, first.epoch + i});
  EXPECT_THAT(Register("t", 1, coming), IsEmpty());
  Register("u", 1);
  for (uint64_t i = 1; i <= 3; ++i) {  // each was "used twice", and the coordinator gone
    const GrantRef grant = MustLease("u", 1);
    EXPECT_EQ(grant.epoch, first.epoch + i);
    Finish(grant, "u", 1);
  }
}

TEST_F(WorkersTest, RowsAreChargedToTheFirstRunOnceEvenIfReportedTwice) {
  SubmitAndReconcile(2);
  Register("t", 1);
  const GrantRef grant = MustLease("t", 1);
  Finish(grant, "t", 1);
  ASSERT_TRUE(OnDone(state_, {{"t", 1}, grant, 100, 0}, now_, effects_).ok());
  EXPECT_EQ(state_.runs.at("run/j/a").teacher_rows_charged, 100);
  EXPECT_EQ(state_.runs.at("run/j/b").teacher_rows_charged, 0);
  EXPECT_EQ(job().rows_computed, 100);
  // Rows that a lost worker stored were computed, and are paid.
  const GrantRef lost = MustLease("t", 1);
  Beat("t", 1, {{lost, 30}});
  Register("t", 2);
  Finish(MustLease("t", 2), "t", 2);
  EXPECT_EQ(state_.runs.at("run/j/a").teacher_rows_charged, 230);
}

TEST_F(WorkersTest, OtherValuesForAStoredKeyAreCounted) {
  SubmitAndReconcile(1);
  Register("t", 1);
  const GrantRef grant = MustLease("t", 1);
  ASSERT_TRUE(OnDone(state_, {{"t", 1}, grant, 100, 3}, now_, effects_).ok());
  ASSERT_TRUE(OnDone(state_, {{"t", 1}, grant, 100, 3}, now_, effects_).ok());
  EXPECT_EQ(job().parts_mismatched, 3);
}

TEST_F(WorkersTest, BadRegistrationsAreRefused) {
  EXPECT_TRUE(
      absl::IsInvalidArgument(OnRegister(state_, Registration("", 1), now_, effects_).status()));
  RegisterEvent greedy = Registration("t", 1);
  greedy.held.resize(kHeldMax + 1);
  EXPECT_TRUE(absl::IsInvalidArgument(OnRegister(state_, greedy, now_, effects_).status()));
  EXPECT_TRUE(absl::IsNotFound(OnDone(state_, {{"t", 1}, {"job/x", 0, 1}}, now_, effects_)));
}

}  // namespace
}  // namespace stillhouse
