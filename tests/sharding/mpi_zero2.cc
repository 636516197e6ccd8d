// Zero2 on the ranks of an mpirun: every rank works out what all must come to, and compares.
#include <cmath>

#include "gtest/gtest.h"
#include "tests/sharding/mpi_main.h"
#include "tests/sharding/zero2_training.h"

namespace stillhouse {
namespace {

MpiWorld* world = nullptr;

void TrainAndCompare(Training training) {
  auto communicator = world->MakeCommunicator({.deadline = kMpiTestDeadline, .piece_bytes = 4096});
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  const std::vector<float> plain = PlainMasters(training);
  const auto trained = TrainRank(training, **communicator);
  ASSERT_TRUE(trained.ok()) << trained.status();
  for (size_t i = 0; i < plain.size(); ++i) {
    const float wanted =
        training.weights == DType::kF32 ? plain[i] : Bf16ToFloat(FloatToBf16(plain[i]));
    ASSERT_EQ(trained->weights[i], wanted) << i;
  }
  // The same bits as ranks that are threads, norms too.
  const std::vector<Trained> threads = TrainOnThreads(training);
  const std::vector<double>& norms = threads[world->rank()].norms;
  for (size_t i = 0; i < norms.size(); ++i) {
    EXPECT_TRUE(trained->norms[i] == norms[i] ||
                (std::isnan(trained->norms[i]) && std::isnan(norms[i])));
  }
  EXPECT_EQ(trained->masters, threads[world->rank()].masters);
}

Training SomeTraining() {
  return {.parameters = OddParameters(),
          .micro_batches = std::vector<int>(world->size(), 2),
          .bucket_elements = 1500,
          .shuffled = true};
}

TEST(MpiZero2Test, EveryBitIsThatOfPlainLoops) { TrainAndCompare(SomeTraining()); }

TEST(MpiZero2Test, InBf16WithATiedMatrixAndUnevenMicroBatches) {
  Training training = SomeTraining();
  training.wire = training.weights = DType::kBF16;
  training.tied = true;
  training.micro_batches[0] = 3;
  training.micro_batches.back() = 0;
  TrainAndCompare(training);
}

TEST(MpiZero2Test, WhatIsNotFiniteOnOneRankSkipsTheStepOnAll) {
  Training training = SomeTraining();
  training.nan_rank = world->size() - 1;
  training.nan_step = 2;
  TrainAndCompare(training);
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::RunMpiTests(argc, argv, &stillhouse::world); }
