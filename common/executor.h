// Executor: where event-driven objects run. Coordinator, agent, cache client and server, prefetcher
// are plain objects that are called by, and post to, one Executor; none of them owns a thread or
// blocks.
//
// Ordering: functions posted by one thread run in the order posted; timers run in order of
// deadline. Threads: Post, PostAfter and Cancel may be called from any thread; the functions of one
// Executor never run at the same time as one another, except on a ThreadPool, which says so.
#pragma once

#include <cstdint>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace stillhouse {

using Task = absl::AnyInvocable<void()>;
using TimerId = uint64_t;  // 0 is never a timer

class Executor {
 public:
  virtual ~Executor() = default;
  virtual void Post(Task task) = 0;
  virtual TimerId PostAfter(absl::Duration delay, Task task) = 0;
  // True if the timer had not yet started and now never will.
  virtual bool Cancel(TimerId timer) = 0;
  virtual const Clock& clock() const = 0;
};

}  // namespace stillhouse
