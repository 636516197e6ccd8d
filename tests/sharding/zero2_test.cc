#include "sharding/zero2.h"

#include <cmath>
#include <thread>

#include "common/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/sharding/zero2_training.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;

// Puts the shards of all ranks together.
std::vector<float> Assembled(const Training& training, const std::vector<Trained>& ranks) {
  const FlatLayout layout(training.parameters);
  const BucketPlan plan(layout, training.ranks(),
                        {.elements_max = training.bucket_elements, .frozen = training.frozen});
  std::vector<float> all(layout.size());
  for (int rank = 0; rank < training.ranks(); ++rank) {
    for (const ShardPiece& piece : plan.PiecesOf(rank)) {
      std::copy_n(ranks[rank].masters.begin() + piece.local, piece.flat.size(),
                  all.begin() + piece.flat.begin);
    }
  }
  return all;
}

void ExpectAllAsPlain(const Training& training, const std::vector<Trained>& ranks) {
  const std::vector<float> plain = PlainMasters(training);
  EXPECT_EQ(Assembled(training, ranks), plain);
  for (const Trained& rank : ranks) {
    for (size_t i = 0; i < plain.size(); ++i) {
      const float wanted =
          training.weights == DType::kF32 ? plain[i] : Bf16ToFloat(FloatToBf16(plain[i]));
      ASSERT_EQ(rank.weights[i], wanted) << i;
    }
    EXPECT_EQ(rank.value, training.ranks() * (training.ranks() + 1) / 2);
    EXPECT_EQ(rank.norms, ranks[0].norms);
  }
}

Training SomeTraining(int ranks) {
  return {.parameters = OddParameters(), .micro_batches = std::vector<int>(ranks, 2)};
}

class Zero2RanksTest : public testing::TestWithParam<int> {};

TEST_P(Zero2RanksTest, EveryBitIsThatOfPlainLoops) {
  for (const DType wire : {DType::kF32, DType::kBF16}) {
    // What one rank makes is never on its way.
    if (GetParam() == 1 && wire == DType::kBF16) continue;
    for (const DType weights : {DType::kF32, DType::kBF16}) {
      for (const size_t bucket : {size_t{1}, size_t{1000}, size_t{1} << 20}) {
        Training training = SomeTraining(GetParam());
        training.wire = wire;
        training.weights = weights;
        training.bucket_elements = bucket;
        ExpectAllAsPlain(training, TrainOnThreads(training));
      }
    }
  }
}

TEST_P(Zero2RanksTest, TheOrderInWhichGradientsAreReadyChangesNothing) {
  Training training = SomeTraining(GetParam());
  training.bucket_elements = 1000;
  training.shuffled = true;
  training.tied = true;
  ExpectAllAsPlain(training, TrainOnThreads(training));
}

TEST_P(Zero2RanksTest, RanksWithFewerMicroBatchesTakePart) {
  Training training = SomeTraining(GetParam());
  for (int rank = 0; rank < GetParam(); ++rank) training.micro_batches[rank] = 3 - rank % 4;
  ExpectAllAsPlain(training, TrainOnThreads(training));
  training.micro_batches.assign(GetParam(), 0);
  ExpectAllAsPlain(training, TrainOnThreads(training));
}

TEST_P(Zero2RanksTest, FewerElementsThanRanksAndFrozenOnes) {
  Training training = SomeTraining(GetParam());
  training.parameters = {{"a", 3}, {"b", 1}, {"c", 40}};
  ExpectAllAsPlain(training, TrainOnThreads(training));
  training.frozen = {1};
  // Of a frozen parameter there are no masters; the weights stay.
  const std::vector<Trained> trained = TrainOnThreads(training);
  const std::vector<float> plain = PlainMasters(training);
  for (const Trained& rank : trained) EXPECT_EQ(rank.weights, plain);
}

