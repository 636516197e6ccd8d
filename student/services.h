// Services: what a run needs of the process around it, and how a thread that may block uses it.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/digest.h"
#include "common/executor.h"
#include "sharding/communicator.h"
#include "storage/service/cache_client.h"
#include "student/run_stop.h"
#include "worker/run_client.h"

namespace stillhouse {

// All references must outlive the run. `stop` is set by a signal handler's watcher; the run looks
// at it between micro-batches (several ranks: between steps) and while it waits. Each rank has
// services of its own.
struct Services {
  Executor& executor;
  RunClient& run;
  CacheClient& cache;
  const std::atomic<bool>& stop;
  Communicator* communicator = nullptr;  // of the run's ranks; null: one alone
};

// Runs `call` on the executor and waits for it. REQUIRES: not on the executor's thread.
void RunOnExecutor(Executor& executor, absl::AnyInvocable<void()> call);

// StopStatus(kTerminated) once `stop` is set.
absl::Status CheckStop(const Services& services);

// Waits until the chunk is durable. A RunStop status when it will not be.
absl::Status AwaitChunk(const Services& services, uint32_t chunk,
                        absl::Duration needs_teacher_grace);

// An object of the cache, waited for. NotFound when it is absent.
absl::StatusOr<std::shared_ptr<const std::string>> FetchObject(const Services& services,
                                                               const std::string& name);

}  // namespace stillhouse
