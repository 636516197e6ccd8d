// Arranging documents: which are held out, which share a chunk, which share a forward pass. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/digest.h"
#include "dataset/plan.h"

namespace stillhouse {

// Padded tokens of one forward pass. Large enough for efficient products, small enough that a
// teacher of any size can hold the activations; a single document may be longer than this.
inline constexpr uint64_t kBatchTokensMax = 4096;

// For each source, by the hash of its content: is it held out? A source is held out when its hash,
// as a number in [0, 1), is below `share`; equal contents go the same way. With share > 0 and at
// least two different contents, one at least is held out and one at least is not (the lowest and
// highest hash).
std::vector<bool> ChooseHeldOut(const std::vector<Digest>& content_hashes, double share);

struct ArrangedDocument {
  uint32_t length = 0;  // tokens
  bool held_out = false;
};

struct Arrangement {
  std::vector<uint32_t> order;         // plan document i is document order[i] of the input
  std::vector<uint32_t> chunk_begins;  // one more than chunks
  std::vector<uint32_t> batch_begins;  // per chunk, into batches; one more than chunks
  std::vector<PlanBatch> batches;
  uint32_t training_chunks = 0;
};

// Documents are dealt out by a seeded shuffle, training and held-out ones apart, into chunks of at
// most `chunk_tokens` (a longer document has one alone); within a chunk they are sorted by length,
// and neighbours are batched while the padded batch is at most kBatchTokensMax.
Arrangement Arrange(const std::vector<ArrangedDocument>& documents, uint64_t chunk_tokens,
                    uint64_t seed);

}  // namespace stillhouse
