// PoolWorker: computes leased chunks with a TeacherBackend and stores them through a CacheClient.
//
//   Start ─► artefacts stored? ─► plan here? ─► compute thread: batch by batch, encode, hand over
//   ─┐
//     done ◄─ influence stored (chunk 0) ◄─ every Put acknowledged as durable ◄─ executor: Put
//     ◄───┘
//
// Owner: a main. Threads: all methods on the executor; one compute thread of its own runs the
// model, which it alone uses. Ordering: one chunk at a time. Backpressure: the compute thread waits
// while more than kBytesInFlightMax of parts are not acknowledged. Durability: `done` comes after
// the cache has acknowledged every part, progress grows with acknowledged rows. A chunk's batches
// are always all computed, in the shapes of the plan: what the cache holds already it compares and
// keeps.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/digest.h"
#include "common/executor.h"
#include "common/thread_pool.h"
#include "dataset/plan.h"
#include "storage/service/cache_client.h"
#include "teacher_pool/artefacts.h"
#include "teacher_pool/capture.h"
#include "teacher_pool/teacher_backend.h"
#include "worker/agent.h"

namespace stillhouse {

struct PoolWorkerOptions {
  Digest teacher;
  uint32_t vocabulary = 0;  // the tokenizer's size
  Digest tokenizer_fingerprint;
  std::vector<Artefact> artefacts;
};

class PoolWorker final : public ChunkWorker {
 public:
  // Bounds memory when the cache is slower than the teacher: a few Puts, each at most kPutBytesMax.
  static constexpr uint64_t kBytesInFlightMax = 64ull << 20;
  static constexpr size_t kPlansKeptMax = 4;  // jobs of one teacher that alternate

  // The references must outlive the worker. InvalidArgument if the backend cannot serve the
  // options.
  static absl::StatusOr<std::unique_ptr<PoolWorker>> Create(PoolWorkerOptions options,
                                                            TeacherBackend& backend,
                                                            CacheClient& cache, Executor& executor);
  ~PoolWorker() override;

  void Start(const ChunkGrant& grant, absl::AnyInvocable<void(uint64_t)> progress,
             absl::AnyInvocable<void(absl::StatusOr<ChunkResult>)> done) override;
  uint64_t Steps() const override;
  void Cancel() override;

 private:
  struct Task;

  PoolWorker(PoolWorkerOptions options, Capturer capturer, TeacherBackend& backend,
             CacheClient& cache, Executor& executor);
  void Begin();
  void StoreArtefacts(size_t next);
  void FetchPlan();
  void UsePlan(std::shared_ptr<const Plan> plan);
  void PutParts(const std::shared_ptr<Task>& task, std::vector<Part> parts, const SectionSpec& spec,
                uint64_t bytes, size_t batch);
  void BatchQueued(const std::shared_ptr<Task>& task, size_t batch);
  void Acknowledged(const std::shared_ptr<Task>& task, absl::StatusOr<StoreAck> ack, size_t batch);
  void Computed(const std::shared_ptr<Task>& task, absl::Status status, std::string influence);
  void StoreInfluence();
  void MaybeFinish();
  void Finish(absl::StatusOr<ChunkResult> result);

  // Compute thread.
  void Compute(const std::shared_ptr<Task>& task);
  absl::Status ComputeBatch(const std::shared_ptr<Task>& task, size_t batch,
                            const CaptureRequest& request, BlockInfluence* influence);

  const PoolWorkerOptions options_;
  Capturer capturer_;  // compute thread
  TeacherBackend& backend_;
  CacheClient& cache_;
  Executor& executor_;

  // Executor.
  bool artefacts_stored_ = false;
  std::vector<std::shared_ptr<const Plan>> plans_;              // the latest used last
  std::shared_ptr<Task> task_;                                  // null when idle
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // false once destroyed

  std::unique_ptr<ThreadPool> thread_;  // last: its destructor waits for the computation
};

}  // namespace stillhouse
