#include "sharding/communicator.h"

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stillhouse {
namespace {

constexpr absl::Duration kLong = absl::Seconds(30);

TensorView F32(std::vector<float>& values) {
  return {values.data(), values.size(), DType::kF32, Device::kCpu, nullptr};
}

void OnEveryRank(int ranks, const std::function<void(Communicator&)>& body) {
  auto communicators = MakeThreadCommunicators(ranks, kLong);
  std::vector<std::thread> threads;
  for (auto& communicator : communicators) {
    threads.emplace_back([&] { body(*communicator); });
  }
  for (std::thread& thread : threads) thread.join();
}

std::vector<float> Values(int rank, size_t n) {
  RandomStream random(1, rank);
  std::vector<float> values(n);
  for (float& value : values) value = static_cast<float>(random.NextNormal());
  return values;
}

float SumInRankOrder(int ranks, size_t n, size_t index) {
  float sum = Values(0, n)[index];
  for (int rank = 1; rank < ranks; ++rank) sum += Values(rank, n)[index];
  return sum;
}

class ThreadCommunicatorTest : public testing::TestWithParam<int> {};

TEST_P(ThreadCommunicatorTest, ReducesScattersAndGathersUnevenShards) {
  const int ranks = GetParam();
  const FlatLayout layout({{"a", 333}, {"b", 70}});
  OnEveryRank(ranks, [&](Communicator& communicator) {
    std::vector<FlatRange> shards;
    for (int r = 0; r < ranks; ++r) shards.push_back(layout.ShardOf(r, ranks));
    std::vector<float> input = Values(communicator.rank(), layout.size());
    std::vector<float> shard(shards[communicator.rank()].size());
    auto reduced = communicator.ReduceScatter(F32(input), shards, F32(shard));
    ASSERT_TRUE(reduced.ok()) << reduced.status();
    ASSERT_TRUE((*reduced)->Wait().ok());
    std::vector<float> whole(layout.size());
    auto gathered = communicator.AllGather(F32(shard), shards, F32(whole));
    ASSERT_TRUE(gathered.ok()) << gathered.status();
    ASSERT_TRUE((*gathered)->Wait().ok());
    for (size_t i = 0; i < whole.size(); i += 37) {
      ASSERT_EQ(whole[i], SumInRankOrder(ranks, layout.size(), i)) << i;
    }
  });
}

TEST_P(ThreadCommunicatorTest, AllReducesAndBroadcasts) {
  const int ranks = GetParam();
  OnEveryRank(ranks, [&](Communicator& communicator) {
    std::vector<float> values = Values(communicator.rank(), 101);
    auto reduced = communicator.AllReduceSum(F32(values));
    ASSERT_TRUE(reduced.ok());
    ASSERT_TRUE((*reduced)->Wait().ok());
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(values[i], SumInRankOrder(ranks, 101, i)) << i;
    }
    std::vector<float> from_last = Values(communicator.rank(), 9);
    auto sent = communicator.Broadcast(F32(from_last), ranks - 1);
    ASSERT_TRUE(sent.ok());
    ASSERT_TRUE((*sent)->Wait().ok());
    EXPECT_EQ(from_last, Values(ranks - 1, 9));
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, ThreadCommunicatorTest, testing::Values(1, 2, 3, 5));

TEST(CommunicatorTest, AMissingPeerBecomesATypedErrorAndTheCommunicatorDies) {
  auto communicators = MakeThreadCommunicators(2, absl::Milliseconds(50));
  std::vector<float> values(8);
  auto pending = communicators[0]->AllReduceSum(F32(values));
  ASSERT_TRUE(pending.ok());
  EXPECT_EQ((*pending)->Wait().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(communicators[1]->AllReduceSum(F32(values)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(CommunicatorTest, AbortWakesThoseWhoWait) {
  auto communicators = MakeThreadCommunicators(2, kLong);
  std::vector<float> values(8);
  auto pending = communicators[0]->AllReduceSum(F32(values));
  ASSERT_TRUE(pending.ok());
  std::thread other([&] { communicators[1]->Abort(); });
  EXPECT_EQ((*pending)->Wait().code(), absl::StatusCode::kAborted);
  other.join();
}

TEST(CommunicatorTest, DifferentOperationsAreCaught) {
  auto communicators = MakeThreadCommunicators(2, kLong);
  std::vector<float> values(8);
  auto pending = communicators[0]->AllReduceSum(F32(values));
  ASSERT_TRUE(pending.ok());
  EXPECT_EQ(communicators[1]->Broadcast(F32(values), 0).status().code(),
            absl::StatusCode::kAborted);
  EXPECT_EQ((*pending)->Wait().code(), absl::StatusCode::kAborted);
}

}  // namespace
}  // namespace stillhouse
