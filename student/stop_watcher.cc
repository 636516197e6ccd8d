#include "student/stop_watcher.h"

#include <utility>

namespace stillhouse {
namespace {

constexpr absl::Duration kPeriod = absl::Milliseconds(100);

}  // namespace

StopWatcher::StopWatcher(const Services& services, absl::AnyInvocable<void(absl::Status)> on_stop)
    : services_(services), on_stop_(std::move(on_stop)) {
  RunOnExecutor(services_.executor, [this] { Look(); });
}

StopWatcher::~StopWatcher() {
  RunOnExecutor(services_.executor, [this] {
    if (timer_ != 0) services_.executor.Cancel(timer_);
  });
}

void StopWatcher::Look() {
  timer_ = 0;
  const absl::Status status = CheckStop(services_);
  if (!status.ok()) return on_stop_(status);
  timer_ = services_.executor.PostAfter(kPeriod, [this] { Look(); });
}

}  // namespace stillhouse