TEST_P(Zero2RanksTest, ClippedByTheNormOverAllRanks) {
  Training training = SomeTraining(GetParam());
  training.clip = 1.0;
  const std::vector<Trained> trained = TrainOnThreads(training);
  // One rank that makes the micro-batches of all of them comes to nearly the same: other sums of
  // the norm, the same sums of gradients where there is one micro-batch.
  const std::vector<Trained> again = TrainOnThreads(training);
  for (int rank = 0; rank < GetParam(); ++rank) {
    EXPECT_EQ(again[rank].masters, trained[rank].masters);
    EXPECT_EQ(again[rank].norms, trained[rank].norms);
    EXPECT_EQ(trained[rank].norms, trained[0].norms);
  }
  Training unclipped = training;
  unclipped.clip = 0;
  // The first step's norm is of the same gradient, clipped or not: that of independent normals.
  const double norm = TrainOnThreads(unclipped)[0].norms[0];
  EXPECT_NEAR(trained[0].norms[0], norm, 1e-9 * norm);
  const double elements = 11'731 * 2.0 * GetParam();
  EXPECT_NEAR(norm, std::sqrt(elements), 0.05 * std::sqrt(elements));
}

TEST_P(Zero2RanksTest, WhatIsNotFiniteOnOneRankSkipsTheStepOnAll) {
  for (int rank = 0; rank < GetParam(); ++rank) {
    Training training = SomeTraining(GetParam());
    training.nan_rank = rank;
    training.nan_step = 2;
    training.clip = 0;
    const std::vector<Trained> trained = TrainOnThreads(training);
    for (const Trained& one : trained) EXPECT_THAT(one.skipped, ElementsAre(false, true, false));
    EXPECT_EQ(Assembled(training, trained), PlainMasters(training));
  }
}

