#include "sharding/rank_values.h"

#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;

template <typename Body>
void OnRanks(int ranks, Body body) {
  auto communicators = MakeThreadCommunicators(ranks, absl::Minutes(1));
  std::vector<std::thread> threads;
  for (auto& communicator : communicators) {
    threads.emplace_back([&body, &communicator] { body(*communicator); });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(RankValuesTest, SumsAreMadeInRankOrderOnEveryRank) {
  // In another order the small one would be lost.
  const double parts[] = {1e30, -1e30, 1.5};
  OnRanks(3, [&](Communicator& communicator) {
    double values[] = {parts[communicator.rank()], 1.0};
    ASSERT_TRUE(SumOverRanks(communicator, values).ok());
    EXPECT_THAT(values, ElementsAre(1.5, 3.0));
  });
}

TEST(RankValuesTest, WordsOfAnyLengthComeByRank) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    OnRanks(ranks, [&](Communicator& communicator) {
      const std::string mine(static_cast<size_t>(communicator.rank()) * 1000, 'x');
      const auto words = GatherWords(communicator, mine);
      ASSERT_TRUE(words.ok()) << words.status();
      ASSERT_EQ(words->size(), static_cast<size_t>(ranks));
      for (int rank = 0; rank < ranks; ++rank) {
        EXPECT_EQ((*words)[rank], std::string(static_cast<size_t>(rank) * 1000, 'x'));
      }
      const auto nothing = GatherWords(communicator, "");
      ASSERT_TRUE(nothing.ok()) << nothing.status();
      EXPECT_EQ((*nothing)[0], "");
    });
  }
}

// Over after so many looks; Wait before that would be bound by a deadline.
class SlowCollective final : public PendingCollective {
 public:
  SlowCollective(int looks, bool* waited) : looks_(looks), waited_(waited) {}
  absl::StatusOr<bool> Poll() override { return --looks_ <= 0; }
  absl::Status Wait() override {
    *waited_ = true;
    return looks_ <= 0 ? absl::OkStatus() : absl::DeadlineExceededError("waited too early");
  }

 private:
  int looks_;
  bool* waited_;
};

TEST(RankValuesTest, PatienceHasNoDeadline) {
  bool waited = false;
  EXPECT_TRUE(AwaitPatiently(std::make_unique<SlowCollective>(2100, &waited)).ok());
  EXPECT_TRUE(waited);
}

TEST(RankValuesTest, ARankThatGivesUpEndsTheWaitOfTheOthers) {
  OnRanks(3, [&](Communicator& communicator) {
    if (communicator.rank() == 1) return communicator.Abort();
    EXPECT_TRUE(absl::IsAborted(GatherWords(communicator, "here").status()));
  });
}

}  // namespace
}  // namespace stillhouse
