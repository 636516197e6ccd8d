// Signals as events of a loop.
#pragma once

#include <signal.h>

#include <functional>
#include <memory>

#include "common/event_loop.h"

namespace stillhouse {

// While it lives, SIGINT, SIGTERM, SIGHUP and SIGCHLD are blocked and arrive as calls of
// `on_signal` on the loop. REQUIRES: made before other threads are (they inherit the mask), one at
// a time, and destroyed on the loop's thread or after the loop has ended.
class SignalWatch {
 public:
  SignalWatch(EventLoop& loop, std::function<void(int signal)> on_signal);
  ~SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

 private:
  EventLoop& loop_;
  std::function<void(int)> on_signal_;
  sigset_t old_mask_;
  int fd_;
};

}  // namespace stillhouse
