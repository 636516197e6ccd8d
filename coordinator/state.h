// State: everything the coordinator knows, and the functions (state, event, now) → effects that
// change it.
//
// Owner: CoordinatorServer, or a simulation. Not thread-safe; no clock, no I/O, no randomness
// inside. Ordering: an answer that a function returns may be sent only after the rows it marked in
// Effects, and those of all earlier effects, are durable. Durability: jobs, settled chunks,
// failures, charges, runs, quarantine. Leases, demand, heartbeats and confirmations under way are
// volatile: workers present their grants again, the cache is asked again.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/digest.h"
#include "coordinator/chunk_table.h"
#include "coordinator/lease_table.h"
#include "coordinator/limits.h"
#include "coordinator/room.h"
#include "coordinator/run.h"

namespace stillhouse {

// --- Jobs

struct CaptureSetup {  // what is captured: a change of it means asking the cache about all of it
                       // again
  Digest plan;
  Digest teacher;
  std::string teacher_dtype;
  std::vector<std::string> sections;  // canonical specs, training chunks
  std::vector<std::string> held_out_sections;
  std::vector<std::string> first_chunk_artefacts;  // what else chunk 0 must leave in the cache
  friend bool operator==(const CaptureSetup&, const CaptureSetup&) = default;
};

enum class JobPhase : uint8_t { kCapturing, kCaptured, kFailed, kCancelled };

struct Job {
  std::string name;  // "job/handbook"
  std::string recipe_path;
  std::string recipe_text;
  CaptureSetup capture;
  std::vector<std::string> runs;  // in recipe order
  RetentionSetup retention;
  std::string payer;       // the run that teacher rows are charged to now
  std::string submit_key;  // of the last submission taken, and what it was answered
  bool submit_resumed = false;

  JobPhase phase = JobPhase::kCapturing;
  std::string problem;
  uint64_t rows_computed = 0;
  uint64_t parts_mismatched = 0;
  double capture_seconds = 0;  // first lease to last durable chunk
  // The cache was asked about every chunk once since what is captured last changed: what turns up
  // later was computed for this job.
  bool baseline = false;
  ChunkTable chunks;

