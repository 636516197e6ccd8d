// ChunkTable: the state of every chunk of one job, and the order in which they are handed out.
//
// Owner: a Job of the coordinator's State. Not thread-safe. What is journaled: durable and
// poisoned, failures, charges; grants and demand are volatile. Pure: no clock, no I/O.
//
//                   1 granted                 3 done reported
//      [pending] ───────────────► [leased] ─────────────────► [confirming]
//       ▲ │ ▲ ▲                    │ ▲ └2 ┘ granted again       │ ▲ │ 4 the cache has it
//       │ │ │ └─6 last grant ended─┘ │                          │ │ ▼
//       │ │ │                        └──────5 it has it not─────┤ │[durable]
//       │ │ └────────5 it has it not, no grant left ────────────┘ │   │ ▲
//       │ └──────────7 late done──────────────────────────────────┘   │ ▲
//       └────────────10 lost by the cache, found when reconciling ────┘ └─9 found when reconciling,
//                                                                         from any state
//      [durable] ──13 released, its place is needed──► [confirming]
//      [pending], [leased] ──8 third attributed failure──► [poisoned]   (a lost worker is none, see
//                                                                        IsDeadly in state.h)
//      [poisoned] ──11 late done──► [confirming]
//      [poisoned] ──12 submitted again──► [pending]
//
// "leased" holds exactly when there is a live grant and nobody has said done; a confirming chunk
// may have live grants too, and any of them may still finish it.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace stillhouse {

enum class ChunkState : uint8_t { kPending, kLeased, kConfirming, kDurable, kPoisoned };

// One process of a worker: a restarted one has another incarnation.
struct WorkerRef {
  std::string name;
  uint64_t incarnation = 0;
  friend bool operator==(const WorkerRef&, const WorkerRef&) = default;
};

struct ChunkSpec {
  uint64_t rows = 0;
  bool held_out = false;
  uint64_t bytes_max = 0;  // what it may take in a bounded cache; 0: nobody counts
  friend bool operator==(const ChunkSpec&, const ChunkSpec&) = default;
};

struct ChunkFailure {
  WorkerRef worker;
  std::string reason;
  friend bool operator==(const ChunkFailure&, const ChunkFailure&) = default;
};

// Charged to when it is not known who computed the rows; the first grant reported takes it over.
inline constexpr uint64_t kUnknownGrant = 0;

struct ChunkCharge {
  uint64_t epoch = 0;  // of the grant under which the rows were computed
  uint64_t rows = 0;
  friend bool operator==(const ChunkCharge&, const ChunkCharge&) = default;
};

struct Chunk {
  ChunkSpec spec;
  ChunkState state = ChunkState::kPending;
  std::vector<uint64_t> grants;        // epochs of the live ones
  std::vector<ChunkFailure> failures;  // attributed to the chunk, at most one per incarnation
  std::vector<ChunkCharge> charges;    // teacher rows computed for it, per grant
  // Volatile, since it was last stored or forgiven: workers lost with it, and those of them that
  // were alone with it on a retry, at most one loss per incarnation.
  uint32_t losses = 0;
  std::vector<ChunkFailure> solo_losses;
  bool solo = false;  // a worker was lost with it: one grant at a time
  WorkerRef avoid;    // and elsewhere, if there is an elsewhere
  WorkerRef done_by;  // who said done, while confirming
};

class ChunkTable {
 public:
  ChunkTable() = default;
  explicit ChunkTable(const std::vector<ChunkSpec>& specs);

  size_t size() const { return chunks_.size(); }
  const Chunk& at(uint32_t index) const { return chunks_[index]; }
  std::vector<ChunkSpec> specs() const;

  // --- Transitions. REQUIRES (all): index < size().

  // T1, T2. REQUIRES: pending, leased or confirming; fewer than kGrantsPerChunkMax grants.
  void Grant(uint32_t index, uint64_t epoch);
  // T6 when it was the last of a leased chunk. Ok if there is no such grant.
  void EndGrant(uint32_t index, uint64_t epoch);
  // T3, T7, T11. False, and nothing changed, if the chunk is durable. The grant is ended.
  bool ReportDone(uint32_t index, uint64_t epoch, const WorkerRef& by);
  // T4, T9: durable, whatever it was. Returns the grants that are thereby moot; they are ended.
  std::vector<uint64_t> ConfirmPresent(uint32_t index);
  // T5 of a confirming chunk, T10 of a durable one; else nothing.
  void ConfirmAbsent(uint32_t index);
  // T13: it is being taken out of the cache, which is asked then. REQUIRES: durable.
  void StartRelease(uint32_t index);
  // Records a failure unless this incarnation has failed it before. T8 at the kChunkFailuresMax-th,
  // when all grants are ended; returns those.
  std::vector<uint64_t> AddFailure(uint32_t index, ChunkFailure failure);
  // A worker was lost with it, which by itself is no failure. `solo`: alone, on a retry.
  void AddLoss(uint32_t index, ChunkFailure loss, bool solo);
  // T12: every poisoned chunk is pending again, its failures forgotten. Returns which.
  std::vector<uint32_t> ForgivePoisoned();

  // --- What goes with a chunk

  // A worker was lost with it or gave it up: next time alone (`solo`) and elsewhere.
  void RetryElsewhere(uint32_t index, const WorkerRef& avoid, bool solo);
  // Raises the charge of a grant to `rows`; returns by how much.
  uint64_t Charge(uint32_t index, uint64_t epoch, uint64_t rows);
  // A run will read the chunk at `deadline`. Replaces what the run wanted before.
  void Want(uint32_t index, const std::string& run, absl::Duration deadline);
  bool FailedIn(uint32_t index, const WorkerRef& worker) const;
  // Puts back what the journal said. REQUIRES: a pending chunk without grants.
  void Restore(uint32_t index, ChunkState state, std::vector<ChunkFailure> failures,
               std::vector<ChunkCharge> charges);

  // --- Order: earliest demand, then training chunks, then held-out ones, each by index.

  struct PendingKey {
    absl::Duration deadline;  // infinite when nobody asked
    bool held_out;
    uint32_t index;
    friend bool operator<(const PendingKey& a, const PendingKey& b) {
      return std::tie(a.deadline, a.held_out, a.index) < std::tie(b.deadline, b.held_out, b.index);
    }
  };
  const std::set<PendingKey>& pending() const { return pending_; }
  const std::set<uint32_t>& leased() const { return leased_; }

  size_t CountIn(ChunkState state) const { return counts_[static_cast<size_t>(state)]; }
  uint64_t rows() const { return rows_; }
  uint64_t rows_durable() const { return rows_durable_; }
  bool AllSettled() const {  // durable or poisoned
    return CountIn(ChunkState::kDurable) + CountIn(ChunkState::kPoisoned) == size();
  }

 private:
  void Move(uint32_t index, ChunkState to);
  PendingKey KeyOf(uint32_t index) const;
  std::vector<uint64_t> TakeGrants(uint32_t index);

  std::vector<Chunk> chunks_;
  std::set<PendingKey> pending_;
  std::set<uint32_t> leased_;
  std::map<uint32_t, std::map<std::string, absl::Duration>> demand_;
  size_t counts_[5] = {};
  uint64_t rows_ = 0;
  uint64_t rows_durable_ = 0;
};

}  // namespace stillhouse
