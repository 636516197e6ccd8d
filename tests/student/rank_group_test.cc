#include "student/rank_group.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "student/run_stop.h"
#include "tests/student/on_ranks.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(RankGroupTest, AnErrorOfOneIsTheErrorOfAllWithItsReason) {
  OnRanks(3, [](Communicator& communicator) {
    RankGroup group(&communicator);
    EXPECT_TRUE(group.Agree(absl::OkStatus()).ok());
    const bool mine = group.rank() == 2;
    const absl::Status agreed = group.Agree(
        mine ? StopStatus(RunStop::kPoisoned, "chunk 7: two\nlines") : absl::OkStatus());
    EXPECT_EQ(StopOf(agreed), RunStop::kPoisoned);
    EXPECT_EQ(agreed.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(agreed.message()), HasSubstr("chunk 7: two\nlines"));
    EXPECT_TRUE(group.HasAgreedOn(agreed));
    EXPECT_FALSE(group.HasAgreedOn(absl::InternalError("of my own")));
    // The lowest rank's, of several.
    const absl::Status several =
        group.Agree(absl::InternalError(std::string(1, 'a' + group.rank())));
    EXPECT_EQ(several.message(), "a");
    EXPECT_TRUE(absl::IsInternal(several));
    EXPECT_TRUE(group.Agree(absl::OkStatus()).ok());
  });
}

TEST(RankGroupTest, TheLeadersWordsReachAll) {
  OnRanks(3, [](Communicator& communicator) {
    RankGroup group(&communicator);
    const absl::StatusOr<std::string> mine =
        group.leads() ? absl::StatusOr<std::string>("name") : absl::InternalError("not asked");
    const auto name = group.FromLeader(mine);
    ASSERT_TRUE(name.ok()) << name.status();
    EXPECT_EQ(*name, "name");
    const absl::Status refused =
        group.FromLeader(group.leads() ? absl::NotFoundError("gone") : absl::OkStatus());
    EXPECT_TRUE(absl::IsNotFound(refused));
    const auto all = group.Exchange(std::string(1, 'a' + group.rank()));
    ASSERT_TRUE(all.ok());
    EXPECT_THAT(*all, ElementsAre("a", "b", "c"));
  });
}

TEST(RankGroupTest, AllAreReadyOnlyWhenEachIs) {
  OnRanks(2, [](Communicator& communicator) {
    RankGroup group(&communicator);
    EXPECT_EQ(*group.AllReady(group.leads()), false);
    EXPECT_EQ(*group.AllReady(true), true);
    const auto stopped = group.AllReady(group.leads() ? absl::StatusOr<bool>(true)
                                                      : StopStatus(RunStop::kTerminated, "asked"));
    EXPECT_EQ(StopOf(stopped.status()), RunStop::kTerminated);
  });
}

TEST(RankGroupTest, ARankThatLeavesAloneIsLostToTheOthers) {
  OnRanks(2, [](Communicator& communicator) {
    RankGroup group(&communicator);
    if (!group.leads()) return group.GiveUp();
    const absl::Status lost = group.Agree(absl::OkStatus());
    EXPECT_EQ(StopOf(lost), RunStop::kRankLost) << lost;
    EXPECT_TRUE(group.lost());
    EXPECT_FALSE(group.HasAgreedOn(lost));
  });
}

TEST(RankGroupTest, AloneEverythingIsAgreed) {
  RankGroup group(nullptr);
  const absl::Status mine = absl::InternalError("mine");
  EXPECT_EQ(group.Agree(mine), mine);
  EXPECT_TRUE(group.HasAgreedOn(mine));
  EXPECT_EQ(*group.FromLeader(absl::StatusOr<std::string>("words")), "words");
  double value = 3;
  EXPECT_TRUE(group.Sum(absl::MakeSpan(&value, 1)).ok());
  EXPECT_EQ(value, 3);
}

TEST(RankGroupTest, StatusesTravelAsWords) {
  for (const absl::Status& status :
       {absl::OkStatus(), absl::DataLossError(""), absl::NotFoundError("a b  c\n"),
        StopStatus(RunStop::kLost, "chunk 3")}) {
    EXPECT_EQ(StatusOfWords(WordsOfStatus(status)).ToString(), status.ToString());
  }
  EXPECT_TRUE(absl::IsInternal(StatusOfWords("99 x y")));
  EXPECT_TRUE(absl::IsInternal(StatusOfWords("")));
}

}  // namespace
}  // namespace stillhouse
