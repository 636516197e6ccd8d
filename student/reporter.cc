#include "student/reporter.h"

#include <utility>

#include "common/blocking.h"
#include "common/log.h"
#include "common/status.h"
#include "student/run_stop.h"
#include "student/services.h"

namespace stillhouse {

Reporter::Reporter(Executor& executor, RunClient& run, absl::Duration every,
                   absl::AnyInvocable<void(absl::Status)> on_cancelled)
    : executor_(executor),
      run_(run),
      every_(every),
      on_cancelled_(std::move(on_cancelled)),
      self_(std::make_shared<Reporter*>(this)) {
  executor_.Post([weak = std::weak_ptr<Reporter*>(self_)] {
    if (const auto self = weak.lock()) (*self)->Tick();
  });
}

Reporter::~Reporter() {
  // On the executor, so that no callback is in the middle of this object.
  RunOnExecutor(executor_, [this] {
    if (timer_ != 0) executor_.Cancel(timer_);
    self_.reset();
  });
}

void Reporter::Update(absl::FunctionRef<void(RunReport&)> change) {
  MutexLock lock(mutex_);
  change(report_);
}

RunReport Reporter::Snapshot() {
  MutexLock lock(mutex_);
  return report_;
}

void Reporter::OnAnswer(absl::StatusOr<bool> answer) {
  if (on_cancelled_ == nullptr) return;
  if (answer.ok() && !*answer) return;
  if (!answer.ok() && !absl::IsAborted(answer.status())) {
    // A report is not worth a run: training goes on, the next report may come through.
    LogWarning("report not delivered: ", answer.status().message());
    return;
  }
  auto on_cancelled = std::exchange(on_cancelled_, nullptr);
  on_cancelled(answer.ok() ? StopStatus(RunStop::kCancelled, "the run was cancelled")
                           : StopStatus(RunStop::kSuperseded, answer.status().message()));
}

void Reporter::Tick() {
  timer_ = executor_.PostAfter(every_, [weak = std::weak_ptr<Reporter*>(self_)] {
    if (const auto self = weak.lock()) (*self)->Tick();
  });
  if (in_flight_) return;
  RunReport report = Snapshot();
  if (report.phase.empty()) return;
  in_flight_ = true;
  run_.Report(std::move(report),
              [weak = std::weak_ptr<Reporter*>(self_)](absl::StatusOr<bool> answer) {
                const auto self = weak.lock();
                if (self == nullptr) return;
                (*self)->in_flight_ = false;
                (*self)->OnAnswer(std::move(answer));
              });
}

absl::Status Reporter::Flush() {
  return CallAndWait<bool>(executor_,
                           [this](auto done) { run_.Report(Snapshot(), std::move(done)); })
      .status();
}

}  // namespace stillhouse
