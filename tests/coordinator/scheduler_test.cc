#include "coordinator/scheduler.h"

#include <gmock/gmock.h>

#include "tests/coordinator/state_fixture.h"

namespace stillhouse {
namespace {

using SchedulerTest = StateTest;

TEST_F(SchedulerTest, NothingIsLeasedBeforeTheCacheWasAsked) {
  Submit(Submission(2));
  Register("t", 1);
  LeaseAnswer answer = Lease("t", 1);
  EXPECT_FALSE(answer.grant.has_value());
  EXPECT_FALSE(answer.all_done);
  durable_ = {0, 1};
  AnswerCache();
  answer = Lease("t", 1);
  EXPECT_FALSE(answer.grant.has_value());
  EXPECT_TRUE(answer.all_done) << "everything was there already";
  EXPECT_EQ(job().phase, JobPhase::kCaptured);
  EXPECT_EQ(job().rows_computed, 0);
}

TEST_F(SchedulerTest, ChunkZeroGoesFirstAndAlone) {
  SubmitAndReconcile(3);
  Register("t", 1);
  Register("u", 1);
  const GrantRef first = MustLease("t", 1);
  EXPECT_EQ(first.chunk, 0);
  EXPECT_FALSE(Lease("u", 1).grant.has_value());
  Finish(first, "t", 1);
  EXPECT_EQ(MustLease("u", 1).chunk, 1);
  EXPECT_EQ(MustLease("t", 1).chunk, 2);
}

TEST_F(SchedulerTest, DemandedChunksGoFirstHeldOutOnesLast) {
  SubmitAndReconcile(3, 2);
  Register("t", 1);
  absl::StatusOr<StartRunAnswer> run = OnStartRun(state_, {"run/j/a", 5, "h", 1}, now_, effects_);
  ASSERT_TRUE(run.ok());
  WantEvent want{"run/j/a", 1, {{4, absl::Seconds(9)}, {2, absl::Seconds(3)}}};
  ASSERT_TRUE(OnWant(state_, want, now_, effects_).ok());
  std::vector<uint32_t> order;
  for (int i = 0; i < 5; ++i) {
    const GrantRef grant = MustLease("t", 1);
    order.push_back(grant.chunk);
    Finish(grant, "t", 1);
  }
  EXPECT_THAT(order, ::testing::ElementsAre(0, 2, 4, 1, 3));
}

TEST_F(SchedulerTest, AnotherTeacherOrDtypeGetsNothing) {
  SubmitAndReconcile(1);
  RegisterEvent other = Registration("t", 1);
  other.teacher = Sha256Of("another teacher");
  ASSERT_TRUE(OnRegister(state_, other, now_, effects_).ok());
  LeaseAnswer answer = Lease("t", 1);
  EXPECT_FALSE(answer.grant.has_value());
  EXPECT_FALSE(answer.all_done) << "its job may be submitted yet";
  RegisterEvent fp32 = Registration("u", 1);
  fp32.teacher_dtype = "fp32";
  ASSERT_TRUE(OnRegister(state_, fp32, now_, effects_).ok());
  EXPECT_FALSE(Lease("u", 1).grant.has_value());
}

TEST_F(SchedulerTest, ASlowChunkNearTheEndGetsASecondGrant) {
  SubmitAndReconcile(6);
  Register("t", 1);
  Register("u", 1);
  for (int i = 0; i < 5; ++i) {
    const GrantRef grant = MustLease("t", 1);
    Pass(absl::Seconds(4));
    Beat("u", 1);
    Finish(grant, "t", 1);
  }
  const GrantRef slow = MustLease("t", 1);
  Pass(absl::Seconds(6));
  Beat("t", 1, {{slow, 50}});
  EXPECT_FALSE(Lease("u", 1).grant.has_value()) << "not yet twice the median";
  Pass(absl::Seconds(4));
  Beat("t", 1, {{slow, 60}});
  const GrantRef second = MustLease("u", 1);
  EXPECT_EQ(second.chunk, slow.chunk);
  EXPECT_NE(second.epoch, slow.epoch);
  Finish(second, "u", 1);
  EXPECT_EQ(chunk(slow.chunk).state, ChunkState::kDurable);
  EXPECT_THAT(Beat("t", 1, {{slow, 70}}).cancelled, ::testing::ElementsAre(slow));
}

TEST_F(SchedulerTest, AChunkThatFailedHereIsLeftToAFreshProcess) {
  SubmitAndReconcile(2);
  Register("t", 1);
  Finish(MustLease("t", 1), "t", 1);
  Fail(MustLease("t", 1), "t", 1, /*chunk_at_fault=*/true);
  LeaseAnswer answer = Lease("t", 1);
  EXPECT_FALSE(answer.grant.has_value());
  EXPECT_THAT(answer.leave, ::testing::HasSubstr("job/j chunk 1 failed in this process"));
  Register("u", 1);
  EXPECT_EQ(Lease("t", 1).leave, "") << "another one can try";
  EXPECT_EQ(MustLease("u", 1).chunk, 1);
}

TEST_F(SchedulerTest, JobsShareByRowsGranted) {
  SubmitAndReconcile(4);
  SubmitEvent second = Submission(4);
  second.name = "k";
  second.runs.clear();
  Submit(second);
  AnswerCache();
  Register("t", 1);
  std::string order;
  for (int i = 0; i < 6; ++i) {
    const GrantRef grant = MustLease("t", 1);
    order += grant.job.back();
    durable_.insert(grant.chunk);
    Finish(grant, "t", 1);
  }
  EXPECT_EQ(order, "jkjkjk");
}

}  // namespace
}  // namespace stillhouse
