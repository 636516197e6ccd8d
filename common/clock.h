// Time that logic may depend on. Monotonic only: wall time is for people (log lines, reports).
#pragma once

#include "absl/time/time.h"

namespace stillhouse {

// Thread-safe. Now() never goes back; its origin is arbitrary and differs between processes, so
// only durations travel on the wire.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Duration Now() const = 0;
};

// CLOCK_MONOTONIC. Lives for ever.
Clock& SystemClock();

// Wall time, for people only: never compare it with a deadline.
absl::Time WallNow();

}  // namespace stillhouse
