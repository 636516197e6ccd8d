// CallAndWait: an asynchronous call, waited for by a thread that may block (a trainer's, a tool's).
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "common/executor.h"
#include "common/mutex.h"

namespace stillhouse {

// Posts `start(done)` to the executor and waits until `done(StatusOr<T>)` is called:
//   CallAndWait<StoreAck>(loop, [&](auto done) { client.Put(parts, provenance, std::move(done)); })
// REQUIRES: not called on the executor's own thread; the executor runs until then.
template <typename T, typename Start>
absl::StatusOr<T> CallAndWait(Executor& executor, Start start) {
  struct State {
    Mutex mutex;
    CondVar changed;
    std::optional<absl::StatusOr<T>> result ABSL_GUARDED_BY(mutex);
  };
  auto state = std::make_shared<State>();
  executor.Post([state, start = std::move(start)]() mutable {
    start([state](absl::StatusOr<T> result) {
      MutexLock lock(state->mutex);
      state->result = std::move(result);
      state->changed.NotifyAll();
    });
  });
  MutexLock lock(state->mutex);
  while (!state->result.has_value()) state->changed.Wait(state->mutex);
  return *std::move(state->result);
}

}  // namespace stillhouse
