// The transitions are numbered in coordinator/chunk_table.h.
#include "coordinator/chunk_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/utf8.h"
#include "coordinator/limits.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

ChunkTable ThreeChunks() { return ChunkTable({{10, false}, {20, false}, {30, true}}); }

WorkerRef Process(uint64_t incarnation) { return {"teacher-0", incarnation}; }

std::vector<uint32_t> PendingOrder(const ChunkTable& chunks) {
  std::vector<uint32_t> order;
  for (const auto& key : chunks.pending()) order.push_back(key.index);
  return order;
}

void Poison(ChunkTable& chunks, uint32_t index) {
  for (uint64_t i = 1; i <= kChunkFailuresMax; ++i) {
    chunks.AddFailure(index, {Process(i), "logits are not finite"});
  }
}

TEST(ChunkTest, T1_GrantLeases) {
  ChunkTable chunks = ThreeChunks();
  chunks.Grant(1, 7);
  EXPECT_EQ(chunks.at(1).state, ChunkState::kLeased);
  EXPECT_THAT(chunks.at(1).grants, ElementsAre(7));
  EXPECT_THAT(PendingOrder(chunks), ElementsAre(0, 2));
  EXPECT_THAT(chunks.leased(), ElementsAre(1));
}

TEST(ChunkTest, T2_SecondGrantKeepsTheFirst) {
  ChunkTable chunks = ThreeChunks();
  chunks.Grant(1, 7);
  chunks.Grant(1, 8);
  EXPECT_EQ(chunks.at(1).state, ChunkState::kLeased);
  EXPECT_THAT(chunks.at(1).grants, ElementsAre(7, 8));
  EXPECT_DEATH(chunks.Grant(1, 9), "too many grants");
}

TEST(ChunkTest, T3_DoneOfALeasedChunkIsAHint) {
  ChunkTable chunks = ThreeChunks();
  chunks.Grant(1, 7);
  chunks.Grant(1, 8);
  EXPECT_TRUE(chunks.ReportDone(1, 7, Process(1)));
  EXPECT_EQ(chunks.at(1).state, ChunkState::kConfirming);
  EXPECT_THAT(chunks.at(1).grants, ElementsAre(8)) << "the other may still finish it";
  EXPECT_EQ(chunks.rows_durable(), 0);
}

TEST(ChunkTest, T4_ConfirmedIsDurableAndOtherGrantsAreMoot) {
  ChunkTable chunks = ThreeChunks();
  chunks.Grant(1, 7);
  chunks.Grant(1, 8);
  chunks.ReportDone(1, 7, Process(1));
  EXPECT_THAT(chunks.ConfirmPresent(1), ElementsAre(8));
  EXPECT_EQ(chunks.at(1).state, ChunkState::kDurable);
  EXPECT_EQ(chunks.rows_durable(), 20);
  EXPECT_FALSE(chunks.ReportDone(1, 8, Process(2))) << "nothing to ask";
}

TEST(ChunkTest, T5_NotInTheCacheGoesBackToItsGrantsOrToPending) {
  ChunkTable chunks = ThreeChunks();
  chunks.Grant(1, 7);
  chunks.Grant(1, 8);
  chunks.ReportDone(1, 7, Process(1));
  chunks.ConfirmAbsent(1);
  EXPECT_EQ(chunks.at(1).state, ChunkState::kLeased);
  chunks.ReportDone(1, 8, Process(2));
  chunks.ConfirmAbsent(1);
  EXPECT_EQ(chunks.at(1).state, ChunkState::kPending);
}

TEST(ChunkTest, T6_LastGrantEndedReturnsTheChunk) {
  ChunkTable chunks = ThreeChunks();
  chunks.Grant(1, 7);
  chunks.Grant(1, 8);
  chunks.EndGrant(1, 7);
  EXPECT_EQ(chunks.at(1).state, ChunkState::kLeased);
  chunks.EndGrant(1, 8);
  EXPECT_EQ(chunks.at(1).state, ChunkState::kPending);
  EXPECT_THAT(PendingOrder(chunks), ElementsAre(0, 1, 2));
}

TEST(ChunkTest, T7_LateDoneIsNotThrownAway) {
  ChunkTable chunks = ThreeChunks();
  chunks.Grant(1, 7);
  chunks.EndGrant(1, 7);
  EXPECT_TRUE(chunks.ReportDone(1, 7, Process(1)));
  EXPECT_EQ(chunks.at(1).state, ChunkState::kConfirming);
  chunks.ConfirmPresent(1);
  EXPECT_EQ(chunks.at(1).state, ChunkState::kDurable);
}

TEST(ChunkTest, T8_ThirdFailureInAThirdIncarnationPoisons) {
  ChunkTable chunks = ThreeChunks();
  chunks.AddFailure(1, {Process(1), "nan"});
  chunks.AddFailure(1, {Process(1), "nan"});
  chunks.AddFailure(1, {Process(1), "nan"});
  EXPECT_EQ(chunks.at(1).state, ChunkState::kPending) << "one process counts once";
  EXPECT_TRUE(chunks.FailedIn(1, Process(1)));
  EXPECT_FALSE(chunks.FailedIn(1, Process(2)));
  chunks.AddFailure(1, {Process(2), "nan"});
  chunks.Grant(1, 9);
  EXPECT_THAT(chunks.AddFailure(1, {Process(3), "nan"}), ElementsAre(9));
  EXPECT_EQ(chunks.at(1).state, ChunkState::kPoisoned);
  EXPECT_THAT(PendingOrder(chunks), ElementsAre(0, 2));
  EXPECT_FALSE(chunks.AllSettled());
}

