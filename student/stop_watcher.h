// StopWatcher: turns the stop flag of Services into a call on the executor, for those who wait
// there.
#pragma once

#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "student/services.h"

namespace stillhouse {

class StopWatcher {
 public:
  // `on_stop` is called at most once, on the executor, with CheckStop's status. REQUIRES:
  // constructed and destroyed on another thread than the executor's.
  StopWatcher(const Services& services, absl::AnyInvocable<void(absl::Status)> on_stop);
  ~StopWatcher();
  StopWatcher(const StopWatcher&) = delete;
  StopWatcher& operator=(const StopWatcher&) = delete;

 private:
  void Look();

  const Services services_;
  // Executor only.
  absl::AnyInvocable<void(absl::Status)> on_stop_;
  TimerId timer_ = 0;
};

}  // namespace stillhouse
