// The learning rate of a step: linear warm-up, then constant or one half-cosine down to zero
// (Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts). A pure function.
#pragma once

#include <cstdint>

namespace stillhouse {

struct LearningRateSchedule {
  double peak = 0;
  uint64_t steps = 1;   // of the whole run
  double warmup = 0.1;  // share of the steps, in [0, 1]
  enum class Shape { kCosine, kConstant } shape = Shape::kCosine;
};

// The rate of update `step`, 1 to steps. With w = round(warmup · steps): peak · step / w up to w,
// so that step w is at the peak; after it the cosine reaches zero one step past the last, so that
// no update is without effect. REQUIRES: 1 <= step <= steps.
double LearningRateAt(const LearningRateSchedule& schedule, uint64_t step);

}  // namespace stillhouse
