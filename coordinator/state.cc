#include "coordinator/state.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace stillhouse {
namespace {

// Fewer finished chunks than this say nothing about how long one takes.
constexpr size_t kMedianChunksMin = 3;

}  // namespace

Job* FindJob(State& state, const std::string& name) {
  auto it = state.jobs.find(absl::StartsWith(name, "job/") ? name : absl::StrCat("job/", name));
  return it == state.jobs.end() ? nullptr : &it->second;
}

absl::Duration MedianChunkTime(const Job& job) {
  if (job.durations.size() < kMedianChunksMin) return absl::ZeroDuration();
  std::vector<absl::Duration> sorted(job.durations.begin(), job.durations.end());
  auto middle = sorted.begin() + static_cast<ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  return *middle;
}

absl::Duration StallLimit(const Job& job) {
  return std::max(kStallMin, kStallMedians * MedianChunkTime(job));
}

bool Serves(const Worker& worker, const Job& job) {
  return worker.life == WorkerLife::kAlive && worker.leave.empty() &&
         worker.teacher == job.capture.teacher && worker.teacher_dtype == job.capture.teacher_dtype;
}

bool IsDeadly(const Job& job, const Chunk& chunk) {
  const size_t alone = chunk.solo_losses.size();
  if (alone < kChunkFailuresMax) return false;
  const auto elsewhere = static_cast<double>(job.workers_lost - chunk.losses);
  const double usual =
      (elsewhere + 1) / (elsewhere + static_cast<double>(job.leases_answered) + kQuietLeases);
  double chance = 1;
  for (size_t i = 0; i < alone; ++i) chance *= usual;
  return chance <= kLossChanceMin || alone >= kSoloLossesMax;
}

std::string DescribeChunk(const std::string& job, uint32_t chunk) {
  return absl::StrCat(job, " chunk ", chunk);
}

void RemoveLeases(State& state, const std::vector<uint64_t>& epochs) {
  for (const uint64_t epoch : epochs) {
    if (state.leases.Find(epoch) != nullptr) state.leases.Remove(epoch);
  }
}

// How many chunks are given up, and why the first of them; empty when there is none.
std::string PoisonedProblem(const ChunkTable& chunks) {
  const size_t count = chunks.CountIn(ChunkState::kPoisoned);
  if (count == 0) return "";
  uint32_t first = 0;
  while (chunks.at(first).state != ChunkState::kPoisoned) ++first;
  const std::vector<ChunkFailure>& failures = chunks.at(first).failures;
  return absl::StrCat(count, count == 1 ? " chunk" : " chunks", " cannot be computed; chunk ",
                      first, ": ", failures.empty() ? "" : failures.back().reason);
}

void SettleJob(const State& state, Job& job, Effects& effects) {
  if (job.phase == JobPhase::kCancelled) return;
  const bool over = job.retention.bytes_max > 0 && RunsAreOver(state, job);
  const JobPhase before = job.phase;
  const std::string problem_before = std::exchange(job.problem, PoisonedProblem(job.chunks));
  if (!job.chunks.AllSettled() && !over) {
    job.phase = JobPhase::kCapturing;
  } else {
    job.phase = job.problem.empty() ? JobPhase::kCaptured : JobPhase::kFailed;
  }
  if (job.phase != before || job.problem != problem_before) {
    effects.rows.insert({RowRef::Kind::kJobState, job.name});
  }
}

void ObserveTime(State& state, absl::Duration now) {
  if (state.last_event.has_value()) {
    const absl::Duration gap = now - *state.last_event - kTickPeriod;
    if (gap >= kTickGapMin) {
      state.leases.AddGap(gap);
      for (auto& [name, worker] : state.workers) worker.last_heard += gap;
    }
  }
  state.last_event = now;
}

void OnOpened(State& state, absl::Duration now, Effects& effects) {
  for (auto& [name, job] : state.jobs) {
    job.teacher_seen_at = now;
    job.capture_seconds_before = job.capture_seconds;
    if (job.phase == JobPhase::kCancelled) continue;
    InventoryAsk ask{name, job.generation, {}, /*reconcile=*/true};
    for (uint32_t i = 0; i < job.chunks.size(); ++i) ask.chunks.push_back(i);
    effects.asks.push_back(std::move(ask));
  }
}

void OnInventory(State& state, const InventoryAsk& asked, const std::vector<bool>& present,
                 absl::Duration now, Effects& effects) {
  Job* job = FindJob(state, asked.job);
  if (job == nullptr || job->generation != asked.generation) return;
  for (size_t i = 0; i < asked.chunks.size() && i < present.size(); ++i) {
    const uint32_t index = asked.chunks[i];
    const Chunk& chunk = job->chunks.at(index);
    const ChunkState before = chunk.state;
    auto worker = state.workers.find(chunk.done_by.name);
    const bool reported = before == ChunkState::kConfirming && worker != state.workers.end() &&
                          worker->second.ref == chunk.done_by;
    const bool released = job->room.releasing.erase(index) > 0;
    if (present[i]) {
      if (before == ChunkState::kDurable) continue;
      if (released) {
        job->room.kept.insert(index);
        job->room.kept_at = now;
      }
      if (reported) worker->second.failures_in_a_row = 0;
      if (before == ChunkState::kPending && job->baseline && chunk.charges.empty()) {
        // Somebody computed it for us and died, or we did, before it was reported.
        ChargeRows(state, *job, index, kUnknownGrant, chunk.spec.rows, effects);
      }
      RemoveLeases(state, job->chunks.ConfirmPresent(index));
      if (before == ChunkState::kConfirming) {
        job->durable_at.emplace_back(now, chunk.spec.rows);
        if (job->durable_at.size() > kDurationsKept) job->durable_at.pop_front();
        if (job->capture_started.has_value()) {
          job->capture_seconds =
              job->capture_seconds_before + absl::ToDoubleSeconds(now - *job->capture_started);
        }
        effects.rows.insert({RowRef::Kind::kJobState, job->name});
      }
      effects.rows.insert({RowRef::Kind::kChunk, job->name, index});
      continue;
    }
    if (before != ChunkState::kConfirming && before != ChunkState::kDurable) continue;
    if (!released) {
      effects.warnings.push_back(absl::StrCat(
          DescribeChunk(job->name, index), before == ChunkState::kDurable
                                               ? " is in the cache no more: captured again"
                                               : " was reported done, but the cache has it not"));
    }
    if (reported) BlameWorker(worker->second, "what it reported done is not in the cache", effects);
    job->chunks.ConfirmAbsent(index);
    effects.rows.insert({RowRef::Kind::kChunk, job->name, index});
  }
  SettleJob(state, *job, effects);
}

void OnReconciled(State& state, const std::string& name, uint64_t generation, Effects& effects) {
  Job* job = FindJob(state, name);
  if (job == nullptr || job->generation != generation) return;
  job->reconciled = true;
  if (!job->baseline) {
    job->baseline = true;
    effects.rows.insert({RowRef::Kind::kJobState, name});
  }
  SettleJob(state, *job, effects);
}

}  // namespace stillhouse
