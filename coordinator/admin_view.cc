#include "coordinator/admin_view.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"

namespace stillhouse {
namespace {

std::string PhaseName(JobPhase phase) {
  switch (phase) {
    case JobPhase::kCapturing:
      return "capturing";
    case JobPhase::kCaptured:
      return "captured";
    case JobPhase::kFailed:
      return "failed";
    case JobPhase::kCancelled:
      return "cancelled";
  }
  return "";
}

// Rows that became durable per second, over the last chunks; zero while it cannot be told.
double RowsPerSecond(const Job& job, absl::Duration now) {
  if (job.durable_at.size() < 2) return 0;
  uint64_t rows = 0;
  for (size_t i = 1; i < job.durable_at.size(); ++i) rows += job.durable_at[i].second;
  // Up to now, if the next chunk is late: a rate that stands still would be a lie.
  const absl::Duration seen = job.durable_at.back().first - job.durable_at.front().first;
  const absl::Duration since = now - job.durable_at.back().first;
  const absl::Duration mean = seen / static_cast<double>(job.durable_at.size() - 1);
  const double seconds = absl::ToDoubleSeconds(seen + std::max(since - mean, absl::ZeroDuration()));
  return seconds > 0 ? static_cast<double>(rows) / seconds : 0;
}

// Rows of chunks at work that are stored already, of each chunk those of the grant that is ahead.
uint64_t RowsStoredOfLeased(const State& state, const Job& job) {
  uint64_t rows = 0;
  for (const uint32_t index : job.chunks.leased()) {
    uint64_t most = 0;
    for (const uint64_t epoch : job.chunks.at(index).grants) {
      const Lease* lease = state.leases.Find(epoch);
      if (lease != nullptr) most = std::max(most, lease->rows_done);
    }
    rows += std::min(most, job.chunks.at(index).spec.rows);
  }
  return rows;
}

JobView ViewJob(const State& state, const Job& job, absl::Duration now) {
  JobView view;
  view.name = job.name;
  view.state = PhaseName(job.phase);
  view.plan = job.capture.plan;
  view.teacher = job.capture.teacher;
  view.chunks = static_cast<uint32_t>(job.chunks.size());
  view.chunks_durable = static_cast<uint32_t>(job.chunks.CountIn(ChunkState::kDurable));
  view.chunks_leased = static_cast<uint32_t>(job.chunks.CountIn(ChunkState::kLeased));
  view.chunks_poisoned = static_cast<uint32_t>(job.chunks.CountIn(ChunkState::kPoisoned));
  view.rows = job.chunks.rows();
  view.rows_durable = job.chunks.rows_durable() + RowsStoredOfLeased(state, job);
  view.rows_computed = job.rows_computed;
  view.parts_mismatched = job.parts_mismatched;
  if (job.phase == JobPhase::kCapturing) {
    view.rows_per_s = RowsPerSecond(job, now);
    if (view.rows_per_s > 0) {
      view.seconds_left = static_cast<double>(view.rows - view.rows_durable) / view.rows_per_s;
    }
  }
  view.capture_seconds = job.capture_seconds;
  view.recipe_path = job.recipe_path;
  view.problem = job.problem.empty() ? job.room.full : job.problem;
  view.sections = job.capture.sections;
  view.held_out_sections = job.capture.held_out_sections;
  return view;
}

RunView ViewRun(const Run& run) {
  RunView view;
  view.name = run.setup.name;
  view.state = RunStateName(run);
  view.last = run.last;
  view.best = run.best;
  view.final = run.final;
  view.folder = run.setup.folder;
  view.exported_to = run.last.exported_to;
  view.teacher_rows_charged = run.teacher_rows_charged;
  view.checkpoint = run.checkpoint;
  view.hash = run.setup.hash;
  return view;
}

WorkerView ViewWorker(const State& state, const Worker& worker, absl::Duration now) {
  WorkerView view;
  view.name = worker.ref.name;
  view.role = "teacher";
  view.state = worker.state;
  if (worker.life == WorkerLife::kLost) view.state = "lost";
  if (worker.life == WorkerLife::kLeft) view.state = "left";
  if (!worker.leave.empty()) view.state = "quarantined";
  view.host = worker.host;
  view.pid = worker.pid;
  for (const uint64_t epoch : state.leases.HeldBy(worker.ref.name)) {
    const Lease& lease = *state.leases.Find(epoch);
    absl::StrAppend(&view.holding, view.holding.empty() ? "" : ", ",
                    DescribeChunk(lease.job, lease.chunk));
  }
  view.last_heard = now - worker.last_heard;
  view.rows_done = worker.rows_done;
  view.producer_class = worker.producer_class;
  return view;
}

std::optional<WorkerView> ViewStudent(const Run& run, absl::Duration now) {
  if (run.phase != RunPhase::kActive || !run.last_heard.has_value()) return std::nullopt;
  WorkerView view;
  view.name = run.setup.student;
  view.role = "student";
  view.state = RunStateName(run);
  view.host = run.host;
  view.pid = run.pid;
  view.holding = run.setup.name;
  view.last_heard = now - *run.last_heard;
  return view;
}

// The only run whose name ends in /`name`: people call run/handbook/half "half".
absl::StatusOr<std::string> RunNamedShortly(const State& state, const std::string& name) {
  std::vector<std::string> found;
  for (const auto& [run_name, run] : state.runs) {
    if (run_name.ends_with("/" + name)) found.push_back(run_name);
  }
  if (found.size() == 1) return found.front();
  if (found.empty()) {
    return absl::NotFoundError(
        absl::StrCat("there is no job or run named ", name, " (coordinatorctl get lists them)"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(name, " may be any of ", absl::StrJoin(found, ", "), ": give the whole name"));
}

}  // namespace

absl::StatusOr<AdminView> ViewState(const State& state, const std::string& name,
                                    absl::Duration now) {
  AdminView view;
  view.coordinator_incarnation = state.incarnation;
  if (auto run = state.runs.find(name); run != state.runs.end()) {
    view.jobs.push_back(ViewJob(state, state.jobs.at(run->second.job), now));
    view.runs.push_back(ViewRun(run->second));
    return view;
  }
  const std::string wanted =
      name.empty() || name.starts_with("job/") ? name : absl::StrCat("job/", name);
  if (!wanted.empty() && state.jobs.count(wanted) == 0) {
    SH_ASSIGN_OR_RETURN(const std::string run, RunNamedShortly(state, name));
    return ViewState(state, run, now);
  }
  for (const auto& [job_name, job] : state.jobs) {
    if (!wanted.empty() && job_name != wanted) continue;
    view.jobs.push_back(ViewJob(state, job, now));
    for (const std::string& run_name : job.runs) {
      view.runs.push_back(ViewRun(state.runs.at(run_name)));
    }
  }
  for (const auto& [worker_name, worker] : state.workers) {
    view.workers.push_back(ViewWorker(state, worker, now));
  }
  for (const auto& [run_name, run] : state.runs) {
    std::optional<WorkerView> student = ViewStudent(run, now);
    if (student.has_value()) view.workers.push_back(*std::move(student));
  }
  return view;
}

}  // namespace stillhouse
