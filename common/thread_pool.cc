#include "common/thread_pool.h"

#include "common/status.h"

namespace stillhouse {

ThreadPool::ThreadPool(int threads) {
  SH_CHECK(threads > 0);
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { RunThread(); });
}

ThreadPool::~ThreadPool() {
  {
    MutexLock lock(mutex_);
    closing_ = true;
  }
  changed_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Post(Task task) {
  {
    MutexLock lock(mutex_);
    SH_CHECK(!closing_, "posted to a pool that is being destroyed");
    queue_.push_back(std::move(task));
  }
  changed_.NotifyOne();
}

void ThreadPool::RunThread() {
  for (;;) {
    Task task;
    {
      MutexLock lock(mutex_);
      while (queue_.empty() && !closing_) changed_.Wait(mutex_);
      if (queue_.empty()) return;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task();
  }
}

}  // namespace stillhouse
