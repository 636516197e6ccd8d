#include "common/manual_executor.h"

#include <algorithm>

namespace stillhouse {

TimerId ManualExecutor::PostAfter(absl::Duration delay, Task task) {
  const TimerId id = next_timer_++;
  timers_.emplace(std::make_pair(clock_.Now() + std::max(delay, absl::ZeroDuration()), id),
                  std::move(task));
  return id;
}

bool ManualExecutor::Cancel(TimerId timer) {
  auto it = std::find_if(timers_.begin(), timers_.end(),
                         [&](const auto& entry) { return entry.first.second == timer; });
  if (it == timers_.end()) return false;
  timers_.erase(it);
  return true;
}

void ManualExecutor::RunUntilIdle() {
  for (;;) {
    Task task;
    if (!posted_.empty()) {
      task = std::move(posted_.front());
      posted_.pop_front();
    } else if (!timers_.empty() && timers_.begin()->first.first <= clock_.Now()) {
      task = std::move(timers_.begin()->second);
      timers_.erase(timers_.begin());
    } else {
      return;
    }
    task();
  }
}

void ManualExecutor::Advance(absl::Duration step) {
  const absl::Duration end = clock_.Now() + step;
  RunUntilIdle();
  while (!timers_.empty() && timers_.begin()->first.first <= end) {
    clock_.Set(std::max(clock_.Now(), timers_.begin()->first.first));
    RunUntilIdle();
  }
  clock_.Set(end);
  RunUntilIdle();
}

}  // namespace stillhouse