  // Volatile.
  uint64_t generation = 1;  // answers of the cache to questions of an earlier one are void
  bool reconciled = false;  // the cache was asked about every chunk since the journal was opened
  Room room;
  uint64_t rows_granted = 0;  // for fair shares
  // Leases that ended by a word of their worker, and workers lost with a lease or ready for one.
  uint64_t leases_answered = 0;
  uint64_t workers_lost = 0;
  std::optional<absl::Duration> capture_started;
  double capture_seconds_before = 0;
  absl::Duration teacher_seen_at;
  std::deque<absl::Duration> durations;                        // of the last chunks, grant to done
  std::deque<std::pair<absl::Duration, uint64_t>> durable_at;  // when, rows
};

// --- Workers

struct GrantRef {
  std::string job;
  uint32_t chunk = 0;
  uint64_t epoch = 0;
  friend bool operator==(const GrantRef&, const GrantRef&) = default;
};

// One that a process of a worker has or had: only such a process is believed when it says that the
// chunk failed, also when its lease has run out meanwhile or a new process has its name.
struct HeldGrant {
  GrantRef grant;
  uint64_t incarnation = 0;
  friend bool operator==(const HeldGrant&, const HeldGrant&) = default;
};

enum class WorkerLife : uint8_t { kAlive, kLost, kLeft };

struct Worker {
  WorkerRef ref;
  std::string host;
  int64_t pid = 0;
  Digest teacher;
  std::string teacher_dtype;
  std::string producer_class;
  std::string state;
  WorkerLife life = WorkerLife::kAlive;
  absl::Duration last_heard;
  uint64_t lease_sequence = 0;
  int failures_in_a_row = 0;
  std::string leave;  // not empty: quarantined, and why. Journaled
  uint64_t rows_done = 0;
  std::vector<uint64_t> past_incarnations;
  std::deque<HeldGrant> held;  // the last kHeldGrantsKept, newest last
};

// --- Effects

// A row of the journal to be written from the state as it is now. Erasures come before writes.
struct RowRef {
  enum class Kind : uint8_t {
    kEraseChunks,
    kEraseQuarantine,
    kMeta,
    kJob,
    kJobState,
    kChunk,
    kRun,
    kQuarantine
  } kind;
  std::string name;
  uint32_t chunk = 0;
  friend bool operator<(const RowRef& a, const RowRef& b) {
    return std::tie(a.kind, a.name, a.chunk) < std::tie(b.kind, b.name, b.chunk);
  }
};

// The cache is to be asked about these chunks of a job.
struct InventoryAsk {
  std::string job;
  uint64_t generation = 0;
  std::vector<uint32_t> chunks;
  bool reconcile = false;  // all of them: say OnReconciled when the last is answered
};

// The cache is to release these chunks, perhaps none, and to say how much it then holds.
struct RoomAsk {
  std::string job;
  uint64_t generation = 0;
  std::vector<uint32_t> release;
};

struct Effects {
  std::set<RowRef> rows;
  std::vector<InventoryAsk> asks;
  std::vector<RoomAsk> rooms;
  std::vector<std::string> warnings;  // for the log
};

struct State {
  uint64_t incarnation = 1;
  uint64_t grants_made = 0;
  uint64_t failures_disbelieved = 0;  // reports of grants that their sender never held
  std::map<std::string, Job> jobs;
  std::map<std::string, Run> runs;
  std::map<std::string, Worker> workers;
  LeaseTable leases;
  std::optional<absl::Duration> last_event;
};

// Called before every event. A gap in the coordinator's own loop is added to every deadline.
void ObserveTime(State& state, absl::Duration now);
// Each kTickPeriod: leases run out, silent workers are lost.
void OnTick(State& state, absl::Duration now, Effects& effects);
// Once, after the journal was read: every job that is not cancelled is reconciled.
void OnOpened(State& state, absl::Duration now, Effects& effects);

// --- From coordinatorctl

struct SubmitEvent {
  std::string key;
  std::string name;
  std::string recipe_path;
  std::string recipe_text;
  CaptureSetup capture;
  std::vector<ChunkSpec> chunks;
  std::vector<RunSetup> runs;
  RetentionSetup retention;
};
struct SubmitAnswer {
  std::string job;
  bool resumed = false;
  std::vector<std::string> notes;  // of runs that begin anew: why; not repeated with the answer
};
absl::StatusOr<SubmitAnswer> OnSubmit(State& state, const SubmitEvent& event, absl::Duration now,
                                      Effects& effects);
// A job with its runs, or one run. NotFound when unknown.
absl::Status OnCancel(State& state, const std::string& name, Effects& effects);

// --- From the cache, by way of the planner

void OnInventory(State& state, const InventoryAsk& asked, const std::vector<bool>& present,
                 absl::Duration now, Effects& effects);
void OnReconciled(State& state, const std::string& job, uint64_t generation, Effects& effects);
void OnRoom(State& state, const RoomAsk& asked, uint64_t bytes_used, Effects& effects);

// --- From teacher workers

struct RegisterEvent {
  WorkerRef worker;
  std::string host;
  int64_t pid = 0;
  Digest teacher;
  std::string teacher_dtype;
  std::string producer_class;
  std::string state;
  std::vector<GrantRef> held;
};
// The grants it keeps. Aborted when a newer process of that name has registered.
absl::StatusOr<std::vector<GrantRef>> OnRegister(State& state, const RegisterEvent& event,
                                                 absl::Duration now, Effects& effects);

struct HeartbeatEvent {
  WorkerRef worker;
  std::string state;
  struct Progress {
    GrantRef grant;
    uint64_t rows_done = 0;
    uint64_t steps = 0;
  };
  std::vector<Progress> progress;
};
struct HeartbeatAnswer {
  bool unknown_worker = false;
  std::vector<GrantRef> cancelled;
};
HeartbeatAnswer OnHeartbeat(State& state, const HeartbeatEvent& event, absl::Duration now,
                            Effects& effects);

struct LeaseEvent {
  WorkerRef worker;
  uint64_t sequence = 0;
};
struct LeaseAnswer {
  std::optional<GrantRef> grant;
  const Job* job = nullptr;  // of the grant; valid until the state changes
  bool unknown_worker = false;
  bool all_done = false;
  std::string leave;
};
LeaseAnswer OnLease(State& state, const LeaseEvent& event, absl::Duration now, Effects& effects);

struct DoneEvent {
  WorkerRef worker;
  GrantRef grant;
  uint64_t rows_computed = 0;
  uint64_t parts_mismatched = 0;
};
// NotFound when there is no such job or chunk (any more).
absl::Status OnDone(State& state, const DoneEvent& event, absl::Duration now, Effects& effects);

struct FailedEvent {
  WorkerRef worker;
  GrantRef grant;
  std::string reason;
  bool chunk_at_fault = false;
  bool returned = false;
};
// OK also when it is ignored, since that worker never held that grant. NotFound as OnDone.
absl::Status OnFailed(State& state, const FailedEvent& event, absl::Duration now, Effects& effects);

// --- From students

struct StartRunEvent {
  std::string run;
  uint64_t incarnation = 0;
  std::string host;
  int64_t pid = 0;
};
struct StartRunAnswer {
  const Job* job = nullptr;
  const Run* run = nullptr;
};
absl::StatusOr<StartRunAnswer> OnStartRun(State& state, const StartRunEvent& event,
                                          absl::Duration now, Effects& effects);

struct WantEvent {
  std::string run;
  uint64_t run_epoch = 0;
  // Chunk, in how long; in the order in which they are read. What is listed no more was read.
  std::vector<std::pair<uint32_t, absl::Duration>> items;
};
enum class ChunkAnswer : uint8_t { kPending, kDurable, kPoisoned, kNeedsTeacher };
struct WantAnswerRow {
  std::vector<ChunkAnswer> states;
  bool cancelled = false;
};
absl::StatusOr<WantAnswerRow> OnWant(State& state, const WantEvent& event, absl::Duration now,
                                     Effects& effects);

// True: the run was cancelled.
absl::StatusOr<bool> OnReport(State& state, const std::string& run, uint64_t run_epoch,
                              const RunProgress& progress, absl::Duration now, Effects& effects);
absl::Status OnCommitCheckpoint(State& state, const std::string& run, uint64_t run_epoch,
                                uint64_t step, const std::string& folder, Effects& effects);

// --- Shared by the functions above

Job* FindJob(State& state, const std::string& name);  // "job/x" or "x"; null if unknown
// Median time of a chunk of the job; zero while too few are known.
absl::Duration MedianChunkTime(const Job& job);
absl::Duration StallLimit(const Job& job);
bool Serves(const Worker& worker, const Job& job);  // same teacher, same dtype, alive, not leaving
// So many workers were lost alone with the chunk that what else the job loses does not explain it.
// Preempted workers die all the time, and a chunk that kills each worker that touches it must not
// go on for ever; the share of all other leases that were lost tells one from the other.
bool IsDeadly(const Job& job, const Chunk& chunk);
std::string DescribeChunk(const std::string& job, uint32_t chunk);
// `rows` of the chunk were computed under this grant: the job and its paying run are charged for
// what was not charged before.
void ChargeRows(State& state, Job& job, uint32_t chunk, uint64_t epoch, uint64_t rows,
                Effects& effects);
// One more failure in a row of this process; at kWorkerFailuresMax it is quarantined.
void BlameWorker(Worker& worker, const std::string& reason, Effects& effects);
// The chunk table said that these grants are moot.
void RemoveLeases(State& state, const std::vector<uint64_t>& epochs);
// Captured or failed, when every chunk is settled; where chunks come and go, also when every run
// has ended.
void SettleJob(const State& state, Job& job, Effects& effects);

}  // namespace stillhouse
