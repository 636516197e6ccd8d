// ManualExecutor: an Executor whose time moves only when a test (or the simulator) says so.
//
// Single-threaded: everything happens inside RunUntilIdle and Advance.
#pragma once

#include <deque>
#include <map>
#include <utility>

#include "common/executor.h"

namespace stillhouse {

class ManualClock final : public Clock {
 public:
  absl::Duration Now() const override { return now_; }
  void Set(absl::Duration now) { now_ = now; }

 private:
  absl::Duration now_ = absl::ZeroDuration();
};

class ManualExecutor final : public Executor {
 public:
  void Post(Task task) override { posted_.push_back(std::move(task)); }
  TimerId PostAfter(absl::Duration delay, Task task) override;
  bool Cancel(TimerId timer) override;
  const Clock& clock() const override { return clock_; }

  // Runs what is posted and due, and what that posts, until nothing is. Time stands still.
  void RunUntilIdle();
  // Moves time on by `step`, stopping at every timer on the way to run it at its own moment.
  void Advance(absl::Duration step);

 private:
  ManualClock clock_;
  std::deque<Task> posted_;
  std::map<std::pair<absl::Duration, TimerId>, Task> timers_;
  TimerId next_timer_ = 1;
};

}  // namespace stillhouse
