#include "student/step_split.h"

#include <algorithm>

#include "common/status.h"
#include "student/packing.h"

namespace stillhouse {

std::vector<std::vector<uint32_t>> DealDocuments(const Plan& plan,
                                                 absl::Span<const uint32_t> documents, int ranks) {
  SH_CHECK(ranks >= 1);
  std::vector<std::vector<uint32_t>> dealt(static_cast<size_t>(ranks));
  std::vector<uint64_t> rows(dealt.size(), 0);
  for (const uint32_t document : documents) {
    const auto fewest = std::min_element(rows.begin(), rows.end());  // the first of equals
    *fewest += plan.document(document).rows();
    dealt[static_cast<size_t>(fewest - rows.begin())].push_back(document);
  }
  return dealt;
}

std::vector<DocumentGroup> MicroBatchesOf(const Plan& plan, absl::Span<const uint32_t> documents,
                                          uint64_t micro_rows, bool packed) {
  std::vector<uint32_t> rows;
  for (const uint32_t document : documents) rows.push_back(plan.document(document).rows());
  std::vector<DocumentGroup> groups;
  size_t next = 0;
  for (const size_t size : GroupDocuments(rows, micro_rows, packed)) {
    const DocumentGroup group{next, next + size};
    next = group.end;
    const bool counts =
        std::any_of(documents.begin() + static_cast<ptrdiff_t>(group.begin),
                    documents.begin() + static_cast<ptrdiff_t>(group.end),
                    [&](uint32_t document) { return CountedRows(plan.document(document)) > 0; });
    if (counts) groups.push_back(group);
  }
  return groups;
}

StepSplit SplitStep(const Plan& plan, absl::Span<const uint32_t> documents, int ranks,
                    uint64_t micro_rows, bool packed) {
  StepSplit split;
  split.documents = DealDocuments(plan, documents, ranks);
  for (const uint32_t document : documents) {
    split.rows += plan.document(document).rows();
    split.counted_rows += CountedRows(plan.document(document));
  }
  for (const std::vector<uint32_t>& mine : split.documents) {
    split.micro_batches =
        std::max(split.micro_batches, MicroBatchesOf(plan, mine, micro_rows, packed).size());
  }
  return split;
}

}  // namespace stillhouse
