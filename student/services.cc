#include "student/services.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "common/blocking.h"
#include "common/status.h"
#include "student/chunk_watch.h"

namespace stillhouse {
namespace {

// Short enough for a signal to be noticed, long enough to cost nothing.
constexpr absl::Duration kPauseMin = absl::Milliseconds(20);
constexpr absl::Duration kPauseMax = absl::Seconds(1);

void Pause(Executor& executor, absl::Duration pause) {
  CallAndWait<bool>(executor, [&executor, pause](auto done) {
    executor.PostAfter(pause, [done = std::move(done)]() mutable { done(true); });
  }).IgnoreError();
}

}  // namespace

void RunOnExecutor(Executor& executor, absl::AnyInvocable<void()> call) {
  CallAndWait<bool>(executor, [&call](auto done) {
    call();
    done(true);
  }).IgnoreError();
}

absl::Status CheckStop(const Services& services) {
  if (!services.stop.load(std::memory_order_relaxed)) return absl::OkStatus();
  return StopStatus(RunStop::kTerminated, "asked to stop by a signal; started again, it continues");
}

absl::Status AwaitChunk(const Services& services, uint32_t chunk,
                        absl::Duration needs_teacher_grace) {
  ChunkWatch watch(chunk, needs_teacher_grace);
  for (;;) {
    SH_RETURN_IF_ERROR(CheckStop(services));
    SH_ASSIGN_OR_RETURN_AT(
        const WantAnswer answer,
        CallAndWait<WantAnswer>(
            services.executor,
            [&](auto done) {
              services.run.Want({{chunk, absl::ZeroDuration()}}, std::move(done));
            }),
        "asking the coordinator for a chunk");
    if (answer.cancelled) return StopStatus(RunStop::kCancelled, "the run was cancelled");
    if (answer.states.size() != 1) {
      return absl::InternalError("the coordinator answered for other chunks than asked");
    }
    watch.Note(answer.states[0], services.executor.clock().Now());
    if (watch.durable()) return absl::OkStatus();
    SH_RETURN_IF_ERROR(watch.problem());
    Pause(services.executor, std::clamp(answer.retry, kPauseMin, kPauseMax));
  }
}

absl::StatusOr<std::shared_ptr<const std::string>> FetchObject(const Services& services,
                                                               const std::string& name) {
  return CallAndWait<std::shared_ptr<const std::string>>(
      services.executor, [&](auto done) { services.cache.GetObject(name, std::move(done)); });
}

}  // namespace stillhouse
