#include "sharding/communicator.h"

#include <atomic>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "sharding/message_communicator.h"
#include "sharding/message_exchange.h"
#include "tests/sharding/conformance.h"
#include "tests/sharding/memory_layer.h"

namespace stillhouse {
namespace {

constexpr absl::Duration kLong = absl::Minutes(5);
using Communicators = std::vector<std::unique_ptr<Communicator>>;

Communicators Threads(int ranks, absl::Duration deadline) {
  return MakeThreadCommunicators(ranks, deadline);
}

Communicators OverMessages(int ranks, const MessageOptions& options) {
  const auto hub = MakeMemorySwitch(ranks);
  Communicators communicators;
  for (int rank = 0; rank < ranks; ++rank) {
    communicators.push_back(MakeMessageCommunicator(MakeMemoryLayer(hub, rank), options));
  }
  return communicators;
}
Communicators Messages(int ranks, absl::Duration deadline) {
  return OverMessages(ranks, {.deadline = deadline});
}
// So small that every size takes several windows.
Communicators SmallMessages(int ranks, absl::Duration deadline) {
  return OverMessages(ranks, {.deadline = deadline, .piece_bytes = 4096, .pieces_in_flight = 2});
}

struct Backend {
  std::string name;
  Communicators (*make)(int ranks, absl::Duration deadline);
  bool large = true;
};
const Backend kBackends[] = {
    {"Threads", Threads}, {"Messages", Messages}, {"SmallMessages", SmallMessages, false}};

TensorView F32(std::vector<float>& values) {
  return {values.data(), values.size(), DType::kF32, Device::kCpu, nullptr};
}

class CommunicatorConformanceTest
    : public testing::TestWithParam<std::tuple<Backend, int, ConformanceCase>> {};

TEST_P(CommunicatorConformanceTest, Holds) {
  const auto& [backend, ranks, conformance] = GetParam();
  OnEveryRank(backend.make(ranks, kLong),
              [run = conformance.run, large = backend.large](Communicator& communicator) {
                run(communicator, {.large = large});
              });
}

INSTANTIATE_TEST_SUITE_P(All, CommunicatorConformanceTest,
                         testing::Combine(testing::ValuesIn(kBackends),
                                          testing::Values(1, 2, 3, 4, 5),
                                          testing::ValuesIn(ConformanceCases())),
                         [](const auto& info) {
                           return absl::StrCat(std::get<0>(info.param).name,
                                               std::get<1>(info.param), "Ranks",
                                               std::get<2>(info.param).name);
                         });

class CommunicatorTest : public testing::TestWithParam<Backend> {
 protected:
  Communicators Make(int ranks, absl::Duration deadline) {
    return GetParam().make(ranks, deadline);
  }
};

TEST_P(CommunicatorTest, NobodyLeavesABarrierBeforeAllAreThere) {
  constexpr int kRanks = 4;
  std::atomic<int> there = 0;
  OnEveryRank(Make(kRanks, kLong), [&](Communicator& communicator) {
    ++there;
    auto barrier = communicator.Barrier();
    ASSERT_TRUE(barrier.ok());
    ASSERT_TRUE((*barrier)->Wait().ok());
    EXPECT_EQ(there, kRanks);
  });
}

TEST_P(CommunicatorTest, AMissingPeerBecomesATypedErrorAndTheCommunicatorDies) {
  auto communicators = Make(2, absl::Milliseconds(50));
  std::vector<float> values(8);
  auto pending = communicators[0]->AllReduceSum(F32(values));
  ASSERT_TRUE(pending.ok());
  EXPECT_EQ((*pending)->Wait().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(communicators[0]->Barrier().status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_P(CommunicatorTest, APeerThatStartsButDoesNotGoOnIsMissedWithinOneDeadline) {
  auto communicators = Make(2, absl::Milliseconds(50));
  std::vector<float> mine(100'003), theirs(100'003);
  auto pending = communicators[0]->AllReduceSum(F32(mine));
  auto hung = communicators[1]->AllReduceSum(F32(theirs));
  ASSERT_TRUE(pending.ok() && hung.ok());
  EXPECT_EQ((*pending)->Wait().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ((*hung)->Wait().code(), absl::StatusCode::kDeadlineExceeded);  // it was told
}

TEST_P(CommunicatorTest, AbortWakesThoseWhoWait) {
  auto communicators = Make(3, kLong);
  std::vector<float> values(8), others(8);
  auto pending = communicators[0]->AllReduceSum(F32(values));
  auto also_pending = communicators[2]->AllReduceSum(F32(others));
  ASSERT_TRUE(pending.ok() && also_pending.ok());
  std::thread other([&] { communicators[1]->Abort(); });
  EXPECT_EQ((*pending)->Wait().code(), absl::StatusCode::kAborted);
  EXPECT_EQ((*also_pending)->Wait().code(), absl::StatusCode::kAborted);
  other.join();
  EXPECT_EQ(communicators[1]->Barrier().status().code(), absl::StatusCode::kAborted);
}

TEST_P(CommunicatorTest, ACollectiveThatIsGivenUpAborts) {
  auto communicators = Make(2, kLong);
  std::vector<float> values(8), others(8);
  auto pending = communicators[0]->AllReduceSum(F32(values));
  ASSERT_TRUE(pending.ok());
  ASSERT_TRUE(communicators[1]->AllReduceSum(F32(others)).ok());  // and dropped
  EXPECT_EQ((*pending)->Wait().code(), absl::StatusCode::kAborted);
}

using Start = std::function<Communicator::Pending(Communicator&, std::vector<float>& values)>;

// Both ranks learn of it, whoever sees it first, at the start or while they wait.
void ExpectRefused(Communicators communicators, const Start& first, const Start& second) {
  std::vector<float> a(8), b(8);
  std::string messages;
  auto pending = first(*communicators[0], a);
  auto other = second(*communicators[1], b);
  for (Communicator::Pending* each : {&pending, &other}) {
    const absl::Status status = each->ok() ? (**each)->Wait() : each->status();
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
    absl::StrAppend(&messages, status.message(), "\n");
  }
  EXPECT_THAT(messages, testing::HasSubstr("different operations"));
}

Start Broadcast(int root) {
  return
      [=](Communicator& c, std::vector<float>& values) { return c.Broadcast(F32(values), root); };
}
Start AllReduce(size_t count) {
  return [=](Communicator& c, std::vector<float>& values) {
    return c.AllReduceSum({values.data(), count, DType::kF32, Device::kCpu, nullptr});
  };
}

TEST_P(CommunicatorTest, DifferentOperationsAreCaught) {
  ExpectRefused(Make(2, kLong), AllReduce(8), Broadcast(0));
  ExpectRefused(Make(2, kLong), AllReduce(8), AllReduce(7));
  ExpectRefused(Make(2, kLong), Broadcast(0), Broadcast(1));
  const auto gather = [](size_t cut) {
    return [=](Communicator& c, std::vector<float>& values) {
      const std::vector<FlatRange> shards = {{0, cut}, {cut, 8}};
      const TensorView whole = F32(values);
      const FlatRange own = shards[c.rank()];
      return c.AllGather(
          {values.data() + own.begin, own.size(), DType::kF32, Device::kCpu, nullptr}, shards,
          whole);
    };
  };
  ExpectRefused(Make(2, kLong), gather(3), gather(4));
}

TEST_P(CommunicatorTest, SendsThatAreNotReceivedAreCaught) {
  const auto swap = [](size_t to_other, size_t from_other) {
    return [=](Communicator& c, std::vector<float>& values) {
      std::vector<FlatRange> sends(2), receives(2);
      sends[1 - c.rank()] = {0, to_other};
      receives[1 - c.rank()] = {0, from_other};
      return c.AllToAll({values.data(), 4, DType::kF32, Device::kCpu, nullptr}, sends,
                        {values.data() + 4, 4, DType::kF32, Device::kCpu, nullptr}, receives);
    };
  };
  ExpectRefused(Make(2, kLong), swap(3, 2), swap(3, 3));
}

INSTANTIATE_TEST_SUITE_P(All, CommunicatorTest, testing::ValuesIn(kBackends),
                         [](const auto& info) { return info.param.name; });

TEST(MessageCommunicatorTest, AnErrorOfTheLibraryIsHandedUpAndKillsIt) {
  const auto hub = MakeMemorySwitch(2);
  auto communicator = MakeMessageCommunicator(MakeMemoryLayer(hub, 0), {.deadline = kLong});
  std::vector<float> values(8);
  auto pending = communicator->AllReduceSum(F32(values));
  ASSERT_TRUE(pending.ok());
  FailMemoryLayer(*hub, 0, absl::InternalError("MPI: a message: no route"));
  EXPECT_EQ((*pending)->Wait(), absl::InternalError("MPI: a message: no route"));
  EXPECT_EQ(communicator->Barrier().status().code(), absl::StatusCode::kInternal);
}

TEST(MessageCommunicatorTest, StagingDoesNotGrowWithTheRanks) {
  const Collective reduction{.operation = Operation::kReduceScatter};
  for (const int ranks : {1, 2, 17, 18, 200, 4096}) {
    const MessageOptions fitted = FitToRanks({}, ranks);
    EXPECT_LE(Exchange::StagingBytes(reduction, ranks, fitted), kStagingBytesMax) << ranks;
    EXPECT_EQ(fitted.piece_bytes % sizeof(float), 0u) << ranks;
    EXPECT_GE(fitted.piece_bytes, kPieceBytesMin) << ranks;
    EXPECT_EQ(fitted.piece_bytes == MessageOptions().piece_bytes, ranks <= 17) << ranks;
  }
}

TEST(MessageCommunicatorTest, ADeadlineNamesTheRanksThatAreMissing) {
  const auto hub = MakeMemorySwitch(3);
  auto first =
      MakeMessageCommunicator(MakeMemoryLayer(hub, 0), {.deadline = absl::Milliseconds(50)});
  auto second = MakeMessageCommunicator(MakeMemoryLayer(hub, 1), {.deadline = kLong});
  std::vector<float> a(8), b(8);
  auto pending = first->AllReduceSum(F32(a));
  auto other = second->AllReduceSum(F32(b));
  ASSERT_TRUE(pending.ok() && other.ok());
  EXPECT_EQ((*pending)->Wait(),
            absl::DeadlineExceededError("collective: rank 2 did not come within 50ms"));
  EXPECT_EQ((*other)->Wait().code(), absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace stillhouse
