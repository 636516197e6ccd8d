// Reporter: tells the coordinator how a run goes, about every second, whatever the trainer is
// doing.
//
// Threads: Update and cancelled from any thread; the reports go out on the executor. Latest wins.
#pragma once

#include <atomic>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "common/executor.h"
#include "common/mutex.h"
#include "worker/run_client.h"

namespace stillhouse {

class Reporter {
 public:
  // `on_cancelled` is called once, on the executor, when the coordinator says that the run is
  // cancelled or that a newer process has it. `executor` and `run` must outlive the reporter.
  Reporter(Executor& executor, RunClient& run, absl::Duration every,
           absl::AnyInvocable<void(absl::Status)> on_cancelled);
  // REQUIRES: not on the executor's thread.
  ~Reporter();
  Reporter(const Reporter&) = delete;
  Reporter& operator=(const Reporter&) = delete;

  void Update(absl::FunctionRef<void(RunReport&)> change);
  // Sends what there is now and waits for the answer. REQUIRES: not on the executor's thread.
  absl::Status Flush();

 private:
  void Tick();
  RunReport Snapshot();
  void OnAnswer(absl::StatusOr<bool> answer);

  Executor& executor_;
  RunClient& run_;
  const absl::Duration every_;
  Mutex mutex_;
  RunReport report_ ABSL_GUARDED_BY(mutex_);
  // Executor only.
  absl::AnyInvocable<void(absl::Status)> on_cancelled_;
  bool in_flight_ = false;
  TimerId timer_ = 0;
  std::shared_ptr<Reporter*> self_;
};

}  // namespace stillhouse
