// What the student's tests run against: a small plan, a made-up teacher, and a cache and
// coordinator in memory that answer as the real ones do.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/executor.h"
#include "dataset/plan.h"
#include "storage/service/cache_client.h"
#include "student/packing.h"
#include "worker/run_client.h"

namespace stillhouse {

struct TestPlanOptions {
  uint32_t documents = 24;
  uint32_t held_out_documents = 4;
  uint32_t rows_min = 3, rows_max = 20;
  uint32_t chunk_tokens = 48;
  uint32_t vocabulary = 53;
  uint32_t shuffle_window = 2;
  bool masked = false;  // every third label does not count
  Digest tokenizer;
  uint64_t seed = 5;
};
std::string MakeTestPlanBytes(const TestPlanOptions& options);
std::shared_ptr<const Plan> MakeTestPlan(const TestPlanOptions& options);

// What the made-up teacher says of a document: a pure function of its key.
struct TestTeacher {
  Digest fingerprint;
  uint32_t vocabulary = 53;
  uint32_t hidden_size = 12;
  uint32_t draws = 50;
  uint32_t top_k = 0;  // 0: no logits/topk

  std::vector<SectionSpec> Sections() const;  // stats, logits/sampled, hidden/last, logits/topk
  DocumentTargets Targets(const Plan& plan, uint32_t document) const;
  std::vector<Part> Parts(const Plan& plan, uint32_t document) const;  // of all sections
};

// Answers later, on the executor. Not thread-safe: executor only, but for the members set up
// before.
class FakeCache final : public CacheClient {
 public:
  explicit FakeCache(Executor& executor) : executor_(executor) {}

  void AddChunk(const Plan& plan, const TestTeacher& teacher, uint32_t chunk);
  std::map<PartKey, Part> parts;
  std::map<std::string, std::string> objects;
  size_t gets = 0, keys_in_largest_get = 0;

  void Put(std::vector<Part>, Provenance, Callback<StoreAck> done) override;
  void Get(std::vector<PartKey> keys, Callback<std::vector<std::optional<Part>>> done) override;
  void PutObject(std::string, std::shared_ptr<const std::string>, PutObjectOptions,
                 Callback<StoreAck> done) override;
  void GetObject(std::string name, Callback<std::shared_ptr<const std::string>> done) override;
  void Inventory(InventoryRequest, Callback<std::vector<bool>> done) override;

 private:
  Executor& executor_;
};

class FakeRun final : public RunClient {
 public:
  explicit FakeRun(Executor& executor) : executor_(executor) {}

  std::map<uint32_t, ChunkAvailability> states;  // absent: pending
  absl::Duration retry = absl::Milliseconds(50);
  bool cancelled = false;
  std::set<uint32_t> wanted;
  std::vector<RunReport> reports;
  std::string committed;       // the last checkpoint
  absl::Status commit_status;  // what CommitCheckpoint answers
  // Called first, on the executor.
  std::function<void(const RunReport&)> on_report;
  std::function<void()> on_commit;

  void Start(Callback<RunSpec> done) override;
  void Want(std::vector<WantItem> items, Callback<WantAnswer> done) override;
  void Report(RunReport report, Callback<bool> done) override;
  void CommitCheckpoint(uint64_t step, std::string folder, Callback<bool> done) override;

 private:
  Executor& executor_;
};

}  // namespace stillhouse
