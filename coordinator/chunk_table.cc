#include "coordinator/chunk_table.h"

#include <algorithm>

#include "common/status.h"
#include "common/utf8.h"
#include "coordinator/limits.h"

namespace stillhouse {

ChunkTable::ChunkTable(const std::vector<ChunkSpec>& specs) {
  chunks_.resize(specs.size());
  for (uint32_t i = 0; i < specs.size(); ++i) {
    chunks_[i].spec = specs[i];
    rows_ += specs[i].rows;
    pending_.insert(KeyOf(i));
  }
  counts_[static_cast<size_t>(ChunkState::kPending)] = specs.size();
}

std::vector<ChunkSpec> ChunkTable::specs() const {
  std::vector<ChunkSpec> specs;
  specs.reserve(chunks_.size());
  for (const Chunk& chunk : chunks_) specs.push_back(chunk.spec);
  return specs;
}

ChunkTable::PendingKey ChunkTable::KeyOf(uint32_t index) const {
  absl::Duration deadline = absl::InfiniteDuration();
  auto wants = demand_.find(index);
  if (wants != demand_.end()) {
    for (const auto& [run, when] : wants->second) deadline = std::min(deadline, when);
  }
  return {deadline, chunks_[index].spec.held_out, index};
}

void ChunkTable::Move(uint32_t index, ChunkState to) {
  Chunk& chunk = chunks_[index];
  const ChunkState from = chunk.state;
  if (from == to) return;
  if (from == ChunkState::kPending) pending_.erase(KeyOf(index));
  if (from == ChunkState::kLeased) leased_.erase(index);
  if (from == ChunkState::kDurable) rows_durable_ -= chunk.spec.rows;
  --counts_[static_cast<size_t>(from)];
  chunk.state = to;
  ++counts_[static_cast<size_t>(to)];
  if (to == ChunkState::kPending) pending_.insert(KeyOf(index));
  if (to == ChunkState::kLeased) leased_.insert(index);
  if (to == ChunkState::kDurable) rows_durable_ += chunk.spec.rows;
}

std::vector<uint64_t> ChunkTable::TakeGrants(uint32_t index) {
  return std::exchange(chunks_[index].grants, {});
}

void ChunkTable::Grant(uint32_t index, uint64_t epoch) {
  Chunk& chunk = chunks_[index];
  SH_CHECK(chunk.state != ChunkState::kDurable && chunk.state != ChunkState::kPoisoned,
           "granting a settled chunk ", index);
  SH_CHECK(chunk.grants.size() < kGrantsPerChunkMax, "too many grants of chunk ", index);
  chunk.grants.push_back(epoch);
  if (chunk.state == ChunkState::kPending) Move(index, ChunkState::kLeased);
}

void ChunkTable::EndGrant(uint32_t index, uint64_t epoch) {
  Chunk& chunk = chunks_[index];
  std::erase(chunk.grants, epoch);
  if (chunk.state == ChunkState::kLeased && chunk.grants.empty()) Move(index, ChunkState::kPending);
}

bool ChunkTable::ReportDone(uint32_t index, uint64_t epoch, const WorkerRef& by) {
  Chunk& chunk = chunks_[index];
  std::erase(chunk.grants, epoch);
  if (chunk.state == ChunkState::kDurable) return false;
  chunk.done_by = by;
  Move(index, ChunkState::kConfirming);
  return true;
}

std::vector<uint64_t> ChunkTable::ConfirmPresent(uint32_t index) {
  Move(index, ChunkState::kDurable);
  Chunk& chunk = chunks_[index];
  chunk.failures.clear();
  chunk.losses = 0;
  chunk.solo_losses.clear();
  chunk.solo = false;
  chunk.avoid = {};
  chunk.done_by = {};
  demand_.erase(index);
  return TakeGrants(index);
}

void ChunkTable::ConfirmAbsent(uint32_t index) {
  Chunk& chunk = chunks_[index];
  if (chunk.state == ChunkState::kConfirming) {
    chunk.done_by = {};
    Move(index, chunk.grants.empty() ? ChunkState::kPending : ChunkState::kLeased);
  } else if (chunk.state == ChunkState::kDurable) {
    Move(index, ChunkState::kPending);
  }
}

void ChunkTable::StartRelease(uint32_t index) {
  SH_CHECK(chunks_[index].state == ChunkState::kDurable, "releasing chunk ", index);
  Move(index, ChunkState::kConfirming);
}

bool ChunkTable::FailedIn(uint32_t index, const WorkerRef& worker) const {
  const std::vector<ChunkFailure>& failures = chunks_[index].failures;
  return std::any_of(failures.begin(), failures.end(),
                     [&](const ChunkFailure& failure) { return failure.worker == worker; });
}

std::vector<uint64_t> ChunkTable::AddFailure(uint32_t index, ChunkFailure failure) {
  Chunk& chunk = chunks_[index];
  if (chunk.state == ChunkState::kDurable || chunk.state == ChunkState::kPoisoned ||
      FailedIn(index, failure.worker)) {
    return {};
  }
  failure.reason = CleanUtf8(failure.reason, kReasonBytesMax);
  chunk.failures.push_back(std::move(failure));
  // While the cache is being asked its answer decides: it may be there in spite of everything.
  if (chunk.failures.size() < kChunkFailuresMax || chunk.state == ChunkState::kConfirming)
    return {};
  Move(index, ChunkState::kPoisoned);
  return TakeGrants(index);
}

void ChunkTable::AddLoss(uint32_t index, ChunkFailure loss, bool solo) {
  Chunk& chunk = chunks_[index];
  if (chunk.state == ChunkState::kDurable || chunk.state == ChunkState::kPoisoned) return;
  ++chunk.losses;
  const bool known =
      std::any_of(chunk.solo_losses.begin(), chunk.solo_losses.end(),
                  [&](const ChunkFailure& earlier) { return earlier.worker == loss.worker; });
  if (!solo || known) return;
  loss.reason = CleanUtf8(loss.reason, kReasonBytesMax);
  chunk.solo_losses.push_back(std::move(loss));
}

std::vector<uint32_t> ChunkTable::ForgivePoisoned() {
  std::vector<uint32_t> forgiven;
  if (CountIn(ChunkState::kPoisoned) == 0) return forgiven;
  for (uint32_t i = 0; i < chunks_.size(); ++i) {
    if (chunks_[i].state != ChunkState::kPoisoned) continue;
    chunks_[i].failures.clear();
    chunks_[i].losses = 0;
    chunks_[i].solo_losses.clear();
    Move(i, ChunkState::kPending);
    forgiven.push_back(i);
  }
  return forgiven;
}

void ChunkTable::RetryElsewhere(uint32_t index, const WorkerRef& avoid, bool solo) {
  chunks_[index].avoid = avoid;
  chunks_[index].solo |= solo;
}

uint64_t ChunkTable::Charge(uint32_t index, uint64_t epoch, uint64_t rows) {
  std::vector<ChunkCharge>& charges = chunks_[index].charges;
  auto it = std::find_if(charges.begin(), charges.end(),
                         [&](const ChunkCharge& charge) { return charge.epoch == epoch; });
  if (it == charges.end() && !charges.empty() && charges.front().epoch == kUnknownGrant) {
    it = charges.begin();
    it->epoch = epoch;
  }
  if (it == charges.end()) {
    if (rows == 0) return 0;
    charges.push_back({epoch, rows});
    return rows;
  }
  const uint64_t more = rows > it->rows ? rows - it->rows : 0;
  it->rows += more;
  return more;
}

void ChunkTable::Want(uint32_t index, const std::string& run, absl::Duration deadline) {
  const Chunk& chunk = chunks_[index];
  if (chunk.state == ChunkState::kDurable) return;
  const bool pending = chunk.state == ChunkState::kPending;
  if (pending) pending_.erase(KeyOf(index));
  demand_[index][run] = deadline;
  if (pending) pending_.insert(KeyOf(index));
}

void ChunkTable::Restore(uint32_t index, ChunkState state, std::vector<ChunkFailure> failures,
                         std::vector<ChunkCharge> charges) {
  SH_CHECK(chunks_[index].state == ChunkState::kPending && chunks_[index].grants.empty());
  SH_CHECK(state != ChunkState::kLeased && state != ChunkState::kConfirming, "volatile states");
  chunks_[index].failures = std::move(failures);
  chunks_[index].charges = std::move(charges);
  Move(index, state);
}

}  // namespace stillhouse
