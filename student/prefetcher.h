// Prefetcher: brings what the cache holds of a list of documents, in their order, ahead of the
// reader.
//
// Event-driven: every method and callback runs on one executor; it owns no thread and never blocks.
// It tells the coordinator which chunks it will read, in their order, and in how long, waits for
// those that are pending, fetches durable ones in batches, decodes and checks. It never skips a
// document: where one cannot be had, Take fails, with the RunStop (run_stop.h) that says why.
//
// One document's way:
//
//               chunk durable            parts here and decoded          taken
//   [waiting] ──1───────────► [fetching] ──2────────────────► [ready] ──3─────►
//       ▲                         │ 4 a part is not there (asked again, a limited number of times)
//       └─────────────────────────┘
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/digest.h"
#include "common/executor.h"
#include "dataset/plan.h"
#include "storage/sections.h"
#include "storage/service/cache_client.h"
#include "student/chunk_watch.h"
#include "student/packing.h"
#include "worker/run_client.h"

namespace stillhouse {

struct PrefetchOptions {
  Digest teacher;
  std::vector<SectionSpec> sections;  // empty: nothing is fetched, nothing is waited for
  uint64_t read_ahead_rows = 8192;    // fetched or decoded and not yet taken; Take may ask for more
  absl::Duration needs_teacher_grace = kNeedsTeacherGrace;
  // Told, on the executor, what a Take waits for, in words, whenever that changes. May be null.
  std::function<void(const std::string& what)> on_wait = nullptr;
};

// A document of the list. Those of other ranks are not fetched, but their chunks are asked for too:
// so every rank tells the coordinator the same.
struct ListedDocument {
  uint32_t document = 0;
  bool mine = true;
};
using DocumentList = absl::AnyInvocable<std::optional<ListedDocument>()>;

class Prefetcher {
 public:
  using TakeCallback = absl::AnyInvocable<void(absl::StatusOr<std::vector<DocumentTargets>>)>;

  // `next` gives the documents in order, then nullopt. The references must outlive the prefetcher.
  Prefetcher(Executor& executor, RunClient& run, CacheClient& cache,
             std::shared_ptr<const Plan> plan, PrefetchOptions options, DocumentList next);
  ~Prefetcher();  // a pending Take is dropped without a call
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // The next `count` documents that are mine, once all are here; fewer only at the end of the list.
  // One at a time. A failure is for good: later calls give it again.
  void Take(size_t count, TakeCallback done);
  // Fails the pending Take and all later ones.
  void Fail(absl::Status why);
  // How fast documents are read, for the estimates given to the coordinator.
  void SetRate(double rows_per_s) { rows_per_s_ = rows_per_s; }

 private:
  enum class State { kWaiting, kFetching, kReady };
  struct Entry {
    DocumentTargets targets;
    uint32_t chunk = 0;
    uint32_t rows = 0;
    bool mine = true;
    State state = State::kWaiting;  // of another rank: ready
  };
  struct ChunkState {
    ChunkWatch watch;
    bool asked = false;
    int missing = 0;  // how often a part of it was not there
  };
  // One request to the cache: entries by document, with the parts of each.
  struct Fetch;

  void Pump();
  void FillQueue();
  void AskForChunks();
  void OnWantAnswer(const std::vector<WantItem>& items, absl::StatusOr<WantAnswer> answer);
  ChunkState& Chunk(uint32_t chunk);
  void StartFetches();
  bool StartFetch(uint64_t rows_allowed);
  void OnFetched(std::shared_ptr<Fetch> fetch,
                 absl::StatusOr<std::vector<std::optional<Part>>> parts);
  absl::Status Decode(const Fetch& fetch, std::vector<std::optional<Part>>& parts);
  void Deliver();
  void TellWhatIsMissing(size_t end);
  void NoteChunksPassed(std::set<uint32_t> passed);
  uint64_t RowsWanted() const;
  size_t EndOfTake(size_t count) const;

  Executor& executor_;
  RunClient& run_;
  CacheClient& cache_;
  const std::shared_ptr<const Plan> plan_;
  const PrefetchOptions options_;
  DocumentList next_;
  bool at_end_ = false;

  std::deque<Entry> queue_;
  size_t mine_queued_ = 0;
  uint64_t first_serial_ = 0;  // of queue_.front(), counted over all documents ever queued
  std::map<uint32_t, ChunkState> chunks_;
  bool want_in_flight_ = false;
  bool chunk_passed_ = false;  // since the coordinator was asked last
  TimerId retry_timer_ = 0;
  int fetches_ = 0;
  double rows_per_s_ = 0;
  absl::Status failed_;
  size_t take_count_ = 0;
  TakeCallback take_done_;
  std::string told_;  // what the pending Take waits for
  // Callbacks of others hold a weak reference, so that they find out when this object is gone.
  std::shared_ptr<Prefetcher*> self_;
};

}  // namespace stillhouse
