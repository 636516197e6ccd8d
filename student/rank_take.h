// TakeTogether: the next documents of every rank, or none. The ready vote: no rank enters a step
// before all have what they need for it, and a stop on any of them stops all at the same step.
#pragma once

#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "common/executor.h"
#include "student/prefetcher.h"
#include "student/rank_group.h"

namespace stillhouse {

// Takes `count` documents from the loader, which may be none; called by all ranks. Returns once
// each has its own, however long that takes, or with the error that one of them has: its loader's,
// or what its `check` says. Ranks that wait for data look at one another every few milliseconds.
// REQUIRES: not on the executor's thread, where the loader lives.
absl::StatusOr<std::vector<DocumentTargets>> TakeTogether(RankGroup& group, Executor& executor,
                                                          Prefetcher& loader, size_t count,
                                                          absl::FunctionRef<absl::Status()> check);

}  // namespace stillhouse