TEST(ChunkTest, T9_ReconcilingFindsWhatIsThere) {
  ChunkTable chunks = ThreeChunks();
  for (uint32_t i = 0; i < 3; ++i) EXPECT_THAT(chunks.ConfirmPresent(i), IsEmpty());
  EXPECT_TRUE(chunks.AllSettled());
  EXPECT_EQ(chunks.rows_durable(), 60);
}

TEST(ChunkTest, T10_WhatTheCacheLostIsPendingAgain) {
  ChunkTable chunks = ThreeChunks();
  chunks.ConfirmPresent(1);
  chunks.ConfirmAbsent(1);
  EXPECT_EQ(chunks.at(1).state, ChunkState::kPending);
  EXPECT_EQ(chunks.rows_durable(), 0);
  chunks.Grant(1, 3);
  chunks.ConfirmAbsent(1);
  EXPECT_EQ(chunks.at(1).state, ChunkState::kLeased) << "absent is no news of a leased chunk";
}

TEST(ChunkTest, T11_LateDoneSavesAPoisonedChunk) {
  ChunkTable chunks = ThreeChunks();
  Poison(chunks, 1);
  ASSERT_EQ(chunks.at(1).state, ChunkState::kPoisoned);
  EXPECT_TRUE(chunks.ReportDone(1, 4, Process(9)));
  EXPECT_EQ(chunks.at(1).state, ChunkState::kConfirming);
  chunks.ConfirmPresent(1);
  EXPECT_EQ(chunks.at(1).state, ChunkState::kDurable);
  EXPECT_THAT(chunks.at(1).failures, IsEmpty());
}

TEST(ChunkTest, T12_SubmittedAgainForgivesPoisonedOnes) {
  ChunkTable chunks = ThreeChunks();
  Poison(chunks, 1);
  EXPECT_THAT(chunks.ForgivePoisoned(), ElementsAre(1));
  EXPECT_EQ(chunks.at(1).state, ChunkState::kPending);
  EXPECT_FALSE(chunks.FailedIn(1, Process(1)));
  EXPECT_THAT(chunks.ForgivePoisoned(), IsEmpty());
}

TEST(ChunkTest, OrderIsDemandThenTrainingThenHeldOut) {
  ChunkTable chunks({{1, true}, {1, false}, {1, false}, {1, false}, {1, true}});
  EXPECT_THAT(PendingOrder(chunks), ElementsAre(1, 2, 3, 0, 4));
  chunks.Want(4, "run/a", absl::Seconds(50));
  chunks.Want(3, "run/a", absl::Seconds(20));
  EXPECT_THAT(PendingOrder(chunks), ElementsAre(3, 4, 1, 2, 0));
  chunks.Want(4, "run/b", absl::Seconds(10));  // the earlier of two runs counts
  EXPECT_THAT(PendingOrder(chunks), ElementsAre(4, 3, 1, 2, 0));
  chunks.Want(4, "run/b", absl::Seconds(90));  // and each may change its mind
  EXPECT_THAT(PendingOrder(chunks), ElementsAre(3, 4, 1, 2, 0));
  chunks.Grant(3, 1);
  chunks.Want(3, "run/a", absl::Seconds(1));
  chunks.EndGrant(3, 1);
  EXPECT_THAT(PendingOrder(chunks), ElementsAre(3, 4, 1, 2, 0));
}

TEST(ChunkTest, ChargesGrowPerGrant) {
  ChunkTable chunks = ThreeChunks();
  EXPECT_EQ(chunks.Charge(1, 7, 5), 5);
  EXPECT_EQ(chunks.Charge(1, 7, 20), 15) << "the same grant pays the difference";
  EXPECT_EQ(chunks.Charge(1, 7, 20), 0) << "a repeated report pays nothing";
  EXPECT_EQ(chunks.Charge(1, 8, 20), 20) << "computed again is paid again";
}

TEST(ChunkTest, ARowNobodyReportedIsChargedOnceAlsoWhenTheReportComes) {
  ChunkTable chunks = ThreeChunks();
  EXPECT_EQ(chunks.Charge(1, kUnknownGrant, 20), 20);
  EXPECT_EQ(chunks.Charge(1, 7, 20), 0) << "so it was grant 7";
  EXPECT_EQ(chunks.Charge(1, 8, 20), 20) << "computed again";
}

TEST(ChunkTest, LongReasonsAreCutBetweenCharacters) {
  std::string reason = "x";
  while (reason.size() <= kReasonBytesMax) reason += "\xc3\xa9";
  ChunkTable chunks = ThreeChunks();
  chunks.AddFailure(0, {Process(1), reason});
  chunks.AddLoss(0, {Process(1), reason}, /*solo=*/true);
  EXPECT_EQ(chunks.at(0).failures[0].reason, reason.substr(0, kReasonBytesMax - 1));
  EXPECT_EQ(chunks.at(0).solo_losses[0].reason, reason.substr(0, kReasonBytesMax - 1));
  chunks.AddFailure(1, {Process(1), "caf\xe9"});
  EXPECT_EQ(chunks.at(1).failures[0].reason, "caf\xef\xbf\xbd");
}

}  // namespace
}  // namespace stillhouse
