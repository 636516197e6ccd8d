// Teacher workers: registration, heartbeats, leases, results.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "common/utf8.h"
#include "coordinator/scheduler.h"
#include "coordinator/state.h"

namespace stillhouse {
namespace {

Worker* FindWorker(State& state, const WorkerRef& ref) {
  auto it = state.workers.find(ref.name);
  return it == state.workers.end() || it->second.ref != ref ? nullptr : &it->second;
}

void NoteTeacher(State& state, const Worker& worker, absl::Duration now) {
  for (auto& [name, job] : state.jobs) {
    if (Serves(worker, job)) job.teacher_seen_at = now;
  }
}

void BlameChunk(State& state, Job& job, uint32_t chunk, const WorkerRef& worker,
                const std::string& reason, Effects& effects) {
  RemoveLeases(state, job.chunks.AddFailure(chunk, {worker, reason}));
  effects.rows.insert({RowRef::Kind::kChunk, job.name, chunk});
  effects.warnings.push_back(
      absl::StrCat(DescribeChunk(job.name, chunk), " failed in ", worker.name, ": ", reason));
  SettleJob(state, job, effects);
}

// Ends a grant whose worker said nothing. The chunk is retried alone and elsewhere.
Lease TakeLease(State& state, uint64_t epoch, const std::string& how, Effects& effects) {
  Lease lease = state.leases.Remove(epoch);
  Job* job = FindJob(state, lease.job);
  SH_CHECK(job != nullptr, "a lease of no job");
  job->chunks.EndGrant(lease.chunk, epoch);
  ChargeRows(state, *job, lease.chunk, epoch, lease.rows_done, effects);
  job->chunks.RetryElsewhere(lease.chunk, lease.worker, /*solo=*/true);
  effects.warnings.push_back(
      absl::StrCat(DescribeChunk(lease.job, lease.chunk), ": ", lease.worker.name, " ", how));
  return lease;
}

// It hung with this grant. The first time says nothing about the chunk; when it was alone with it
// on a retry, it does.
void HangLease(State& state, uint64_t epoch, Effects& effects) {
  const std::string how = "made no progress";
  const Lease lease = TakeLease(state, epoch, how, effects);
  if (lease.solo) {
    BlameChunk(state, *FindJob(state, lease.job), lease.chunk, lease.worker, how, effects);
  }
}

void LoseLease(State& state, uint64_t epoch, const std::string& how, Effects& effects) {
  const Lease lease = TakeLease(state, epoch, how, effects);
  Job& job = *FindJob(state, lease.job);
  ++job.workers_lost;
  job.chunks.AddLoss(lease.chunk, {lease.worker, how}, lease.solo);
  const Chunk& chunk = job.chunks.at(lease.chunk);
  if (!IsDeadly(job, chunk)) return;
  const std::string reason = absl::StrCat(
      chunk.solo_losses.size(), " workers were lost while they computed it alone, the last ", how);
  for (const ChunkFailure& loss : std::vector<ChunkFailure>(chunk.solo_losses)) {
    BlameChunk(state, job, lease.chunk, loss.worker, reason, effects);
  }
}

void LoseWorker(State& state, Worker& worker, const std::string& how, Effects& effects) {
  const std::vector<uint64_t> held = state.leases.HeldBy(worker.ref.name);
  if (held.empty()) {
    for (auto& [name, job] : state.jobs) job.workers_lost += Serves(worker, job) ? 1 : 0;
  }
  worker.life = WorkerLife::kLost;
  for (const uint64_t epoch : held) {
    // A loss may poison a chunk and so end other leases.
    if (state.leases.Find(epoch) != nullptr) LoseLease(state, epoch, how, effects);
  }
}

void Grant(State& state, Job& job, uint32_t chunk, uint64_t epoch, Worker& worker,
           absl::Duration now) {
  Lease lease;
  lease.epoch = epoch;
  lease.job = job.name;
  lease.chunk = chunk;
  lease.worker = worker.ref;
  lease.granted_at = lease.progressed_at = now;
  lease.deadline = now + kLeaseLength;
  lease.solo = job.chunks.at(chunk).solo;
  job.chunks.Grant(chunk, epoch);
  NoteGranted(job, chunk);
  state.leases.Add(std::move(lease));
  worker.held.push_back({{job.name, chunk, epoch}, worker.ref.incarnation});
  if (worker.held.size() > kHeldGrantsKept) worker.held.pop_front();
  if (!job.capture_started.has_value()) job.capture_started = now;
}

// Has or had this process that grant?
bool HoldsOrHeld(const State& state, const WorkerRef& ref, const GrantRef& grant) {
  auto it = state.workers.find(ref.name);
  if (it == state.workers.end()) return false;
  const std::deque<HeldGrant>& held = it->second.held;
  return std::count(held.begin(), held.end(), HeldGrant{grant, ref.incarnation}) > 0;
}

void Disbelieve(State& state, const FailedEvent& event, Effects& effects) {
  const uint64_t count = ++state.failures_disbelieved;
  if ((count & (count - 1)) != 0) return;  // the 1st, 2nd, 4th, 8th… is worth a line
  effects.warnings.push_back(absl::StrCat("ignored: ", event.worker.name, " says that ",
                                          DescribeChunk(event.grant.job, event.grant.chunk),
                                          " failed, but never held that grant; so far ", count,
                                          " such reports"));
}

// Was this epoch ever given out? A coming one would be given to somebody else later.
bool WasGiven(const State& state, uint64_t epoch) {
  const uint64_t incarnation = epoch >> 32;
  const uint64_t count = epoch & 0xffffffff;
  return incarnation < state.incarnation ||
         (incarnation == state.incarnation && count <= state.grants_made);
}

// A grant that a worker presents: is it ours to give again?
bool MayKeep(State& state, const WorkerRef& worker, const GrantRef& grant) {
  if (const Lease* lease = state.leases.Find(grant.epoch); lease != nullptr) {
    return lease->worker == worker && lease->job == grant.job && lease->chunk == grant.chunk;
  }
  Job* job = FindJob(state, grant.job);
  if (job == nullptr || job->phase == JobPhase::kCancelled || grant.chunk >= job->chunks.size() ||
      !WasGiven(state, grant.epoch)) {
    return false;
  }
  const Chunk& chunk = job->chunks.at(grant.chunk);
  if (chunk.state == ChunkState::kDurable || chunk.state == ChunkState::kPoisoned ||
      chunk.grants.size() >= kGrantsPerChunkMax || job->chunks.FailedIn(grant.chunk, worker)) {
    return false;
  }
  return std::none_of(chunk.charges.begin(), chunk.charges.end(), [&](const ChunkCharge& charge) {
    return charge.epoch == grant.epoch && charge.rows >= chunk.spec.rows;
  });
}

absl::Status CheckGrant(State& state, const GrantRef& grant) {
  Job* job = FindJob(state, grant.job);
  if (job != nullptr && grant.chunk < job->chunks.size()) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("there is no ", DescribeChunk(grant.job, grant.chunk)));
}

void ForgetOldWorkers(State& state, absl::Duration now) {
  std::erase_if(state.workers, [&](const auto& entry) {
    const Worker& worker = entry.second;
    return worker.life != WorkerLife::kAlive && worker.leave.empty() &&
           now - worker.last_heard > kForgetWorkerAfter;
  });
}

}  // namespace

