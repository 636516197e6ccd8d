// Steps of one rank and of several.

#include "student/stepper.h"

#include <cmath>
#include <functional>
#include <thread>

#include "common/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/parallel.h"
#include "student/data_cursor.h"
#include "student/run_stop.h"
#include "tests/student/fakes.h"
#include "tests/student/small_student.h"

namespace stillhouse {
namespace {

struct Trained {
  std::vector<double> losses, norms;
  std::vector<float> masters;  // of the whole student
  SkippedSteps skipped;
  absl::Status end;
};

struct Training {
  int ranks = 1;
  DType compute = DType::kF32;
  bool tied = true;
  uint64_t steps = 6;
  uint64_t step_rows = 60;
  bool masked = false;
  // Told of each rank's student before each step.
  std::function<void(SmallStudent&, int rank, uint64_t step)> before = nullptr;
};

std::vector<LossTerm> Terms() {
  return {{LossKind::kSampledKl, 1, 0.7}, {LossKind::kCrossEntropy, 1, 0.3}};
}

// One rank's part; its shard goes to its place in `masters`.
Trained TrainRank(const Training& training, Communicator& communicator,
                  std::vector<float>* masters) {
  AdoptComputeThreads();
  const auto plan = MakeTestPlan({.masked = training.masked});
  StudentRecipe recipe = SmallRecipe();
  recipe.steps = 30;
  const TestTeacher teacher;
  SmallStudent student(Terms(), SmallConfig(training.tied), training.compute, 3, &communicator);
  Stepper stepper(recipe, Terms(), *student.model, *student.zero2);
  DataCursor cursor(plan, 1);
  Trained trained;
  for (uint64_t step = 1; step <= training.steps; ++step) {
    if (training.before != nullptr) training.before(student, communicator.rank(), step);
    const StepSplit split =
        SplitStep(*plan, TakeStep(*plan, cursor, training.step_rows), communicator.size(),
                  static_cast<uint64_t>(recipe.micro_batch), recipe.packing);
    std::vector<DocumentTargets> documents;
    for (const uint32_t d : split.documents[static_cast<size_t>(communicator.rank())]) {
      documents.push_back(teacher.Targets(*plan, d));
    }
    const auto metrics = stepper.Step(*plan, documents, split, step, &trained.skipped,
                                      [] { return absl::OkStatus(); });
    trained.end = metrics.status();
    if (!metrics.ok()) break;
    trained.losses.push_back(metrics->loss);
    trained.norms.push_back(metrics->gradient_norm);
  }
  SH_CHECK_OK(student.zero2->AwaitAllWeights());
  for (const ShardPiece& piece : student.state->pieces) {
    std::copy_n(student.state->masters.data() + piece.local, piece.flat.size(),
                masters->begin() + static_cast<ptrdiff_t>(piece.flat.begin));
  }
  return trained;
}

std::vector<Trained> Train(const Training& training) {
  SetComputeThreads(1);
  auto communicators = MakeThreadCommunicators(training.ranks, absl::Minutes(5));
  std::vector<float> masters(StudentLayout(SmallConfig(training.tied)).size());
  std::vector<Trained> trained(communicators.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < communicators.size(); ++rank) {
    threads.emplace_back(
        [&, rank] { trained[rank] = TrainRank(training, *communicators[rank], &masters); });
  }
  for (std::thread& thread : threads) thread.join();
  for (Trained& one : trained) one.masters = masters;
  return trained;
}

double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b[i]));
  }
  return largest;
}

TEST(StepperTest, LowersTheLossAndRepeatsBitForBit) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    for (const int ranks : {1, 3}) {
      const Training training{.ranks = ranks, .compute = compute, .steps = 30};
      const std::vector<Trained> once = Train(training), again = Train(training);
      EXPECT_LT(once[0].losses.back(), once[0].losses.front() - 0.3);
      EXPECT_EQ(once[0].masters, again[0].masters);
      for (int rank = 0; rank < ranks; ++rank) {
        EXPECT_EQ(once[rank].losses, again[0].losses);
        EXPECT_EQ(once[rank].norms, again[0].norms);
      }
    }
  }
}

// More ranks than a step has documents, too: of 60 rows a step has about five.
TEST(StepperTest, SeveralRanksTrainAsOne) {
  for (const bool tied : {true, false}) {
    for (const DType compute : {DType::kF32, DType::kBF16}) {
      const bool wide = compute == DType::kF32;
      const Trained one = Train({.compute = compute, .tied = tied, .masked = true})[0];
      for (const int ranks : {2, 3, 4, 9}) {
        const Trained many =
            Train({.ranks = ranks, .compute = compute, .tied = tied, .masked = true})[0];
        ASSERT_EQ(many.losses.size(), one.losses.size());
        for (size_t i = 0; i < one.losses.size(); ++i) {
          EXPECT_NEAR(many.losses[i], one.losses[i], wide ? 1e-5 : 2e-2) << ranks << " " << i;
          EXPECT_NEAR(many.norms[i], one.norms[i], (wide ? 1e-4 : 0.1) * one.norms[i]) << ranks;
        }
        // AdamW's first updates are of the size of the learning rate whatever the gradient's is.
        EXPECT_LT(LargestDifference(many.masters, one.masters), wide ? 1e-3 : 6e-2) << ranks;
      }
    }
  }
}

