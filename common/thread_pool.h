// ThreadPool: runs blocking work (RocksDB, file systems) away from an event loop.
//
// Tasks run concurrently, started in the order posted. The destructor runs what is queued, then
// joins.
#pragma once

#include <deque>
#include <thread>
#include <vector>

#include "common/executor.h"
#include "common/mutex.h"

namespace stillhouse {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  void Post(Task task);  // any thread

 private:
  void RunThread();

  Mutex mutex_;
  CondVar changed_;
  std::deque<Task> queue_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;  // constant after construction
};

}  // namespace stillhouse
