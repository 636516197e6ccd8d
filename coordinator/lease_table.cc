#include "coordinator/lease_table.h"

#include <algorithm>

#include "common/status.h"
#include "coordinator/limits.h"

namespace stillhouse {

void LeaseTable::Add(Lease lease) {
  by_deadline_.emplace(lease.deadline, lease.epoch);
  by_worker_[lease.worker.name].insert(lease.epoch);
  const uint64_t epoch = lease.epoch;
  const bool added = leases_.emplace(epoch, std::move(lease)).second;
  SH_CHECK(added, "lease epoch ", epoch, " was used twice");
}

Lease* LeaseTable::Find(uint64_t epoch) {
  auto it = leases_.find(epoch);
  return it == leases_.end() ? nullptr : &it->second;
}

bool LeaseTable::Renew(uint64_t epoch, uint64_t rows_done, uint64_t steps, absl::Duration stall,
                       absl::Duration now) {
  Lease* lease = Find(epoch);
  SH_CHECK(lease != nullptr, "renewing no lease");
  if (rows_done > lease->rows_done || steps > lease->steps) lease->progressed_at = now;
  lease->rows_done = std::max(lease->rows_done, rows_done);
  lease->steps = std::max(lease->steps, steps);
  if (now - lease->progressed_at > stall) return false;
  by_deadline_.erase({lease->deadline, epoch});
  lease->deadline = now + kLeaseLength;
  by_deadline_.emplace(lease->deadline, epoch);
  return true;
}

Lease LeaseTable::Remove(uint64_t epoch) {
  auto it = leases_.find(epoch);
  SH_CHECK(it != leases_.end(), "removing no lease");
  Lease lease = std::move(it->second);
  leases_.erase(it);
  by_deadline_.erase({lease.deadline, epoch});
  auto of_worker = by_worker_.find(lease.worker.name);
  of_worker->second.erase(epoch);
  if (of_worker->second.empty()) by_worker_.erase(of_worker);
  return lease;
}

std::vector<uint64_t> LeaseTable::ExpiredAt(absl::Duration now) const {
  std::vector<uint64_t> expired;
  for (const auto& [deadline, epoch] : by_deadline_) {
    if (deadline > now) break;
    expired.push_back(epoch);
  }
  return expired;
}

std::vector<uint64_t> LeaseTable::HeldBy(const std::string& worker) const {
  auto it = by_worker_.find(worker);
  if (it == by_worker_.end()) return {};
  return {it->second.begin(), it->second.end()};
}

void LeaseTable::AddGap(absl::Duration gap) {
  by_deadline_.clear();
  for (auto& [epoch, lease] : leases_) {
    lease.granted_at += gap;
    lease.deadline += gap;
    lease.progressed_at += gap;
    by_deadline_.emplace(lease.deadline, epoch);
  }
}

}  // namespace stillhouse
