// Packing: the documents of a step as micro-batches, and what a model needs of one. Pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "dataset/plan.h"
#include "storage/sections.h"

namespace stillhouse {

// What the cache holds of one document. Sections that the run does not read are empty.
struct DocumentTargets {
  uint32_t document = 0;  // in the plan
  SampledRows sampled;
  StatsRows stats;
  HiddenRows hidden;
  TopTokenRows top;
};

// One forward and backward pass. Documents lie end to end; each has `lengths[i]` tokens of input,
// its rows first and then padding, if any.
struct MicroBatch {
  std::vector<int64_t> ids;      // [T]
  std::vector<int64_t> lengths;  // sum to T
  // Tokens of each whole document, as its teacher read it: one more than it has rows.
  std::vector<int64_t> whole_lengths;
  // The rows that count towards a loss, ascending in T, with what they are compared with.
  std::vector<int64_t> loss_rows;      // [R]
  std::vector<int32_t> labels;         // [R]
  SampledRows sampled;                 // R rows, or none
  std::vector<float> teacher_entropy;  // [R], or empty
  HiddenRows teacher_hidden;           // R rows, or none
  TopTokenRows top;                    // R rows, or none
};

// Groups `rows` (rows of each document, in order) into runs of neighbours: packed, a group has at
// most `rows_max` rows; else its size times its longest document has. Returns the size of each
// group. REQUIRES: no document has more than `rows_max` rows.
std::vector<size_t> GroupDocuments(absl::Span<const uint32_t> rows, uint64_t rows_max, bool packed);

// The micro-batch of `documents`; padded to the longest where not `packed`. Padding is token 0,
// which comes after the document, so that causal attention never reads it.
MicroBatch MakeMicroBatch(const Plan& plan, absl::Span<const DocumentTargets> documents,
                          bool packed);

// Rows of a document whose label counts.
uint64_t CountedRows(const PlanDocument& document);

}  // namespace stillhouse
