#include "dataset/data_order.h"

#include <algorithm>

#include "common/random.h"
#include "common/status.h"

namespace stillhouse {

std::vector<uint32_t> EpochOrder(const Plan& plan, uint64_t seed, uint64_t epoch) {
  const uint32_t window = plan.shuffle_window();
  SH_CHECK(window > 0);
  const std::vector<uint32_t> chunks =
      Permutation(plan.training_chunk_count(), DeriveSeed(seed, "order/chunks"), epoch);
  const uint64_t document_seed =
      DeriveSeed(DeriveSeed(seed, "order/documents"), absl::StrCat(epoch));
  std::vector<uint32_t> order;
  for (size_t begin = 0; begin < chunks.size(); begin += window) {
    const size_t end = std::min<size_t>(chunks.size(), begin + window);
    std::vector<uint32_t> documents;
    for (size_t i = begin; i < end; ++i) {
      const PlanChunk chunk = plan.chunk(chunks[i]);
      for (uint32_t document = chunk.begin; document < chunk.end; ++document) {
        documents.push_back(document);
      }
    }
    Shuffle(documents, document_seed, /*stream=*/begin / window);
    order.insert(order.end(), documents.begin(), documents.end());
  }
  return order;
}

}  // namespace stillhouse
