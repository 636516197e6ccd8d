#include "sharding/keep_forever.h"

#include <utility>
#include <vector>

#include "common/mutex.h"

namespace stillhouse {

void KeepForever(std::shared_ptr<void> memory) {
  if (memory == nullptr) return;
  static Mutex& mutex = *new Mutex;
  static auto& kept = *new std::vector<std::shared_ptr<void>>;
  MutexLock lock(mutex);
  kept.push_back(std::move(memory));
}

}  // namespace stillhouse
