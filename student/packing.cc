#include "student/packing.h"

#include <algorithm>

#include "common/status.h"

namespace stillhouse {

std::vector<size_t> GroupDocuments(absl::Span<const uint32_t> rows, uint64_t rows_max,
                                   bool packed) {
  std::vector<size_t> groups;
  uint64_t total = 0, longest = 0;
  for (const uint32_t count : rows) {
    SH_CHECK(count <= rows_max);
    const uint64_t size = groups.empty() ? 0 : groups.back();
    const uint64_t next_longest = std::max<uint64_t>(longest, count);
    const uint64_t needed = packed ? total + count : next_longest * (size + 1);
    if (groups.empty() || needed > rows_max) {
      groups.push_back(1);
      total = longest = count;
    } else {
      ++groups.back();
      total += count;
      longest = next_longest;
    }
  }
  return groups;
}

MicroBatch MakeMicroBatch(const Plan& plan, absl::Span<const DocumentTargets> documents,
                          bool packed) {
  MicroBatch batch;
  uint32_t longest = 0;
  for (const DocumentTargets& targets : documents) {
    longest = std::max(longest, plan.document(targets.document).rows());
  }
  for (const DocumentTargets& targets : documents) {
    const PlanDocument document = plan.document(targets.document);
    const uint32_t rows = document.rows();
    const auto begin = static_cast<int64_t>(batch.ids.size());
    const int64_t length = packed ? rows : longest;
    batch.lengths.push_back(length);
    batch.whole_lengths.push_back(static_cast<int64_t>(document.tokens.size()));
    batch.ids.insert(batch.ids.end(), document.tokens.begin(), document.tokens.begin() + rows);
    batch.ids.resize(static_cast<size_t>(begin + length), 0);
    for (uint32_t t = 0; t < rows; ++t) {
      if (document.loss_mask[t + 1] == 0) continue;
      batch.loss_rows.push_back(begin + t);
      batch.labels.push_back(document.tokens[t + 1]);
      if (targets.sampled.rows() > 0) AppendRow(targets.sampled, t, &batch.sampled);
      if (targets.stats.rows() > 0) batch.teacher_entropy.push_back(targets.stats.entropy[t]);
      if (targets.hidden.rows() > 0) AppendRow(targets.hidden, t, &batch.teacher_hidden);
      if (targets.top.rows() > 0) AppendRow(targets.top, t, &batch.top);
    }
  }
  return batch;
}

uint64_t CountedRows(const PlanDocument& document) {
  uint64_t counted = 0;
  for (size_t t = 1; t < document.loss_mask.size(); ++t) counted += document.loss_mask[t];
  return counted;
}

}  // namespace stillhouse
