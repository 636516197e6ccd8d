// The NCCL communicator's control flow, on threads as ranks, against a double of the CUDA and NCCL
// calls that it makes (nccl_double/). What NCCL itself does is not tested here.
#include <thread>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "sharding/communicator.h"
#include "tests/sharding/conformance.h"
#include "tests/sharding/nccl_double/nccl_double.h"

namespace stillhouse {
namespace {

constexpr absl::Duration kLong = absl::Minutes(5);
constexpr absl::Duration kShort = absl::Milliseconds(50);
using Communicators = std::vector<std::unique_ptr<Communicator>>;

// Joined at the same time, as they must be. `deadlines` of each rank.
Communicators Join(const std::vector<absl::Duration>& deadlines) {
  const int ranks = static_cast<int>(deadlines.size());
  const auto id = MakeNcclId();
  EXPECT_TRUE(id.ok()) << id.status();
  Communicators communicators(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      auto joined = MakeNcclCommunicator(*id, rank, ranks, /*device=*/rank, deadlines[rank]);
      EXPECT_TRUE(joined.ok()) << joined.status();
      if (joined.ok()) communicators[rank] = *std::move(joined);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return communicators;
}

TensorView F32(std::vector<float>& values) {
  return {values.data(), values.size(), DType::kF32, Device::kCuda, nullptr};
}

class NcclDoubleTest : public testing::Test {
 protected:
  NcclDoubleTest() { nccl_double::Reset(); }
  ~NcclDoubleTest() override { EXPECT_EQ(nccl_double::Now().misuse, ""); }
  // Whatever ended badly was aborted, and no handle of a comm is left.
  void ExpectComms(int destroyed, int aborted) {
    const nccl_double::Counts counts = nccl_double::Now();
    EXPECT_EQ(counts.destroyed, destroyed);
    EXPECT_EQ(counts.aborted, aborted);
    EXPECT_EQ(counts.comms, 0);
    EXPECT_EQ(counts.events, 0);
  }
};

class NcclConformanceTest : public NcclDoubleTest,
                            public testing::WithParamInterface<std::tuple<int, ConformanceCase>> {};

TEST_P(NcclConformanceTest, Holds) {
  const auto& [ranks, conformance] = GetParam();
  Communicators communicators = Join(std::vector<absl::Duration>(ranks, kLong));
  OnEveryRank(std::move(communicators), [run = conformance.run](Communicator& communicator) {
    run(communicator, {.reduces_bf16 = false});
  });
  ExpectComms(/*destroyed=*/ranks, /*aborted=*/0);
  EXPECT_EQ(nccl_double::Now().streams, 0);
  EXPECT_EQ(nccl_double::Now().allocations, 0);
}

INSTANTIATE_TEST_SUITE_P(All, NcclConformanceTest,
                         testing::Combine(testing::Values(1, 2, 3, 4),
                                          testing::ValuesIn(ConformanceCases())),
                         [](const auto& info) {
                           return absl::StrCat(std::get<0>(info.param), "Ranks",
                                               std::get<1>(info.param).name);
                         });

TEST_F(NcclDoubleTest, ARankThatDoesNotJoinIsMissed) {
  const auto id = MakeNcclId();
  ASSERT_TRUE(id.ok());
  const auto joined = MakeNcclCommunicator(*id, /*rank=*/0, /*ranks=*/2, /*device=*/0, kShort);
  EXPECT_EQ(joined.status().code(), absl::StatusCode::kDeadlineExceeded);
  ExpectComms(/*destroyed=*/0, /*aborted=*/1);
}

TEST_F(NcclDoubleTest, AHungPeerIsMissedAndTheCommunicatorDies) {
  Communicators communicators = Join({kShort, kLong});
  std::vector<float> values(8);
  {
    auto pending = communicators[0]->AllReduceSum(F32(values));
    ASSERT_TRUE(pending.ok()) << pending.status();
    EXPECT_EQ((*pending)->Wait().code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_EQ(communicators[0]->Barrier().status().code(), absl::StatusCode::kDeadlineExceeded);
  }
  communicators.clear();
  ExpectComms(/*destroyed=*/1, /*aborted=*/1);
}

TEST_F(NcclDoubleTest, AnAbortReachesThoseWhoWait) {
  Communicators communicators = Join({kLong, kLong});
  std::vector<float> values(8);
  {
    auto pending = communicators[0]->AllReduceSum(F32(values));
    ASSERT_TRUE(pending.ok()) << pending.status();
    std::thread other([&] { communicators[1]->Abort(); });
    EXPECT_EQ((*pending)->Wait().code(), absl::StatusCode::kAborted);
    other.join();
    EXPECT_EQ(communicators[1]->Barrier().status().code(), absl::StatusCode::kAborted);
  }
  communicators.clear();
  ExpectComms(/*destroyed=*/0, /*aborted=*/2);
}

TEST_F(NcclDoubleTest, AnAbortThatNobodyHearsOfIsADeadline) {
  nccl_double::TellPeersOfAborts(false);
  Communicators communicators = Join({kShort, kLong});
  communicators[1]->Abort();
  std::vector<float> values(8);
  auto pending = communicators[0]->AllReduceSum(F32(values));
  ASSERT_TRUE(pending.ok()) << pending.status();
  EXPECT_EQ((*pending)->Wait().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(NcclDoubleTest, AnAbortOfAnotherThreadIsNoRace) {
  for (int round = 0; round < 20; ++round) {
    Communicators communicators = Join({kLong, kLong});
    std::vector<float> a(8), b(8);
    std::thread aborting([&] { communicators[0]->Abort(); });
    const auto reduce = [](Communicator& communicator, std::vector<float>& values) {
      for (int step = 0; step < 50; ++step) {
        auto pending = communicator.AllReduceSum(F32(values));
        const absl::Status status = pending.ok() ? (*pending)->Wait() : pending.status();
        if (!status.ok()) {
          EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
          return;
        }
      }
    };
    std::thread other([&] { reduce(*communicators[1], b); });
    reduce(*communicators[0], a);
    other.join();
    aborting.join();
  }
}

TEST_F(NcclDoubleTest, AnErrorOfTheNetworkIsHandedUp) {
  Communicators communicators = Join({kLong, kLong});
  std::vector<float> values(8);
  {
    auto pending = communicators[0]->AllReduceSum(F32(values));
    ASSERT_TRUE(pending.ok()) << pending.status();
    nccl_double::FailRank(0);
    const absl::Status status = (*pending)->Wait();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("unhandled system error"));
  }
  communicators.clear();
  ExpectComms(/*destroyed=*/1, /*aborted=*/1);
}

TEST_F(NcclDoubleTest, AFailedKernelIsHandedUp) {
  Communicators communicators = Join({kLong});
  std::vector<float> values(8);
  auto pending = communicators[0]->AllReduceSum(F32(values));
  ASSERT_TRUE(pending.ok()) << pending.status();
  nccl_double::FailNextEvent();
  EXPECT_EQ((*pending)->Wait().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(communicators[0]->Barrier().status().code(), absl::StatusCode::kInternal);
}

TEST_F(NcclDoubleTest, ACollectiveThatIsGivenUpAborts) {
  Communicators communicators = Join({kLong, kLong});
  std::vector<float> values(8);
  ASSERT_TRUE(communicators[0]->AllReduceSum(F32(values)).ok());  // and dropped
  EXPECT_EQ(communicators[0]->Barrier().status().code(), absl::StatusCode::kAborted);
  communicators.clear();
  ExpectComms(/*destroyed=*/1, /*aborted=*/1);
}

TEST_F(NcclDoubleTest, RefusesWhatIsNoIdOrNoDevice) {
  EXPECT_TRUE(absl::IsInvalidArgument(
      MakeNcclCommunicator({"short"}, 0, 1, /*device=*/0, kShort).status()));
  const auto id = MakeNcclId();
  ASSERT_TRUE(id.ok());
  EXPECT_TRUE(absl::IsInternal(MakeNcclCommunicator(*id, 0, 1, /*device=*/99, kShort).status()));
  nccl_double::Reset(/*devices=*/0);
  EXPECT_TRUE(absl::IsUnavailable(MakeNcclId().status()));
  EXPECT_TRUE(absl::IsUnavailable(MakeNcclCommunicator(*id, 0, 1, 0, kShort).status()));
}

}  // namespace
}  // namespace stillhouse