void ChargeRows(State& state, Job& job, uint32_t chunk, uint64_t epoch, uint64_t rows,
                Effects& effects) {
  const uint64_t more = job.chunks.Charge(chunk, epoch, rows);
  if (more == 0) return;
  job.rows_computed += more;
  effects.rows.insert({RowRef::Kind::kChunk, job.name, chunk});
  effects.rows.insert({RowRef::Kind::kJobState, job.name});
  auto payer = state.runs.find(job.payer);
  if (payer == state.runs.end()) return;
  payer->second.teacher_rows_charged += more;
  effects.rows.insert({RowRef::Kind::kRun, job.payer});
}

void BlameWorker(Worker& worker, const std::string& reason, Effects& effects) {
  if (++worker.failures_in_a_row < kWorkerFailuresMax || !worker.leave.empty()) return;
  worker.leave =
      CleanUtf8(absl::StrCat(worker.failures_in_a_row, " chunks failed one after another in ",
                             worker.ref.name, ", the last with: ", reason),
                kReasonBytesMax);
  effects.warnings.push_back(absl::StrCat("quarantined: ", worker.leave));
  effects.rows.insert({RowRef::Kind::kQuarantine, worker.ref.name});
}

absl::StatusOr<std::vector<GrantRef>> OnRegister(State& state, const RegisterEvent& event,
                                                 absl::Duration now, Effects& effects) {
  const std::string& name = event.worker.name;
  if (name.empty() || name.size() > kNameBytesMax || event.held.size() > kHeldMax) {
    return absl::InvalidArgumentError(absl::StrCat("a worker has a name of 1 to ", kNameBytesMax,
                                                   " bytes and holds at most ", kHeldMax,
                                                   " chunks"));
  }
  auto it = state.workers.find(name);
  if (it == state.workers.end()) {
    ForgetOldWorkers(state, now);
    if (state.workers.size() >= kWorkersMax) {
      return absl::ResourceExhaustedError(
          absl::StrCat("there are ", kWorkersMax, " workers already"));
    }
    it = state.workers.try_emplace(name).first;
    it->second.ref = event.worker;
  }
  Worker& worker = it->second;
  if (worker.ref.incarnation != event.worker.incarnation) {
    std::vector<uint64_t>& past = worker.past_incarnations;
    if (std::count(past.begin(), past.end(), event.worker.incarnation) > 0) {
      return absl::AbortedError(
          absl::StrCat("a newer process of the worker ", name, " has registered"));
    }
    LoseWorker(state, worker, "was replaced by a new process", effects);
    past.push_back(worker.ref.incarnation);
    if (past.size() > kPastIncarnationsMax) past.erase(past.begin());
    worker.ref = event.worker;
    worker.failures_in_a_row = 0;
    worker.lease_sequence = 0;
    if (!worker.leave.empty()) effects.rows.insert({RowRef::Kind::kEraseQuarantine, name});
    worker.leave.clear();
  }
  worker.host = event.host;
  worker.pid = event.pid;
  worker.teacher = event.teacher;
  worker.teacher_dtype = event.teacher_dtype;
  worker.producer_class = event.producer_class;
  worker.state = event.state;
  worker.life = WorkerLife::kAlive;
  worker.last_heard = now;
  NoteTeacher(state, worker, now);
  std::vector<GrantRef> kept;
  for (const GrantRef& grant : event.held) {
    if (!MayKeep(state, worker.ref, grant)) continue;
    if (state.leases.Find(grant.epoch) == nullptr) {
      Grant(state, *FindJob(state, grant.job), grant.chunk, grant.epoch, worker, now);
    }
    kept.push_back(grant);
  }
  return kept;
}

