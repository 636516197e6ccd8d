#include "coordinator/run.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/utf8.h"
#include "coordinator/limits.h"

namespace stillhouse {
namespace {

void RememberIncarnation(Run& run) {
  if (run.incarnation == 0) return;
  run.past_incarnations.push_back(run.incarnation);
  if (run.past_incarnations.size() > kPastIncarnationsMax) {
    run.past_incarnations.erase(run.past_incarnations.begin());
  }
}

}  // namespace

std::string RunStateName(const Run& run) {
  switch (run.phase) {
    case RunPhase::kQueued:
      return "queued";
    case RunPhase::kActive:
      return run.last.phase.empty() ? "loading" : run.last.phase;
    case RunPhase::kFinished:
      return "finished";
    case RunPhase::kFailed:
      return "failed";
    case RunPhase::kCancelled:
      return "cancelled";
  }
  return "";
}

absl::Status StartRun(Run& run, uint64_t incarnation) {
  const std::string& name = run.setup.name;
  if (run.phase == RunPhase::kFinished) {
    return absl::FailedPreconditionError(absl::StrCat(name, " is finished already"));
  }
  if (run.phase == RunPhase::kCancelled) {
    return absl::CancelledError(absl::StrCat(name, " was cancelled; submit it again to go on"));
  }
  if (incarnation == run.incarnation && run.phase == RunPhase::kActive) return absl::OkStatus();
  if (std::count(run.past_incarnations.begin(), run.past_incarnations.end(), incarnation) > 0) {
    return absl::AbortedError(absl::StrCat("a newer process of ", name, " has started"));
  }
  if (incarnation != run.incarnation) RememberIncarnation(run);
  run.incarnation = incarnation;
  ++run.epoch;
  run.phase = RunPhase::kActive;
  run.last.phase = "loading";
  run.last.message.clear();
  return absl::OkStatus();
}

absl::Status CheckRunEpoch(const Run& run, uint64_t epoch) {
  if (epoch == run.epoch && epoch > 0) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat(run.setup.name, ": epoch ", epoch,
                                         " is not the live one (", run.epoch,
                                         "): a newer process of this run has started"));
}

bool ApplyReport(Run& run, const RunProgress& progress, absl::Duration now) {
  if (run.phase != RunPhase::kActive) return false;  // ended: nothing changes it any more
  bool journal = progress.phase != run.last.phase || progress.evaluation.has_value() ||
                 now - run.journaled_at >= kProgressJournalPeriod;
  std::optional<RunEvaluation> evaluation = progress.evaluation;
  if (!evaluation.has_value()) evaluation = std::move(run.last.evaluation);
  run.last = progress;
  run.last.message = CleanUtf8(progress.message, kReasonBytesMax);
  run.last.exported_to = CleanUtf8(progress.exported_to);
  run.last.evaluation = evaluation;
  if (progress.evaluation.has_value()) {
    run.final = progress.evaluation;
    if (!run.best.has_value() || progress.evaluation->kl < run.best->kl) {
      run.best = progress.evaluation;
    }
  }
  if (progress.phase == "finished") run.phase = RunPhase::kFinished;
  if (progress.phase == "failed") run.phase = RunPhase::kFailed;
  if (journal) run.journaled_at = now;
  return journal;
}

bool CancelRun(Run& run) {
  if (run.phase == RunPhase::kFinished || run.phase == RunPhase::kCancelled) return false;
  run.phase = RunPhase::kCancelled;
  return true;
}

void ResubmitRun(Run& run, const RunSetup& setup) {
  if (run.setup.hash == setup.hash) {
    run.setup = setup;
    if (run.phase == RunPhase::kFailed || run.phase == RunPhase::kCancelled) {
      run.phase = RunPhase::kQueued;
    }
    return;
  }
  Run fresh;
  fresh.setup = setup;
  fresh.job = run.job;
  fresh.epoch = run.epoch + 1;  // what the former one's process still sends is of an older one
  RememberIncarnation(run);
  fresh.past_incarnations = run.past_incarnations;
  run = std::move(fresh);
}

}  // namespace stillhouse
