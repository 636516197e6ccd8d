#include "formats/parallel_blocks.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "common/mutex.h"

namespace stillhouse {

absl::Status ForEachBlock(size_t count, absl::FunctionRef<absl::Status(size_t)> work) {
  std::atomic<size_t> next{0};  // the next block nobody has taken
  Mutex mutex;
  absl::Status first;  // guarded by `mutex`, as is the place of its block
  size_t first_block = count;
  const auto run = [&] {
    for (size_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      absl::Status status = work(i);
      if (status.ok()) continue;
      MutexLock lock(mutex);
      if (i < first_block) {
        first_block = i;
        first = std::move(status);
      }
      next = count;
    }
  };
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  const size_t threads = std::min<size_t>({cores, kBlockThreadsMax, count});
  std::vector<std::thread> others;
  for (size_t i = 1; i < threads; ++i) others.emplace_back(run);
  run();
  for (std::thread& other : others) other.join();
  return first;
}

}  // namespace stillhouse