HeartbeatAnswer OnHeartbeat(State& state, const HeartbeatEvent& event, absl::Duration now,
                            Effects& effects) {
  HeartbeatAnswer answer;
  Worker* worker = FindWorker(state, event.worker);
  if (worker == nullptr || worker->life != WorkerLife::kAlive) {
    answer.unknown_worker = true;
    return answer;
  }
  worker->last_heard = now;
  worker->state = event.state;
  NoteTeacher(state, *worker, now);
  for (const auto& [grant, rows_done, steps] : event.progress) {
    const Lease* lease = state.leases.Find(grant.epoch);
    if (lease == nullptr || lease->worker != worker->ref || lease->chunk != grant.chunk) {
      answer.cancelled.push_back(grant);
      continue;
    }
    const Job* job = FindJob(state, lease->job);
    if (state.leases.Renew(grant.epoch, rows_done, steps, StallLimit(*job), now)) continue;
    HangLease(state, grant.epoch, effects);
    BlameWorker(*worker, "no progress", effects);
    answer.cancelled.push_back(grant);
  }
  if (event.state == "left") {
    worker->life = WorkerLife::kLeft;
    for (const uint64_t epoch : state.leases.HeldBy(worker->ref.name)) {
      const Lease lease = state.leases.Remove(epoch);
      FindJob(state, lease.job)->chunks.EndGrant(lease.chunk, epoch);
    }
  }
  return answer;
}

LeaseAnswer OnLease(State& state, const LeaseEvent& event, absl::Duration now, Effects& effects) {
  LeaseAnswer answer;
  Worker* worker = FindWorker(state, event.worker);
  if (worker == nullptr || worker->life != WorkerLife::kAlive) {
    answer.unknown_worker = true;
    return answer;
  }
  worker->last_heard = now;
  if (event.sequence < worker->lease_sequence) return answer;  // a delayed copy
  worker->lease_sequence = event.sequence;
  // It asks only when it holds nothing: the answer that granted this was lost, or asked for twice.
  const std::vector<uint64_t> held = state.leases.HeldBy(worker->ref.name);
  if (!held.empty()) {
    const Lease& lease = *state.leases.Find(held.front());
    state.leases.Renew(lease.epoch, lease.rows_done, lease.steps,
                       StallLimit(*FindJob(state, lease.job)), now);
    answer.grant = GrantRef{lease.job, lease.chunk, lease.epoch};
    answer.job = FindJob(state, lease.job);
    return answer;
  }
  if (!worker->leave.empty()) {
    answer.leave = worker->leave;
    return answer;
  }
  const Pick pick = PickChunk(state, *worker, now);
  answer.all_done = pick.all_done;
  answer.leave = pick.leave;
  if (pick.job == nullptr || !HasRoom(state, *pick.job, pick.chunk, pick.deadline, now, effects)) {
    return answer;
  }
  const uint64_t epoch = state.incarnation << 32 | ++state.grants_made;
  Grant(state, *pick.job, pick.chunk, epoch, *worker, now);
  pick.job->rows_granted += pick.job->chunks.at(pick.chunk).spec.rows;
  answer.grant = GrantRef{pick.job->name, pick.chunk, epoch};
  answer.job = pick.job;
  return answer;
}

