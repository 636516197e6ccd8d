#include "sharding/schedule.h"

#include <cmath>

#include "gtest/gtest.h"

namespace stillhouse {
namespace {

TEST(LearningRateTest, WarmsUpToThePeakAndFallsToAlmostZero) {
  const LearningRateSchedule schedule{.peak = 5e-4, .steps = 40, .warmup = 0.1};
  EXPECT_DOUBLE_EQ(LearningRateAt(schedule, 1), 5e-4 / 4);
  EXPECT_DOUBLE_EQ(LearningRateAt(schedule, 4), 5e-4);
  for (uint64_t step = 5; step <= 40; ++step) {
    EXPECT_LT(LearningRateAt(schedule, step), LearningRateAt(schedule, step - 1));
    // 37 equal steps of the half-cosine, the last of which would reach zero.
    EXPECT_NEAR(LearningRateAt(schedule, step),
                2.5e-4 * (1 + std::cos(M_PI * static_cast<double>(step - 4) / 37)), 1e-18);
  }
  EXPECT_GT(LearningRateAt(schedule, 40), 0);
}

TEST(LearningRateTest, StaysConstantWhenAsked) {
  const LearningRateSchedule schedule{
      .peak = 1, .steps = 10, .warmup = 0.2, .shape = LearningRateSchedule::Shape::kConstant};
  EXPECT_DOUBLE_EQ(LearningRateAt(schedule, 1), 0.5);
  for (uint64_t step = 2; step <= 10; ++step) EXPECT_DOUBLE_EQ(LearningRateAt(schedule, step), 1);
}

TEST(LearningRateTest, HandlesNoWarmUpAndOnlyWarmUp) {
  EXPECT_DOUBLE_EQ(LearningRateAt({.peak = 1, .steps = 1, .warmup = 0}, 1), 0.5);
  EXPECT_DOUBLE_EQ(LearningRateAt({.peak = 1, .steps = 4, .warmup = 1}, 4), 1);
  EXPECT_DOUBLE_EQ(LearningRateAt({.peak = 1, .steps = 4, .warmup = 1}, 1), 0.25);
}

}  // namespace
}  // namespace stillhouse
