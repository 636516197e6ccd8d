#include "common/event_loop.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "common/status.h"

namespace stillhouse {

struct EventLoop::Watch {
  absl::AnyInvocable<void()> on_readable;
};

EventLoop::EventLoop() : wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  SH_CHECK(wake_fd_ >= 0, "eventfd failed, errno ", errno);
}

EventLoop::~EventLoop() { close(wake_fd_); }

void EventLoop::Post(Task task) {
  {
    MutexLock lock(mutex_);
    if (stopped_) return;
    posted_.push_back(std::move(task));
  }
  Wake();
}

TimerId EventLoop::PostAfter(absl::Duration delay, Task task) {
  TimerId id = 0;
  {
    MutexLock lock(mutex_);
    id = next_timer_++;
    const absl::Duration deadline = clock().Now() + std::max(delay, absl::ZeroDuration());
    timers_.emplace(std::make_pair(deadline, id), std::move(task));
    deadlines_.emplace(id, deadline);
  }
  Wake();
  return id;
}

bool EventLoop::Cancel(TimerId timer) {
  Task dropped;  // destroyed after the lock is gone: its captures may call back
  MutexLock lock(mutex_);
  auto it = deadlines_.find(timer);
  if (it == deadlines_.end()) return false;
  auto entry = timers_.find(std::make_pair(it->second, timer));
  dropped = std::move(entry->second);
  timers_.erase(entry);
  deadlines_.erase(it);
  return true;
}

void EventLoop::WatchFd(int fd, absl::AnyInvocable<void()> on_readable) {
  watches_[fd] = std::make_shared<Watch>(Watch{std::move(on_readable)});
}

void EventLoop::UnwatchFd(int fd) { watches_.erase(fd); }

void EventLoop::Wake() {
  const uint64_t one = 1;
  // EAGAIN means the counter is full, so the loop is awake already.
  [[maybe_unused]] const ssize_t written = write(wake_fd_, &one, sizeof(one));
}

void EventLoop::Stop() {
  {
    MutexLock lock(mutex_);
    stopped_ = true;
  }
  Wake();
}

bool EventLoop::RunDueTasks() {
  std::vector<Task> due;
  {
    MutexLock lock(mutex_);
    if (stopped_) return false;
    due.swap(posted_);
  }
  for (Task& task : due) {
    task();
    task = nullptr;
    MutexLock lock(mutex_);
    if (stopped_) return false;
  }
  // One timer at a time, so that a timer that runs may cancel the next.
  const absl::Duration now = clock().Now();
  for (;;) {
    Task task;
    {
      MutexLock lock(mutex_);
      if (stopped_) return false;
      if (timers_.empty() || timers_.begin()->first.first > now) return true;
      deadlines_.erase(timers_.begin()->first.second);
      task = std::move(timers_.begin()->second);
      timers_.erase(timers_.begin());
    }
    task();
  }
}

int EventLoop::PollTimeoutMs() const {
  MutexLock lock(mutex_);
  if (stopped_ || !posted_.empty()) return 0;
  if (timers_.empty()) return -1;
  const absl::Duration wait = timers_.begin()->first.first - clock().Now();
  if (wait <= absl::ZeroDuration()) return 0;
  return static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(wait) + 1, 3'600'000));
}

void EventLoop::Run() {
  while (RunDueTasks()) {
    std::vector<pollfd> fds = {{wake_fd_, POLLIN, 0}};
    for (const auto& [fd, watch] : watches_) fds.push_back({fd, POLLIN, 0});
    const int ready = poll(fds.data(), fds.size(), PollTimeoutMs());
    if (ready < 0) {
      SH_CHECK(errno == EINTR, "poll failed, errno ", errno);
      continue;
    }
    if (fds[0].revents != 0) {
      uint64_t count = 0;
      [[maybe_unused]] const ssize_t got = read(wake_fd_, &count, sizeof(count));
    }
    for (size_t i = 1; i < fds.size(); ++i) {
      if (fds[i].revents == 0) continue;
      auto it = watches_.find(fds[i].fd);  // an earlier callback may have removed it
      if (it == watches_.end()) continue;
      const std::shared_ptr<Watch> keep = it->second;
      keep->on_readable();
    }
  }
}

}  // namespace stillhouse