TEST(StepperTest, AStepThatIsNotFiniteOnOneRankIsSkippedOnAll) {
  for (const int ranks : {1, 2, 3}) {
    std::vector<Trained> trained = Train(
        {.ranks = ranks, .steps = 4, .before = [&](SmallStudent& student, int rank, uint64_t step) {
           // What one rank reads; the masters, from which an update makes it anew, stay whole.
           if (rank != ranks - 1 || (step != 2 && step != 3)) return;
           ASSERT_TRUE(student.zero2->AwaitAllWeights().ok());
           const TensorView weights = student.state->Weights();
           const FlatParameter* norm = student.state->layout.Find("model.norm.weight");
           float& value = static_cast<float*>(weights.data)[norm->offset];
           static float kept = 0;
           if (step == 2) kept = value;
           value = step == 2 ? std::nanf("") : kept;
         }});
    for (const Trained& one : trained) {
      EXPECT_TRUE(one.end.ok()) << one.end;
      EXPECT_EQ(one.skipped, (SkippedSteps{1, 0})) << ranks;
      ASSERT_EQ(one.losses.size(), 4u);
      EXPECT_TRUE(std::isnan(one.losses[1]));
      EXPECT_TRUE(std::isfinite(one.losses[3]));
    }
    for (const float master : trained[0].masters) ASSERT_TRUE(std::isfinite(master));
  }
}

TEST(StepperTest, TooManyStepsInARowThatAreNotFiniteStopTheRunAndChangeNothing) {
  for (const int ranks : {1, 2}) {
    const auto spoil = [](SmallStudent& student, int, uint64_t step) {
      if (step != 2) return;
      ASSERT_TRUE(student.zero2->AwaitAllWeights().ok());
      const FlatParameter* norm = student.state->layout.Find("model.norm.weight");
      static_cast<uint16_t*>(student.state->Weights().data)[norm->offset] =
          FloatToBf16(std::nanf(""));
    };
    const std::vector<Trained> trained =
        Train({.ranks = ranks, .compute = DType::kBF16, .steps = 20, .before = spoil});
    for (const Trained& one : trained) {
      EXPECT_EQ(StopOf(one.end), RunStop::kDiverged) << one.end;
      EXPECT_EQ(one.losses.size(), kSkippedInARowMax);  // the first, and those skipped but the last
      EXPECT_EQ(one.skipped, (SkippedSteps{kSkippedInARowMax, kSkippedInARowMax}));
    }
    EXPECT_EQ(trained[0].masters,
              Train({.ranks = ranks, .compute = DType::kBF16, .steps = 1})[0].masters);
  }
}

TEST(DealDocumentsTest, GivesEachToTheRankWithFewestRowsAndTheLowestOfEquals) {
  const auto plan = MakeTestPlan({});
  std::vector<uint32_t> documents;
  for (uint32_t d = 0; d < 20; ++d) documents.push_back(d);
  const auto dealt = DealDocuments(*plan, documents, 3);
  EXPECT_EQ(dealt[0].front(), 0u);
  EXPECT_EQ(dealt[1].front(), 1u);
  EXPECT_EQ(dealt[2].front(), 2u);
  std::vector<uint32_t> all;
  uint64_t fewest = UINT64_MAX, most = 0;
  for (const std::vector<uint32_t>& mine : dealt) {
    EXPECT_TRUE(std::is_sorted(mine.begin(), mine.end()));
    all.insert(all.end(), mine.begin(), mine.end());
    uint64_t rows = 0;
    for (const uint32_t d : mine) rows += plan->document(d).rows();
    fewest = std::min(fewest, rows);
    most = std::max(most, rows);
  }
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, documents);
  EXPECT_LE(most - fewest, 20u);  // the longest document
  const std::vector<uint32_t> two = {4, 5};
  EXPECT_THAT(DealDocuments(*plan, two, 4),
              testing::ElementsAre(testing::ElementsAre(4), testing::ElementsAre(5),
                                   testing::IsEmpty(), testing::IsEmpty()));
}

TEST(SplitStepTest, CountsAllRanksAndTheMostMicroBatches) {
  const auto plan = MakeTestPlan({.masked = true});
  std::vector<uint32_t> documents;
  for (uint32_t d = 0; d < 12; ++d) documents.push_back(d);
  const StepSplit split = SplitStep(*plan, documents, 2, 25, true);
  uint64_t rows = 0, counted = 0;
  for (const uint32_t d : documents) {
    rows += plan->document(d).rows();
    counted += CountedRows(plan->document(d));
  }
  EXPECT_EQ(split.rows, rows);
  EXPECT_EQ(split.counted_rows, counted);
  EXPECT_LT(counted, rows);
  size_t most = 0;
  for (const std::vector<uint32_t>& mine : split.documents) {
    const std::vector<DocumentGroup> groups = MicroBatchesOf(*plan, mine, 25, true);
    most = std::max(most, groups.size());
    size_t next = 0;
    for (const DocumentGroup& group : groups) {
      EXPECT_EQ(group.begin, next);
      next = group.end;
    }
    EXPECT_EQ(next, mine.size());
  }
  EXPECT_EQ(split.micro_batches, most);
  EXPECT_EQ(SplitStep(*plan, {}, 2, 25, true).micro_batches, 0u);
}

}  // namespace
}  // namespace stillhouse
