#include "sharding/schedule.h"

#include <cmath>
#include <numbers>

#include "common/status.h"

namespace stillhouse {

double LearningRateAt(const LearningRateSchedule& schedule, uint64_t step) {
  SH_CHECK(1 <= step && step <= schedule.steps, step, " of ", schedule.steps);
  const auto warmup =
      static_cast<uint64_t>(std::llround(schedule.warmup * static_cast<double>(schedule.steps)));
  if (step <= warmup) {
    return schedule.peak * static_cast<double>(step) / static_cast<double>(warmup);
  }
  if (schedule.shape == LearningRateSchedule::Shape::kConstant) return schedule.peak;
  const double after = static_cast<double>(step - warmup);
  const double length = static_cast<double>(schedule.steps - warmup + 1);
  return schedule.peak * 0.5 * (1 + std::cos(std::numbers::pi * after / length));
}

}  // namespace stillhouse