absl::Status OnDone(State& state, const DoneEvent& event, absl::Duration now, Effects& effects) {
  SH_RETURN_IF_ERROR(CheckGrant(state, event.grant));
  Job& job = *FindJob(state, event.grant.job);
  const uint32_t chunk = event.grant.chunk;
  const Lease* lease = state.leases.Find(event.grant.epoch);
  const bool first_time =
      lease != nullptr && lease->worker == event.worker && lease->chunk == chunk;
  if (first_time) {
    job.durations.push_back(now - lease->granted_at);
    if (job.durations.size() > kDurationsKept) job.durations.pop_front();
    state.leases.Remove(event.grant.epoch);
    ++job.leases_answered;
    if (event.parts_mismatched > 0) {
      job.parts_mismatched += event.parts_mismatched;
      effects.rows.insert({RowRef::Kind::kJobState, job.name});
      effects.warnings.push_back(absl::StrCat(
          DescribeChunk(job.name, chunk), ": ", event.parts_mismatched, " parts computed by ",
          event.worker.name, " differ from those stored before; the first write stays"));
    }
    if (Worker* worker = FindWorker(state, event.worker); worker != nullptr) {
      worker->last_heard = now;
      worker->rows_done += event.rows_computed;
    }
  }
  ChargeRows(state, job, chunk, event.grant.epoch, event.rows_computed, effects);
  if (job.chunks.ReportDone(chunk, event.grant.epoch, event.worker)) {
    effects.asks.push_back({job.name, job.generation, {chunk}});
  }
  return absl::OkStatus();
}

absl::Status OnFailed(State& state, const FailedEvent& event, absl::Duration now,
                      Effects& effects) {
  SH_RETURN_IF_ERROR(CheckGrant(state, event.grant));
  if (!HoldsOrHeld(state, event.worker, event.grant)) {
    Disbelieve(state, event, effects);
    return absl::OkStatus();
  }
  Job& job = *FindJob(state, event.grant.job);
  const uint32_t chunk = event.grant.chunk;
  const Lease* lease = state.leases.Find(event.grant.epoch);
  const bool first_time =
      lease != nullptr && lease->worker == event.worker && lease->chunk == chunk;
  if (first_time) {
    const uint64_t rows_done = state.leases.Remove(event.grant.epoch).rows_done;
    ChargeRows(state, job, chunk, event.grant.epoch, rows_done, effects);
    job.chunks.EndGrant(chunk, event.grant.epoch);
  }
  if (event.returned) return absl::OkStatus();
  job.leases_answered += first_time ? 1 : 0;
  if (Worker* worker = FindWorker(state, event.worker); worker != nullptr && first_time) {
    worker->last_heard = now;
    BlameWorker(*worker, event.reason, effects);
  }
  job.chunks.RetryElsewhere(chunk, event.worker, /*solo=*/false);
  if (event.chunk_at_fault) BlameChunk(state, job, chunk, event.worker, event.reason, effects);
  return absl::OkStatus();
}

void OnTick(State& state, absl::Duration now, Effects& effects) {
  for (auto& [name, worker] : state.workers) {
    if (worker.life != WorkerLife::kAlive || now - worker.last_heard < kLeaseLength) continue;
    LoseWorker(state, worker,
               absl::StrCat("was not heard of for ", absl::FormatDuration(kLeaseLength)), effects);
  }
  // What is left over belongs to workers that live and do not know of it: their answer was lost.
  for (const uint64_t epoch : state.leases.ExpiredAt(now)) {
    const Lease lease = state.leases.Remove(epoch);
    FindJob(state, lease.job)->chunks.EndGrant(lease.chunk, epoch);
  }
}

}  // namespace stillhouse
