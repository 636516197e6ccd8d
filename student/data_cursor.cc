#include "student/data_cursor.h"

#include <algorithm>
#include <utility>

#include "common/status.h"
#include "dataset/data_order.h"
#include "student/step_split.h"

namespace stillhouse {
namespace {

std::shared_ptr<const std::vector<uint32_t>> Order(const Plan& plan, uint64_t seed,
                                                   uint64_t epoch) {
  return std::make_shared<const std::vector<uint32_t>>(EpochOrder(plan, seed, epoch));
}

}  // namespace

DataCursor::DataCursor(std::shared_ptr<const Plan> plan, uint64_t seed, DataPosition position)
    : plan_(std::move(plan)),
      seed_(seed),
      position_(position),
      order_(Order(*plan_, seed_, position_.epoch)) {
  SH_CHECK(position_.index < order_->size(), "position ", position_.index, " of ", order_->size());
}

void DataCursor::Advance() {
  if (++position_.index < order_->size()) return;
  position_ = {position_.epoch + 1, 0};
  order_ = Order(*plan_, seed_, position_.epoch);
}

std::vector<uint32_t> TakeStep(const Plan& plan, DataCursor& cursor, uint64_t rows_max) {
  std::vector<uint32_t> documents;
  uint64_t rows = 0;
  for (;;) {
    const uint32_t document = cursor.document();
    rows += plan.document(document).rows();
    if (rows > rows_max) break;
    documents.push_back(document);
    cursor.Advance();
  }
  SH_CHECK(!documents.empty(), "a document is longer than a step");
  return documents;
}

DocumentList StepDocuments(std::shared_ptr<const Plan> plan, DataCursor cursor, uint64_t steps,
                           uint64_t rows_max, int rank, int ranks) {
  std::vector<uint32_t> step, mine;
  size_t next = 0, next_mine = 0;
  return [=]() mutable -> std::optional<ListedDocument> {
    if (next == step.size()) {
      if (steps == 0) return std::nullopt;
      step = TakeStep(*plan, cursor, rows_max);
      mine = DealDocuments(*plan, step, ranks)[static_cast<size_t>(rank)];
      next = next_mine = 0;
      --steps;
    }
    // Both lists are in the order of the step, in which a document may stand twice.
    ListedDocument listed{step[next++], false};
    if (next_mine < mine.size() && mine[next_mine] == listed.document) {
      listed.mine = true;
      ++next_mine;
    }
    return listed;
  };
}

uint32_t TrainingDocumentCount(const Plan& plan) {
  if (plan.training_chunk_count() == plan.chunk_count()) return plan.document_count();
  return plan.chunk(plan.training_chunk_count()).begin;
}

std::vector<uint32_t> HeldOutDocuments(const Plan& plan) {
  std::vector<uint32_t> documents;
  for (uint32_t i = TrainingDocumentCount(plan); i < plan.document_count(); ++i) {
    documents.push_back(i);
  }
  return documents;
}

DocumentList ListOf(std::vector<uint32_t> documents) {
  size_t next = 0;
  return [documents = std::move(documents), next]() mutable -> std::optional<ListedDocument> {
    if (next == documents.size()) return std::nullopt;
    return ListedDocument{documents[next++], true};
  };
}

absl::Status CheckPlanFits(const Plan& plan, uint64_t step_rows, uint64_t micro_rows,
                           int64_t ranks) {
  if (plan.training_chunk_count() == 0 || plan.training_rows() == 0) {
    return absl::FailedPreconditionError(
        "the plan has no training documents: add sources or lower dataset.held_out");
  }
  if (ranks > static_cast<int64_t>(TrainingDocumentCount(plan))) {
    return absl::FailedPreconditionError(
        absl::StrCat(ranks, " ranks, but the plan has only ", TrainingDocumentCount(plan),
                     " training documents: lower ranks, or add sources"));
  }
  const uint64_t limit = std::min(step_rows, micro_rows);
  for (uint32_t i = 0; i < plan.document_count(); ++i) {
    const uint64_t rows = plan.document(i).rows();
    if (rows > limit) {
      return absl::FailedPreconditionError(absl::StrCat(
          "document ", i, " has ", rows, " rows, but batch.tokens is ", step_rows,
          " and batch.micro_batch is ", micro_rows, ": raise them or lower dataset.max_tokens"));
    }
  }
  return absl::OkStatus();
}

}  // namespace stillhouse
