// Students: starting a run, what it wants to read, what it reports, its checkpoints.
#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "coordinator/state.h"

namespace stillhouse {
namespace {

absl::StatusOr<Run*> FindRun(State& state, const std::string& name) {
  auto it = state.runs.find(name);
  if (it == state.runs.end()) {
    return absl::NotFoundError(absl::StrCat("there is no run named ", name));
  }
  return &it->second;
}

bool IsCancelled(const Run& run) { return run.phase == RunPhase::kCancelled; }

}  // namespace

absl::StatusOr<StartRunAnswer> OnStartRun(State& state, const StartRunEvent& event,
                                          absl::Duration now, Effects& effects) {
  SH_ASSIGN_OR_RETURN(Run * run, FindRun(state, event.run));
  const uint64_t epoch = run->epoch;
  SH_RETURN_IF_ERROR(StartRun(*run, event.incarnation));
  run->host = event.host;
  run->pid = event.pid;
  run->last_heard = now;
  run->journaled_at = now;
  effects.rows.insert({RowRef::Kind::kRun, event.run});
  Job* job = FindJob(state, run->job);
  SH_CHECK(job != nullptr, "a run without a job: ", event.run);
  if (run->epoch != epoch) ForgetUpcoming(*job, event.run);
  if (job->retention.bytes_max > 0) SettleJob(state, *job, effects);  // it may have been over
  return StartRunAnswer{job, run};
}

absl::StatusOr<WantAnswerRow> OnWant(State& state, const WantEvent& event, absl::Duration now,
                                     Effects& effects) {
  SH_ASSIGN_OR_RETURN(Run * run, FindRun(state, event.run));
  SH_RETURN_IF_ERROR(CheckRunEpoch(*run, event.run_epoch));
  run->last_heard = now;
  WantAnswerRow answer;
  answer.cancelled = IsCancelled(*run);
  if (answer.cancelled) return answer;
  Job& job = *FindJob(state, run->job);
  const bool no_teacher = now - job.teacher_seen_at > kNeedsTeacherAfter;
  std::vector<uint32_t> upcoming;
  for (const auto& [index, within] : event.items) {
    if (index >= job.chunks.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(event.run, " wants chunk ", index, " of ", job.chunks.size()));
    }
    job.chunks.Want(index, event.run, now + std::max(within, absl::ZeroDuration()));
    upcoming.push_back(index);
    switch (job.chunks.at(index).state) {
      case ChunkState::kDurable:
        answer.states.push_back(ChunkAnswer::kDurable);
        break;
      case ChunkState::kPoisoned:
        answer.states.push_back(ChunkAnswer::kPoisoned);
        break;
      case ChunkState::kConfirming:
        answer.states.push_back(ChunkAnswer::kPending);
        break;
      default:
        answer.states.push_back(no_teacher ? ChunkAnswer::kNeedsTeacher : ChunkAnswer::kPending);
    }
  }
  NoteUpcoming(job, event.run, upcoming);
  return answer;
}

absl::StatusOr<bool> OnReport(State& state, const std::string& name, uint64_t run_epoch,
                              const RunProgress& progress, absl::Duration now, Effects& effects) {
  SH_ASSIGN_OR_RETURN(Run * run, FindRun(state, name));
  SH_RETURN_IF_ERROR(CheckRunEpoch(*run, run_epoch));
  run->last_heard = now;
  if (ApplyReport(*run, progress, now)) effects.rows.insert({RowRef::Kind::kRun, name});
  if (Job* job = FindJob(state, run->job); job != nullptr && job->retention.bytes_max > 0) {
    SettleJob(state, *job, effects);
  }
  return IsCancelled(*run);
}

absl::Status OnCommitCheckpoint(State& state, const std::string& name, uint64_t run_epoch,
                                uint64_t step, const std::string& folder, Effects& effects) {
  SH_ASSIGN_OR_RETURN(Run * run, FindRun(state, name));
  SH_RETURN_IF_ERROR(CheckRunEpoch(*run, run_epoch));
  if (folder.empty() || folder.size() > kNameBytesMax || absl::StrContains(folder, '/') ||
      folder == "." || folder == "..") {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": a checkpoint is the name of one folder, not \"", folder, "\""));
  }
  if (run->checkpoint == folder) return absl::OkStatus();
  // A delayed copy of a request that was answered long ago. A later process may have gone back to
  // an older checkpoint, because the last one could not be read.
  if (step < run->checkpoint_step && run_epoch == run->checkpoint_epoch) {
    return absl::AbortedError(absl::StrCat(name, ": the checkpoint of step ", run->checkpoint_step,
                                           " was committed after that of step ", step));
  }
  run->checkpoint = folder;
  run->checkpoint_step = step;
  run->checkpoint_epoch = run_epoch;
  effects.rows.insert({RowRef::Kind::kRun, name});
  return absl::OkStatus();
}

}  // namespace stillhouse
