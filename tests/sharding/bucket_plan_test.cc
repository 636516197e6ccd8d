#include "sharding/bucket_plan.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;

FlatLayout SomeLayout() {
  return FlatLayout({{"a", 100}, {"b", 60}, {"c", 1}, {"d", 5000}, {"e", 33}, {"f", 64}});
}

std::vector<std::pair<size_t, size_t>> ParametersOf(const BucketPlan& plan) {
  std::vector<std::pair<size_t, size_t>> found;
  for (const Bucket& bucket : plan.buckets()) {
    found.emplace_back(bucket.parameters_begin, bucket.parameters_end);
  }
  return found;
}

TEST(BucketPlanTest, FillsBucketsInOrderAndGivesALargeParameterItsOwn) {
  // Padded: 128, 64, 32, 5024, 64, 64.
  const BucketPlan plan(SomeLayout(), 2, {.elements_max = 200});
  using Pair = std::pair<size_t, size_t>;
  EXPECT_THAT(ParametersOf(plan), ElementsAre(Pair(0, 2), Pair(2, 3), Pair(3, 4), Pair(4, 6)));
  EXPECT_EQ(plan.BucketOf(3), 2u);
  EXPECT_EQ(plan.LargestBucket(), 5024u);
  EXPECT_EQ(plan.buckets().front().range.begin, 0u);
  EXPECT_EQ(plan.buckets().back().range.end, SomeLayout().size());
}

TEST(BucketPlanTest, FrozenParametersAreInNoBucketAndEndOne) {
  const BucketPlan plan(SomeLayout(), 2, {.elements_max = 10'000, .frozen = {1, 5}});
  using Pair = std::pair<size_t, size_t>;
  EXPECT_THAT(ParametersOf(plan), ElementsAre(Pair(0, 1), Pair(2, 5)));
  EXPECT_EQ(plan.BucketOf(1), BucketPlan::kNone);
  EXPECT_EQ(plan.BucketOf(5), BucketPlan::kNone);
  EXPECT_EQ(plan.ShardSize(0) + plan.ShardSize(1), 128u + 32 + 5024 + 64);
  EXPECT_TRUE(BucketPlan(SomeLayout(), 3, {.frozen = {0, 1, 2, 3, 4, 5}}).buckets().empty());
}

TEST(BucketPlanTest, ShardsCoverEveryBucketInAlignedPartsThatDifferByOneUnit) {
  for (int ranks = 1; ranks <= 7; ++ranks) {
    const BucketPlan plan(SomeLayout(), ranks, {.elements_max = 200});
    std::vector<int> owners(SomeLayout().size(), 0);
    size_t smallest = SIZE_MAX, largest = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      size_t next_local = 0;
      for (const ShardPiece& piece : plan.PiecesOf(rank)) {
        EXPECT_EQ(piece.flat.begin % kFlatAlignment, 0u);
        EXPECT_EQ(piece.flat.size() % kFlatAlignment, 0u);
        EXPECT_EQ(piece.local, next_local);
        next_local += piece.flat.size();
        for (size_t i = piece.flat.begin; i < piece.flat.end; ++i) ++owners[i];
      }
      EXPECT_EQ(next_local, plan.ShardSize(rank));
      smallest = std::min(smallest, plan.ShardSize(rank));
      largest = std::max(largest, plan.ShardSize(rank));
      for (const Bucket& bucket : plan.buckets()) {
        const size_t fair = bucket.range.size() / kFlatAlignment / ranks * kFlatAlignment;
        EXPECT_GE(bucket.shards[rank].size(), fair);
        EXPECT_LE(bucket.shards[rank].size(), fair + kFlatAlignment);
      }
    }
    for (const int owner : owners) ASSERT_EQ(owner, 1);
    // The odd units of the buckets do not all fall to one rank.
    EXPECT_LE(largest - smallest, 2 * kFlatAlignment) << ranks;
  }
}

TEST(BucketPlanTest, OfOneRankTheShardIsTheWholeBuffer) {
  const BucketPlan plan(SomeLayout(), 1, {.elements_max = 200});
  const std::vector<ShardPiece> pieces = plan.PiecesOf(0);
  ASSERT_EQ(pieces.size(), 1u);
  EXPECT_EQ(pieces[0].flat.begin, 0u);
  EXPECT_EQ(pieces[0].flat.end, SomeLayout().size());
  EXPECT_EQ(plan.ShardSize(0), SomeLayout().size());
}

TEST(BucketPlanTest, ForOwnedGivesWhatIsOwnedOfARange) {
  const BucketPlan plan(SomeLayout(), 3, {.elements_max = 200});
  size_t owned = 0;
  for (int rank = 0; rank < 3; ++rank) {
    const std::vector<ShardPiece> pieces = plan.PiecesOf(rank);
    ForOwned(pieces, {50, 3000}, [&](size_t flat, size_t local, size_t count) {
      EXPECT_GE(flat, 50u);
      EXPECT_LE(flat + count, 3000u);
      EXPECT_LE(local + count, plan.ShardSize(rank));
      owned += count;
    });
  }
  EXPECT_EQ(owned, 2950u);
}

}  // namespace
}  // namespace stillhouse
