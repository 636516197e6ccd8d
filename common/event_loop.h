// EventLoop: the Executor of a real process, on one thread, with readiness of file descriptors.
//
// Owner: the main (or a thread that a main owns). Run() is called once, on the thread that then
// runs every task. Post, PostAfter, Cancel and Stop may be called from any thread.
#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "common/executor.h"
#include "common/mutex.h"

namespace stillhouse {

class EventLoop final : public Executor {
 public:
  EventLoop();
  ~EventLoop() override;

  void Post(Task task) override;
  TimerId PostAfter(absl::Duration delay, Task task) override;
  bool Cancel(TimerId timer) override;
  const Clock& clock() const override { return SystemClock(); }

  // Calls `on_readable` on the loop thread whenever `fd` is readable, until UnwatchFd.
  // Level-triggered. REQUIRES: called on the loop thread, or before Run().
  void WatchFd(int fd, absl::AnyInvocable<void()> on_readable);
  void UnwatchFd(int fd);

  void Run();   // returns after Stop(); tasks still queued then are destroyed, not run
  void Stop();  // idempotent

 private:
  void Wake();
  bool RunDueTasks();  // false once stopped
  int PollTimeoutMs() const;

  struct Watch;
  mutable Mutex mutex_;
  std::vector<Task> posted_ ABSL_GUARDED_BY(mutex_);
  std::map<std::pair<absl::Duration, TimerId>, Task> timers_ ABSL_GUARDED_BY(mutex_);
  std::map<TimerId, absl::Duration> deadlines_ ABSL_GUARDED_BY(mutex_);
  TimerId next_timer_ ABSL_GUARDED_BY(mutex_) = 1;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;

  std::map<int, std::shared_ptr<Watch>> watches_;  // loop thread only
  int wake_fd_;                                    // constant after construction
};

}  // namespace stillhouse
