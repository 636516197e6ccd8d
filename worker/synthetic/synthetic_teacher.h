// SyntheticTeacher: a ChunkWorker without a model, for tests and scale trials of everything around
// one.
//
// Its rows are a pure function of document key and position, so every worker, and every retry,
// stores the same bytes. Execution model: event-driven, on the executor of its CacheClient; one
// chunk at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "common/digest.h"
#include "common/executor.h"
#include "dataset/plan.h"
#include "storage/codec/top_tokens.h"
#include "storage/sections.h"
#include "storage/service/cache_client.h"
#include "worker/agent.h"

namespace stillhouse {

// Of one document; every value is finite and within what the codecs take.
StatsRows SyntheticStats(const PlanDocument& document, uint32_t vocabulary);
SampledRows SyntheticSampled(const PlanDocument& document, uint32_t vocabulary, uint32_t draws);
TopTokenRows SyntheticTop(const PlanDocument& document, uint32_t vocabulary, const TopRule& rule);
// `which`: 0 for hidden/last, one more than its number for a layer.
HiddenRows SyntheticHidden(const PlanDocument& document, uint32_t hidden_size, uint32_t which = 0);

struct SyntheticTeacherOptions {
  Digest teacher;
  std::string producer_class = "synthetic";
  absl::Duration batch_time = absl::ZeroDuration();  // what a forward pass is made to take
};
// `cache` and `executor` must outlive the result.
std::unique_ptr<ChunkWorker> MakeSyntheticTeacher(CacheClient& cache, Executor& executor,
                                                  const SyntheticTeacherOptions& options);

}  // namespace stillhouse
