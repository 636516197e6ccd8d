// LeaseTable: every live grant, by epoch and by deadline.
//
// Owner: the coordinator's State. Not thread-safe. Volatile: after a restart workers present their
// grants again. Epochs are never used twice: their upper half is the coordinator's incarnation,
// which grows with every opening of the journal, their lower half a counter. Pure: `now` is passed
// in.
//
//             1 add                 2 renewed by a heartbeat
//      (none) ────► [live] ◄──────────────────┐
//                     ├───────────────────────┘
//                     ├─3 deadline passed ────► (none)   worker lost, or it does not know the grant
//                     ├─4 no progress ────────► (none)   refused at a heartbeat
//                     └─5 done, failed, moot ─► (none)
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/chunk_table.h"

namespace stillhouse {

struct Lease {
  uint64_t epoch = 0;
  std::string job;
  uint32_t chunk = 0;
  WorkerRef worker;
  absl::Duration granted_at;
  absl::Duration deadline;
  absl::Duration progressed_at;
  uint64_t rows_done = 0;  // stored
  uint64_t steps = 0;      // of the computation
  bool solo = false;       // a retry after a worker was lost with the chunk
};

class LeaseTable {
 public:
  // T1. REQUIRES: the epoch is not there.
  void Add(Lease lease);
  Lease* Find(uint64_t epoch);  // null if there is none
  const Lease* Find(uint64_t epoch) const { return const_cast<LeaseTable*>(this)->Find(epoch); }
  // T2. Progress is noted if `rows_done` or `steps` grew: a slow teacher computes for long before
  // it stores anything. False, and not renewed, if there was none for `stall`.
  bool Renew(uint64_t epoch, uint64_t rows_done, uint64_t steps, absl::Duration stall,
             absl::Duration now);
  // T3, T4, T5. REQUIRES: it is there.
  Lease Remove(uint64_t epoch);

  std::vector<uint64_t> ExpiredAt(absl::Duration now) const;
  std::vector<uint64_t> HeldBy(const std::string& worker) const;
  // The coordinator itself was absent for `gap`: nobody loses a lease by that.
  void AddGap(absl::Duration gap);
  size_t size() const { return leases_.size(); }

 private:
  std::map<uint64_t, Lease> leases_;
  std::set<std::pair<absl::Duration, uint64_t>> by_deadline_;
  std::map<std::string, std::set<uint64_t>> by_worker_;
};

}  // namespace stillhouse
