#include "common/clock.h"

#include <time.h>

#include "absl/time/clock.h"

namespace stillhouse {
namespace {

class MonotonicClock final : public Clock {
 public:
  absl::Duration Now() const override {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return absl::Seconds(now.tv_sec) + absl::Nanoseconds(now.tv_nsec);
  }
};

}  // namespace

Clock& SystemClock() {
  static MonotonicClock* clock =
      new MonotonicClock;  // never destroyed: used until the last thread ends
  return *clock;
}

absl::Time WallNow() { return absl::Now(); }

}  // namespace stillhouse
