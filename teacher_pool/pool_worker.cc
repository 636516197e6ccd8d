#include "teacher_pool/pool_worker.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status.h"
#include "model/parallel.h"
#include "teacher_pool/captured_parts.h"

namespace stillhouse {
namespace {

// Only the cache's lack of room is waited out: another resource may be exhausted for good.
absl::Status NoLackOfRoom(absl::Status status) {
  return absl::IsResourceExhausted(status) ? absl::InternalError(status.message()) : status;
}

// A failure of the plan's bytes or of the cache is not the chunk's: only capture may blame it.
absl::Status BlameTheWorld(const absl::Status& status, absl::string_view what) {
  const bool blames = absl::IsInvalidArgument(status) || absl::IsDataLoss(status);
  return Annotate(blames ? absl::InternalError(status.message()) : status, what);
}

}  // namespace

// One grant's work. Members without a guard belong to the executor, except that the compute thread
// reads what is constant once it runs.
struct PoolWorker::Task {
  ChunkGrant grant;
  absl::AnyInvocable<void(uint64_t)> progress;
  absl::AnyInvocable<void(absl::StatusOr<ChunkResult>)> done;
  absl::Duration started;

  // Constant once the computation runs.
  std::shared_ptr<const Plan> plan;
  std::vector<SectionSpec> specs;

  // A batch's rows count as progress once all its Puts were sent and acknowledged.
  struct BatchState {
    uint64_t rows = 0;
    size_t puts_open = 0;
    bool queued = false;
  };
  std::vector<BatchState> batches;
  size_t puts_open = 0;
  uint64_t rows_durable = 0;
  bool computed = false;
  std::string influence;  // waits for the parts to be durable; then stored and cleared
  ChunkResult result;
  absl::Status failure;

  std::atomic<bool> stop = false;  // ends the computation at the next batch
  std::atomic<uint64_t> steps = 0;
  Mutex mutex;
  CondVar changed;
  uint64_t bytes_in_flight ABSL_GUARDED_BY(mutex) = 0;

