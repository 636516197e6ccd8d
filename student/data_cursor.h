// DataCursor: where a run stands in its data, and which documents make a step. A pure function of
// (plan, seed, position). Copy to look ahead. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "dataset/plan.h"
#include "student/prefetcher.h"

namespace stillhouse {

// The next document to read: number `index` of epoch `epoch`'s order.
struct DataPosition {
  uint64_t epoch = 0;
  uint64_t index = 0;
  friend bool operator==(const DataPosition&, const DataPosition&) = default;
};

class DataCursor {
 public:
  // REQUIRES: the plan has training documents, and `position` lies within its epoch.
  DataCursor(std::shared_ptr<const Plan> plan, uint64_t seed, DataPosition position = {});

  DataPosition position() const { return position_; }
  uint32_t document() const { return (*order_)[position_.index]; }  // the next to read
  void Advance();  // to the next document; after the last one, to the next epoch

 private:
  std::shared_ptr<const Plan> plan_;
  uint64_t seed_;
  DataPosition position_;
  std::shared_ptr<const std::vector<uint32_t>> order_;  // of position_.epoch
};

// Takes documents until the next would bring the step above `rows_max` rows; that one opens the
// next step. REQUIRES: no training document has more than `rows_max` rows.
std::vector<uint32_t> TakeStep(const Plan& plan, DataCursor& cursor, uint64_t rows_max);

// Documents one by one, then nullopt: those of the next `steps` steps from `cursor` on. Of `ranks`,
// those that DealDocuments (step_split.h) gives `rank` in each step are mine.
DocumentList StepDocuments(std::shared_ptr<const Plan> plan, DataCursor cursor, uint64_t steps,
                           uint64_t rows_max, int rank = 0, int ranks = 1);
// Of an epoch. The plan's training documents come before those held out.
uint32_t TrainingDocumentCount(const Plan& plan);
// Those of the held-out chunks, in the plan's order.
std::vector<uint32_t> HeldOutDocuments(const Plan& plan);
// These, all of them mine.
DocumentList ListOf(std::vector<uint32_t> documents);

// FailedPrecondition, naming what to change, for a plan without training documents, with fewer of
// them than ranks, or with a document that does not fit into a step of `step_rows` or a micro-batch
// of `micro_rows`.
absl::Status CheckPlanFits(const Plan& plan, uint64_t step_rows, uint64_t micro_rows,
                           int64_t ranks = 1);

}  // namespace stillhouse
