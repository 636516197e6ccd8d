// How the documents of a step are dealt out to the ranks, and into micro-batches. Pure functions of
// the plan, which every rank computes for all ranks: nothing about it needs to be said.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "dataset/plan.h"

namespace stillhouse {

// In their order, each to the rank that has the fewest rows so far, the lowest of equals. [rank]
std::vector<std::vector<uint32_t>> DealDocuments(const Plan& plan,
                                                 absl::Span<const uint32_t> documents, int ranks);

// A run of neighbours in a rank's documents.
struct DocumentGroup {
  size_t begin = 0, end = 0;
};
// The micro-batches of one rank, as GroupDocuments (packing.h) makes them, without those in which
// no label counts: they have no gradient.
std::vector<DocumentGroup> MicroBatchesOf(const Plan& plan, absl::Span<const uint32_t> documents,
                                          uint64_t micro_rows, bool packed);

struct StepSplit {
  std::vector<std::vector<uint32_t>> documents;  // [rank]
  uint64_t rows = 0, counted_rows = 0;           // of all ranks
  size_t micro_batches = 0;                      // of the rank that has most
};
StepSplit SplitStep(const Plan& plan, absl::Span<const uint32_t> documents, int ranks,
                    uint64_t micro_rows, bool packed);

}  // namespace stillhouse
