#include "dataset/arrange.h"

#include <algorithm>

#include "common/random.h"

namespace stillhouse {
namespace {

// The first 64 bits of the hash as a number in [0, 1).
double Fraction(const Digest& hash) {
  uint64_t bits = 0;
  for (int i = 0; i < 8; ++i) bits = bits << 8 | hash.bytes[i];
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

void AddBatches(const std::vector<ArrangedDocument>& documents, uint32_t begin, uint32_t end,
                Arrangement* out) {
  PlanBatch batch{begin, begin, 0};
  for (uint32_t i = begin; i < end; ++i) {
    const uint32_t length = documents[out->order[i]].length;  // ascending
    const uint64_t padded = static_cast<uint64_t>(i + 1 - batch.begin) * length;
    if (padded > kBatchTokensMax && i > batch.begin) {
      out->batches.push_back(batch);
      batch.begin = i;
    }
    batch.end = i + 1;
    batch.length = length;
  }
  out->batches.push_back(batch);
}

void CloseChunk(const std::vector<ArrangedDocument>& documents, Arrangement* out) {
  const uint32_t begin = out->chunk_begins.back();
  const auto end = static_cast<uint32_t>(out->order.size());
  if (begin == end) return;
  std::stable_sort(out->order.begin() + begin, out->order.end(), [&](uint32_t a, uint32_t b) {
    return documents[a].length < documents[b].length;
  });
  AddBatches(documents, begin, end, out);
  out->chunk_begins.push_back(end);
  out->batch_begins.push_back(static_cast<uint32_t>(out->batches.size()));
}

}  // namespace

std::vector<bool> ChooseHeldOut(const std::vector<Digest>& content_hashes, double share) {
  std::vector<bool> held_out(content_hashes.size(), false);
  if (share <= 0 || content_hashes.empty()) return held_out;
  const auto [lowest, highest] = std::minmax_element(content_hashes.begin(), content_hashes.end());
  if (*lowest == *highest) return held_out;  // one content: nothing to hold it out against
  for (size_t i = 0; i < content_hashes.size(); ++i) {
    const bool below = Fraction(content_hashes[i]) < share || content_hashes[i] == *lowest;
    held_out[i] = below && content_hashes[i] != *highest;
  }
  return held_out;
}

Arrangement Arrange(const std::vector<ArrangedDocument>& documents, uint64_t chunk_tokens,
                    uint64_t seed) {
  Arrangement out;
  out.chunk_begins.push_back(0);
  out.batch_begins.push_back(0);
  out.order.reserve(documents.size());
  for (const bool held_out : {false, true}) {
    std::vector<uint32_t> dealt;
    for (uint32_t i = 0; i < documents.size(); ++i) {
      if (documents[i].held_out == held_out) dealt.push_back(i);
    }
    Shuffle(dealt, DeriveSeed(seed, "dataset/deal"), /*stream=*/held_out ? 1 : 0);
    uint64_t tokens = 0;
    for (const uint32_t document : dealt) {
      if (tokens > 0 && tokens + documents[document].length > chunk_tokens) {
        CloseChunk(documents, &out);
        tokens = 0;
      }
      out.order.push_back(document);
      tokens += documents[document].length;
    }
    CloseChunk(documents, &out);
    if (!held_out) out.training_chunks = static_cast<uint32_t>(out.chunk_begins.size()) - 1;
  }
  return out;
}

}  // namespace stillhouse
