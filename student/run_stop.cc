#include "student/run_stop.h"

#include "absl/strings/cord.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"

namespace stillhouse {
namespace {

constexpr char kPayload[] = "stillhouse/run-stop";

struct Kind {
  RunStop stop;
  absl::string_view name;
  absl::StatusCode code;
};
constexpr Kind kKinds[] = {
    {RunStop::kFailed, "failed", absl::StatusCode::kUnknown},
    {RunStop::kFinished, "finished", absl::StatusCode::kOk},
    {RunStop::kCancelled, "cancelled", absl::StatusCode::kCancelled},
    {RunStop::kTerminated, "terminated", absl::StatusCode::kCancelled},
    {RunStop::kSuperseded, "superseded", absl::StatusCode::kAborted},
    {RunStop::kPoisoned, "poisoned", absl::StatusCode::kFailedPrecondition},
    {RunStop::kNeedsTeacher, "needs_teacher", absl::StatusCode::kFailedPrecondition},
    {RunStop::kExcluded, "excluded", absl::StatusCode::kFailedPrecondition},
    {RunStop::kLost, "lost", absl::StatusCode::kDataLoss},
    {RunStop::kNoCheckpoint, "no_checkpoint", absl::StatusCode::kDataLoss},
    {RunStop::kDiverged, "diverged", absl::StatusCode::kInternal},
    {RunStop::kRankLost, "rank_lost", absl::StatusCode::kUnavailable},
};

const Kind& KindOf(RunStop stop) {
  for (const Kind& kind : kKinds) {
    if (kind.stop == stop) return kind;
  }
  SH_CHECK(false, "no such stop");
}

}  // namespace

absl::string_view RunStopName(RunStop stop) { return KindOf(stop).name; }

std::optional<RunStop> RunStopOfName(absl::string_view name) {
  for (const Kind& kind : kKinds) {
    if (kind.name == name) return kind.stop;
  }
  return std::nullopt;
}

int RunStopExitCode(RunStop stop, const absl::Status& status) {
  switch (stop) {
    case RunStop::kFinished:
      return kExitOk;
    case RunStop::kCancelled:
      return kExitInterrupted;
    case RunStop::kTerminated:
      return kExitTerminated;
    case RunStop::kPoisoned:
    case RunStop::kNeedsTeacher:
    case RunStop::kExcluded:
    case RunStop::kLost:
    case RunStop::kDiverged:
      return kExitDoNotRequeue;
    case RunStop::kNoCheckpoint:
      return kExitCorrupt;
    case RunStop::kSuperseded:
    case RunStop::kRankLost:
    case RunStop::kFailed:
      break;
  }
  return ExitCodeFor(status);
}

absl::Status StopStatus(RunStop stop, absl::string_view message) {
  SH_CHECK(stop != RunStop::kFinished);
  const Kind& kind = KindOf(stop);
  absl::Status status(kind.code, message);
  status.SetPayload(kPayload, absl::Cord(kind.name));
  return status;
}

RunStop StopOf(const absl::Status& status) {
  if (status.ok()) return RunStop::kFinished;
  if (const auto payload = status.GetPayload(kPayload); payload.has_value()) {
    return RunStopOfName(std::string(*payload)).value_or(RunStop::kFailed);
  }
  return RunStop::kFailed;
}

absl::Status SupersededIfAborted(const absl::Status& status) {
  if (!absl::IsAborted(status) || StopOf(status) != RunStop::kFailed) return status;
  absl::Status superseded = StopStatus(RunStop::kSuperseded, status.message());
  status.ForEachPayload([&](absl::string_view name, const absl::Cord& payload) {
    if (name != kPayload) superseded.SetPayload(name, payload);
  });
  return superseded;
}

absl::Status WriteExitFile(const std::string& run_folder, const absl::Status& status,
                           uint64_t step) {
  const RunStop stop = StopOf(status);
  OrderedJson json;
  json["kind"] = std::string(RunStopName(stop));
  json["exit_code"] = RunStopExitCode(stop, status);
  json["message"] = std::string(status.message());
  json["step"] = step;
  return WriteFileAtomically(JoinPath(run_folder, "exit.json"), json.dump(2) + "\n");
}

}  // namespace stillhouse
