#include "coordinator/scheduler.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"

namespace stillhouse {
namespace {

enum class Verdict { kYes, kElsewhere, kFailedHere };

bool AnotherServes(const State& state, const Worker& worker, const Job& job) {
  return std::any_of(state.workers.begin(), state.workers.end(), [&](const auto& entry) {
    return entry.first != worker.ref.name && Serves(entry.second, job);
  });
}

Verdict Judge(const State& state, const Worker& worker, const Job& job, uint32_t index) {
  if (job.chunks.FailedIn(index, worker.ref)) return Verdict::kFailedHere;
  if (job.chunks.at(index).avoid == worker.ref && AnotherServes(state, worker, job)) {
    return Verdict::kElsewhere;
  }
  return Verdict::kYes;
}

bool IsSettled(const Chunk& chunk) {
  return chunk.state == ChunkState::kDurable || chunk.state == ChunkState::kPoisoned;
}

// A chunk that another worker has had for long, with nothing else left to do.
std::optional<uint32_t> PickSlow(const State& state, const Worker& worker, const Job& job,
                                 absl::Duration now) {
  const absl::Duration median = MedianChunkTime(job);
  if (median == absl::ZeroDuration()) return std::nullopt;
  std::optional<uint32_t> slowest;
  absl::Duration oldest = now - kSlowMedians * median;
  for (const uint32_t index : job.chunks.leased()) {
    const Chunk& chunk = job.chunks.at(index);
    if (chunk.solo || chunk.grants.size() >= kGrantsPerChunkMax ||
        Judge(state, worker, job, index) != Verdict::kYes) {
      continue;
    }
    const Lease* lease = state.leases.Find(chunk.grants.front());
    if (lease == nullptr || lease->worker.name == worker.ref.name || lease->granted_at >= oldest) {
      continue;
    }
    oldest = lease->granted_at;
    slowest = index;
  }
  return slowest;
}

struct JobPick {
  std::optional<uint32_t> chunk;
  absl::Duration deadline = absl::InfiniteDuration();
  std::optional<uint32_t> failed_here;  // pending, but not for this process
};

JobPick PickInJob(const State& state, const Worker& worker, const Job& job, absl::Duration now) {
  JobPick pick;
  const Chunk& first = job.chunks.at(0);
  const bool only_first = !IsSettled(first);
  size_t looked_at = 0;
  for (const ChunkTable::PendingKey& key : job.chunks.pending()) {
    if (++looked_at > kScanPendingMax) break;
    const uint32_t index = only_first ? 0 : key.index;
    if (only_first && first.state != ChunkState::kPending) break;
    const bool again = job.retention.bytes_max > 0 && !job.chunks.at(index).charges.empty();
    if (again && !only_first && !job.chunks.at(index).spec.held_out &&
        !IsWanted(state, job, index, now)) {
      continue;
    }
    const Verdict verdict = Judge(state, worker, job, index);
    if (verdict == Verdict::kYes) {
      pick.chunk = index;
      pick.deadline = key.deadline;
      return pick;
    }
    if (verdict == Verdict::kFailedHere) pick.failed_here = index;
    if (only_first) break;
  }
  if (!only_first && job.chunks.pending().empty()) pick.chunk = PickSlow(state, worker, job, now);
  return pick;
}

}  // namespace

Pick PickChunk(State& state, const Worker& worker, absl::Duration now) {
  std::vector<Job*> jobs;
  bool serves_any = false;
  bool work_left = false;
  for (auto& [name, job] : state.jobs) {
    if (job.phase == JobPhase::kCancelled || !Serves(worker, job)) continue;
    serves_any = true;
    if (job.phase != JobPhase::kCapturing && job.reconciled) continue;
    work_left = true;
    if (job.reconciled) jobs.push_back(&job);
  }
  std::stable_sort(jobs.begin(), jobs.end(),
                   [](const Job* a, const Job* b) { return a->rows_granted < b->rows_granted; });
  Pick pick;
  pick.all_done = serves_any && !work_left;
  bool others_busy = false;
  for (Job* job : jobs) {
    const JobPick found = PickInJob(state, worker, *job, now);
    if (found.chunk.has_value()) {
      pick.job = job;
      pick.chunk = *found.chunk;
      pick.deadline = found.deadline;
      pick.leave.clear();
      return pick;
    }
    others_busy |= job->chunks.CountIn(ChunkState::kLeased) > 0 ||
                   job->chunks.CountIn(ChunkState::kConfirming) > 0;
    if (found.failed_here.has_value() && !AnotherServes(state, worker, *job)) {
      pick.leave = absl::StrCat(DescribeChunk(job->name, *found.failed_here),
                                " failed in this process and is to be tried in a fresh one");
    }
  }
  if (others_busy) pick.leave.clear();
  return pick;
}

}  // namespace stillhouse