TEST_P(Zero2RanksTest, MemoryIsWhatZeroStageTwoPromises) {
  Training training = SomeTraining(GetParam());
  training.parameters.clear();
  for (int i = 0; i < 40; ++i) {
    training.parameters.emplace_back("p" + std::to_string(i), 1000 + 37 * i);
  }
  training.bucket_elements = 4000;
  training.weights = DType::kBF16;
  for (const Trained& rank : TrainOnThreads(training)) {
    const double parameters = 40 * 1000 + 37 * 780;
    const double formula = 2 * parameters + 16 * parameters / GetParam();
    const Zero2::Memory& memory = rank.memory;
    EXPECT_LE(memory.total(), 1.05 * formula + memory.bucket_buffers);
    EXPECT_EQ(memory.weights + memory.gradients + memory.optimizer + memory.bucket_buffers,
              memory.total());
    // Two under way and one begun, each with a sum of its part; nothing is added later.
    const size_t bucket = 4096 * sizeof(float);
    EXPECT_LE(memory.bucket_buffers, GetParam() == 1 ? 0 : 3 * (bucket + bucket));
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, Zero2RanksTest, testing::Values(1, 2, 3, 4, 5),
                         [](const auto& info) { return std::to_string(info.param); });

// One rank that says what it was asked to start.
class Recorder final : public Communicator {
 public:
  explicit Recorder(Communicator& below) : below_(below) {}
  int rank() const override { return below_.rank(); }
  int size() const override { return below_.size(); }
  Pending ReduceScatter(const TensorView& input, absl::Span<const FlatRange> shards,
                        const TensorView& output) override {
    log.push_back("reduce " + std::to_string(input.count));
    return below_.ReduceScatter(input, shards, output);
  }
  Pending AllGather(const TensorView& input, absl::Span<const FlatRange> shards,
                    const TensorView& output) override {
    log.push_back("gather " + std::to_string(output.count));
    return below_.AllGather(input, shards, output);
  }
  Pending AllReduceSum(const TensorView& in_out) override {
    log.emplace_back("all-reduce");
    return below_.AllReduceSum(in_out);
  }
  Pending Broadcast(const TensorView& in_out, int root) override {
    log.emplace_back("broadcast");
    return below_.Broadcast(in_out, root);
  }
  Pending AllToAll(const TensorView& input, absl::Span<const FlatRange> sends,
                   const TensorView& output, absl::Span<const FlatRange> receives) override {
    log.emplace_back("all-to-all");
    return below_.AllToAll(input, sends, output, receives);
  }
  Pending Barrier() override {
    log.emplace_back("barrier");
    return below_.Barrier();
  }
  void Abort() override { below_.Abort(); }
  std::vector<std::string> log;

 private:
  Communicator& below_;
};

TEST(Zero2Test, OfOneRankNothingIsSent) {
  auto communicators = MakeThreadCommunicators(1, absl::Minutes(1));
  Recorder recorder(*communicators[0]);
  ASSERT_TRUE(TrainRank(SomeTraining(1), recorder).ok());
  EXPECT_TRUE(recorder.log.empty());
}

// Two ranks of which only the first is looked at; the second does what is needed.
TEST(Zero2Test, ABucketIsReducedAsSoonAsItsLastGradientIsReady) {
  const FlatLayout layout({{"a", 64}, {"b", 32}, {"c", 32}, {"tied", 128}});
  const BucketPlan plan(layout, 2, {.elements_max = 96});
  auto communicators = MakeThreadCommunicators(2, absl::Minutes(1));
  const auto run = [&](Communicator& communicator, const std::function<void(Zero2&)>& body) {
    const size_t n = plan.ShardSize(communicator.rank());
    FlatBuffer<float> masters(n), first(n), second(n), gradients(n), weights(layout.size());
    Zero2 zero2(plan, communicator,
                {masters.span(),
                 first.span(),
                 second.span(),
                 gradients.span(),
                 {weights.data(), weights.size(), DType::kF32}});
    zero2.BeginStep();
    zero2.BeginMicroBatch();
    body(zero2);
    ASSERT_TRUE(zero2.Update({}, {}, RunSerially).ok());
    ASSERT_TRUE(zero2.AwaitAllWeights().ok());
  };
  const auto fill = [&](Zero2& zero2, size_t p) {
    const auto place = zero2.Begin(p);
    ASSERT_TRUE(place.ok());
    for (size_t i = 0; i < layout.parameters()[p].count; ++i) {
      place->data[i] = (place->add ? place->data[i] : 0) + 1;
    }
  };
  std::thread peer([&] {
    run(*communicators[1], [](Zero2& zero2) { ASSERT_TRUE(zero2.EndMicroBatch().ok()); });
  });
  Recorder recorder(*communicators[0]);
  run(recorder, [&](Zero2& zero2) {
    fill(zero2, 3);  // by the head
    fill(zero2, 0);
    ASSERT_TRUE(zero2.Ready(0).ok());
    EXPECT_TRUE(recorder.log.empty());
    fill(zero2, 1);
    ASSERT_TRUE(zero2.Ready(1).ok());
    EXPECT_THAT(recorder.log, ElementsAre("reduce 96"));
    fill(zero2, 2);
    ASSERT_TRUE(zero2.Ready(2).ok());
    EXPECT_THAT(recorder.log, ElementsAre("reduce 96", "reduce 32"));
    fill(zero2, 3);  // by the embedding
    ASSERT_TRUE(zero2.Ready(3).ok());
    EXPECT_THAT(recorder.log, ElementsAre("reduce 96", "reduce 32", "reduce 128"));
    ASSERT_TRUE(zero2.EndMicroBatch().ok());
  });
  peer.join();
  // Then the norm, and the weights in the order of their use.
  EXPECT_THAT(recorder.log, ElementsAre("reduce 96", "reduce 32", "reduce 128", "gather 2",
                                        "gather 128", "gather 32", "gather 96"));
}

TEST(Zero2Test, ARankThatGivesUpEndsTheStepOfTheOthers) {
  Training training = SomeTraining(3);
  auto communicators = MakeThreadCommunicators(3, absl::Minutes(1));
  std::vector<absl::Status> ends(3);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 3; ++rank) {
    threads.emplace_back([&, rank] {
      if (rank == 2) return communicators[rank]->Abort();
      ends[rank] = TrainRank(training, *communicators[rank]).status();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(absl::IsAborted(ends[0])) << ends[0];
  EXPECT_TRUE(absl::IsAborted(ends[1])) << ends[1];
}

}  // namespace
}  // namespace stillhouse
