// How far apart two captures of one section are: what an audit looks at.
//
// Pure functions. A distance is 0 for equal rows and about 1 for rows that have nothing in common,
// whatever the kind of section; the same model computed with other kernels or in another precision
// lies in between (kSectionTolerance).
#pragma once

#include "absl/status/statusor.h"
#include "storage/codec.h"

namespace stillhouse {

struct SectionDistance {
  uint64_t rows = 0;
  uint64_t equal = 0;      // rows whose stored values are the same
  double sum = 0;          // of the rows' distances
  double worst = 0;        // the largest of them
  uint64_t worst_row = 0;  // and the row it is of
};

// Of one row of each, by kind of section:
//   logits/sampled   the largest difference of the shares of draws at or below an id (Kolmogorov)
//   logits/topk, topp   half the sum of the differences of probability, all other ids being one
//   stats            the largest of: difference of p(top-1), of p(next), of entropy / (1 +
//   entropy),
//                    of logsumexp / (1 + |logsumexp|)
//   hidden           |a - b| / max(|a|, |b|), Euclidean
// DataLoss when they have different numbers of rows. REQUIRES: both are of one kind.
absl::StatusOr<SectionDistance> DistanceOf(const SectionRows& a, const SectionRows& b);

// What the same teacher stays below when another precision, machine or batch shape computes it
// again: in the mean over many rows, and in every row. docs/benchmarks.md has what was measured.
struct SectionTolerance {
  double mean;
  double row;
};
SectionTolerance ToleranceOf(SectionKind kind);

}  // namespace stillhouse
