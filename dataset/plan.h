// Plan: the immutable, content-addressed list of what a job's documents are, made when a recipe is
// submitted. Teachers and students read it; nobody tokenises again.
//
// Documents are numbered in order of chunk, so a chunk is a range of documents and a batch a
// sub-range. Training chunks come first, held-out chunks after them. A document of n tokens has n-1
// rows: row t is the state after token t and its label is token t+1, counted where loss_mask[t+1]
// is 1.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/digest.h"

namespace stillhouse {

struct PlanDocument {
  Digest key;                           // of (tokenizer fingerprint, ids, position policy)
  absl::Span<const int32_t> tokens;     // at least 2
  absl::Span<const uint8_t> loss_mask;  // as many as tokens, each 0 or 1
  uint32_t domain = 0;                  // into Plan::domains()
  uint32_t chunk = 0;
  uint32_t rows() const { return static_cast<uint32_t>(tokens.size()) - 1; }
};

// One forward pass of the teacher: documents [begin, end), padded on the right to `length` tokens.
// The shape belongs to the plan because another shape gives other bits.
struct PlanBatch {
  uint32_t begin = 0, end = 0;
  uint32_t length = 0;
};

struct PlanChunk {
  uint32_t begin = 0, end = 0;  // documents
  uint64_t rows = 0;
  bool held_out = false;
  absl::Span<const PlanBatch> batches;
};

// Immutable and thread-safe. Spans live as long as the Plan.
class Plan {
 public:
  virtual ~Plan() = default;
  virtual const Digest& digest() const = 0;  // SHA-256 of the file's bytes
  virtual const Digest& tokenizer_fingerprint() const = 0;
  virtual uint32_t vocabulary() const = 0;  // the tokenizer's size: every id is below it
  virtual uint32_t max_tokens() const = 0;
  virtual uint32_t shuffle_window() const = 0;
  virtual const std::vector<std::string>& domains() const = 0;

  virtual uint32_t document_count() const = 0;
  virtual PlanDocument document(uint32_t index) const = 0;
  virtual uint32_t chunk_count() const = 0;
  virtual uint32_t training_chunk_count() const = 0;
  virtual PlanChunk chunk(uint32_t index) const = 0;
  virtual uint64_t training_rows() const = 0;
  virtual uint64_t held_out_rows() const = 0;
};

// Every count, range, id and mask is checked; DataLoss names what is wrong. `bytes` is kept alive.
absl::StatusOr<std::shared_ptr<const Plan>> ParsePlan(std::shared_ptr<const std::string> bytes);
// The same over a memory map.
absl::StatusOr<std::shared_ptr<const Plan>> OpenPlan(const std::string& path);

}  // namespace stillhouse