  void Stop() {
    MutexLock lock(mutex);
    stop = true;
    changed.NotifyAll();
  }
  // False when stopped meanwhile. One Put is always let through, whatever its size.
  bool WaitForRoom(uint64_t bytes) {
    MutexLock lock(mutex);
    while (!stop && bytes_in_flight > 0 && bytes_in_flight + bytes > kBytesInFlightMax) {
      changed.Wait(mutex);
    }
    bytes_in_flight += bytes;
    return !stop;
  }
  void FreeRoom(uint64_t bytes) {
    MutexLock lock(mutex);
    bytes_in_flight -= bytes;
    changed.NotifyAll();
  }
};

absl::StatusOr<std::unique_ptr<PoolWorker>> PoolWorker::Create(PoolWorkerOptions options,
                                                               TeacherBackend& backend,
                                                               CacheClient& cache,
                                                               Executor& executor) {
  SH_ASSIGN_OR_RETURN(Capturer capturer, Capturer::Create(backend, options.vocabulary));
  return std::unique_ptr<PoolWorker>(
      new PoolWorker(std::move(options), std::move(capturer), backend, cache, executor));
}

PoolWorker::PoolWorker(PoolWorkerOptions options, Capturer capturer, TeacherBackend& backend,
                       CacheClient& cache, Executor& executor)
    : options_(std::move(options)),
      capturer_(std::move(capturer)),
      backend_(backend),
      cache_(cache),
      executor_(executor),
      thread_(std::make_unique<ThreadPool>(1)) {}

PoolWorker::~PoolWorker() {
  *alive_ = false;
  if (task_ != nullptr) task_->Stop();
}

void PoolWorker::Start(const ChunkGrant& grant, absl::AnyInvocable<void(uint64_t)> progress,
                       absl::AnyInvocable<void(absl::StatusOr<ChunkResult>)> done) {
  SH_CHECK(task_ == nullptr, "a chunk is being computed");
  task_ = std::make_shared<Task>();
  task_->grant = grant;
  task_->progress = std::move(progress);
  task_->done = std::move(done);
  task_->started = executor_.clock().Now();
  // Posted, since an agent does not expect an answer inside Start.
  executor_.Post([this, alive = alive_, task = task_] {
    if (*alive && task == task_) Begin();
  });
}

void PoolWorker::Begin() {
  if (!task_->failure.ok()) return Finish(task_->failure);
  for (const std::string& canonical : task_->grant.sections) {
    absl::StatusOr<SectionSpec> spec = ParseSectionSpec(canonical);
    if (!spec.ok()) return Finish(absl::UnimplementedError(spec.status().message()));
    task_->specs.push_back(*std::move(spec));
  }
  StoreArtefacts(0);
}

uint64_t PoolWorker::Steps() const { return task_ == nullptr ? 0 : task_->steps.load(); }

void PoolWorker::Cancel() {
  if (task_ == nullptr) return;
  if (task_->failure.ok()) task_->failure = absl::CancelledError("the chunk was cancelled");
  task_->Stop();
  // The compute thread, if it runs, still answers; parts on their way are harmless.
  if (task_->plan != nullptr) return;
  executor_.Post([this, alive = alive_, task = task_] {
    if (*alive && task == task_) Finish(task->failure);
  });
}

void PoolWorker::StoreArtefacts(size_t next) {
  if (artefacts_stored_ || next == options_.artefacts.size()) {
    artefacts_stored_ = true;
    FetchPlan();
    return;
  }
  const Artefact& artefact = options_.artefacts[next];
  cache_.PutObject(ArtefactObjectName(options_.teacher, artefact.name), artefact.bytes, {},
                   [this, alive = alive_, task = task_, next](absl::StatusOr<StoreAck> ack) {
                     if (!*alive || task != task_) return;
                     const std::string& name = options_.artefacts[next].name;
                     if (absl::IsAlreadyExists(ack.status())) {
                       LogWarning("artefact ", name, " was stored with other bytes; it stays");
                     } else if (!ack.ok()) {
                       Finish(BlameTheWorld(ack.status(), absl::StrCat("storing artefact ", name)));
                       return;
                     }
                     StoreArtefacts(next + 1);
                   });
}

void PoolWorker::FetchPlan() {
  const Digest wanted = task_->grant.plan;
  const auto known = std::find_if(plans_.begin(), plans_.end(),
                                  [&](const auto& plan) { return plan->digest() == wanted; });
  if (known != plans_.end()) {
    std::rotate(known, known + 1, plans_.end());
    UsePlan(plans_.back());
    return;
  }
  cache_.GetObject(
      PlanObjectName(wanted), [this, alive = alive_, task = task_](
                                  absl::StatusOr<std::shared_ptr<const std::string>> bytes) {
        if (!*alive || task != task_) return;
        if (!bytes.ok()) {
          return Finish(BlameTheWorld(NoLackOfRoom(bytes.status()), "fetching the plan"));
        }
        absl::StatusOr<std::shared_ptr<const Plan>> plan = ParsePlan(*std::move(bytes));
        if (!plan.ok()) {
          return Finish(BlameTheWorld(NoLackOfRoom(plan.status()), "reading the plan"));
        }
        if (plans_.size() == kPlansKeptMax) plans_.erase(plans_.begin());
        plans_.push_back(*std::move(plan));
        UsePlan(plans_.back());
      });
}

void PoolWorker::UsePlan(std::shared_ptr<const Plan> plan) {
  Task& task = *task_;
  if (!task.failure.ok()) return Finish(task.failure);
  if (plan->tokenizer_fingerprint() != options_.tokenizer_fingerprint) {
    return Finish(absl::FailedPreconditionError(
        absl::StrCat("plan ", plan->digest().ShortHex(), " was made with another tokenizer (",
                     plan->tokenizer_fingerprint().ShortHex(), "; this teacher's is ",
                     options_.tokenizer_fingerprint.ShortHex(), ")")));
  }
  if (task.grant.chunk >= plan->chunk_count()) {
    return Finish(absl::FailedPreconditionError(
        absl::StrCat("chunk ", task.grant.chunk, " of a plan of ", plan->chunk_count())));
  }
  const PlanChunk chunk = plan->chunk(task.grant.chunk);
  for (const PlanBatch& batch : chunk.batches) {
    Task::BatchState state;
    for (uint32_t d = batch.begin; d < batch.end; ++d) state.rows += plan->document(d).rows();
    task.batches.push_back(state);
  }
  task.result.rows_computed = chunk.rows;
  task.plan = std::move(plan);
  thread_->Post([this, task = task_] { Compute(task); });
}

void PoolWorker::Compute(const std::shared_ptr<Task>& task) {
  AdoptComputeThreads();
  const Plan& plan = *task->plan;
  const PlanChunk chunk = plan.chunk(task->grant.chunk);
  BlockInfluence influence(backend_.config().layers);
  BlockInfluence* const wanted = task->grant.chunk == 0 ? &influence : nullptr;
  absl::StatusOr<CaptureRequest> request = MakeCaptureRequest(task->specs, backend_.config());
  absl::Status status = request.status();
  for (size_t b = 0; status.ok() && b < chunk.batches.size(); ++b) {
    status = ComputeBatch(task, b, *request, wanted);
  }
  std::string json = status.ok() && wanted != nullptr ? influence.ToJson() : "";
  executor_.Post(
      [this, alive = alive_, task, status = std::move(status), json = std::move(json)]() mutable {
        if (*alive) Computed(task, std::move(status), std::move(json));
      });
}

absl::Status PoolWorker::ComputeBatch(const std::shared_ptr<Task>& task, size_t batch,
                                      const CaptureRequest& request, BlockInfluence* influence) {
  if (task->stop) return absl::CancelledError("the chunk was cancelled");
  const PlanChunk chunk = task->plan->chunk(task->grant.chunk);
  SH_ASSIGN_OR_RETURN_AT(
      const std::vector<CapturedDocument> documents,
      capturer_.Run(*task->plan, chunk.batches[batch], request, influence, [&] { ++task->steps; }),
      absl::StrCat("plan ", task->plan->digest().ShortHex(), " chunk ", task->grant.chunk));
  for (size_t s = 0; s < request.size(); ++s) {
    const SectionSpec& spec = request[s];
    std::vector<Part> parts = EncodeParts(*task->plan, options_.teacher, spec, s, documents);
    for (size_t next = 0; next < parts.size();) {
      std::vector<Part> put;
      uint64_t bytes = 0;
      while (next < parts.size() && bytes + parts[next].payload.size() <= kPutBytesMax) {
        bytes += parts[next].payload.size();
        put.push_back(std::move(parts[next++]));
      }
      SH_CHECK(!put.empty(), "a part larger than a Put");
      if (!task->WaitForRoom(bytes)) return absl::CancelledError("the chunk was cancelled");
      executor_.Post(
          [this, alive = alive_, task, put = std::move(put), spec, bytes, batch]() mutable {
            if (*alive) PutParts(task, std::move(put), spec, bytes, batch);
          });
    }
  }
  executor_.Post([this, alive = alive_, task, batch] {
    if (*alive) BatchQueued(task, batch);
  });
  return absl::OkStatus();
}

void PoolWorker::PutParts(const std::shared_ptr<Task>& task, std::vector<Part> parts,
                          const SectionSpec& spec, uint64_t bytes, size_t batch) {
  if (task != task_ || !task->failure.ok()) return task->FreeRoom(bytes);
  ++task->puts_open;
  ++task->batches[batch].puts_open;
  const Provenance provenance{options_.teacher, task->grant.plan, task->grant.chunk, spec,
                              backend_.producer_class()};
  cache_.Put(std::move(parts), provenance,
             [this, alive = alive_, task, bytes, batch](absl::StatusOr<StoreAck> ack) {
               task->FreeRoom(bytes);
               if (*alive) Acknowledged(task, std::move(ack), batch);
             });
}

void PoolWorker::BatchQueued(const std::shared_ptr<Task>& task, size_t batch) {
  if (task != task_) return;
  Task::BatchState& state = task->batches[batch];
  state.queued = true;
  if (state.puts_open == 0) {
    task->rows_durable += state.rows;
    task->progress(task->rows_durable);
  }
}

void PoolWorker::Acknowledged(const std::shared_ptr<Task>& task, absl::StatusOr<StoreAck> ack,
                              size_t batch) {
  if (task != task_) return;
  --task->puts_open;
  if (!ack.ok()) {
    if (task->failure.ok()) task->failure = BlameTheWorld(ack.status(), "storing parts");
    task->Stop();
    return MaybeFinish();
  }
  task->result.parts_mismatched += ack->mismatched;
  const auto same = [&](const ChunkResult::Ack& known) {
    return known.store_id == ack->store_id && known.incarnation == ack->incarnation;
  };
  if (std::none_of(task->result.acks.begin(), task->result.acks.end(), same)) {
    task->result.acks.push_back({ack->store_id, ack->incarnation});
  }
  Task::BatchState& state = task->batches[batch];
  if (--state.puts_open == 0 && state.queued) {
    task->rows_durable += state.rows;
    task->progress(task->rows_durable);
  }
  MaybeFinish();
}

void PoolWorker::Computed(const std::shared_ptr<Task>& task, absl::Status status,
                          std::string influence) {
  if (task != task_) return;
  task->computed = true;
  task->influence = std::move(influence);
  if (task->failure.ok()) task->failure = NoLackOfRoom(std::move(status));
  MaybeFinish();
}

void PoolWorker::MaybeFinish() {
  Task& task = *task_;
  if (!task.computed) return;
  if (!task.failure.ok()) return Finish(task.failure);
  if (task.puts_open > 0) return;
  if (!task.influence.empty()) return StoreInfluence();
  task.result.seconds = absl::ToDoubleSeconds(executor_.clock().Now() - task.started);
  Finish(std::move(task.result));
}

void PoolWorker::StoreInfluence() {
  const std::string name = InfluenceArtefactName(task_->grant.plan);
  auto bytes = std::make_shared<const std::string>(std::exchange(task_->influence, ""));
  cache_.PutObject(ArtefactObjectName(options_.teacher, name), std::move(bytes), {},
                   [this, alive = alive_, task = task_](absl::StatusOr<StoreAck> ack) {
                     if (!*alive || task != task_) return;
                     // Another producer class may have measured it first: one measurement is
                     // enough.
                     if (!ack.ok() && !absl::IsAlreadyExists(ack.status())) {
                       task->failure = BlameTheWorld(ack.status(), "storing block influence");
                     }
                     MaybeFinish();
                   });
}

void PoolWorker::Finish(absl::StatusOr<ChunkResult> result) {
  const std::shared_ptr<Task> task = std::exchange(task_, nullptr);
  task->Stop();
  task->done(std::move(result));
}

}  // namespace stillhouse
