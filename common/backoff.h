// Backoff: capped exponential delays with full jitter, so that a crowd of retries spreads out.
#pragma once

#include <algorithm>

#include "absl/time/time.h"
#include "common/random.h"

namespace stillhouse {

class Backoff {
 public:
  struct Options {
    absl::Duration first = absl::Milliseconds(100);
    absl::Duration max = absl::Seconds(10);
    uint64_t seed = 0;
  };
  explicit Backoff(const Options& options) : options_(options), random_(options.seed) {}

  // Between half and all of first · 2^attempts, at most max.
  absl::Duration Next() {
    const absl::Duration full = std::min(options_.max, options_.first * (1ll << attempts_));
    attempts_ = std::min(attempts_ + 1, 20);
    return full * (0.5 + 0.5 * random_.NextUniform());
  }
  void Reset() { attempts_ = 0; }

 private:
  Options options_;
  RandomStream random_;
  int attempts_ = 0;
};

}  // namespace stillhouse
