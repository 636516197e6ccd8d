// RowCapture: what is kept of one row of logits: summary numbers and categorical draws. No torch.
//
// Sums over the vocabulary are taken in blocks of kBlock ids, in fp64, so that no id is too small
// to have a width of its own. A draw inverts the cumulative distribution with a 53-bit uniform from
// a counter-based generator: it depends on the row's logits, the document's key, the position and
// the draw's number, and on nothing else.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/digest.h"

namespace stillhouse {

struct RowSummary {
  float entropy = 0;       // nats
  float logsumexp = 0;     // nats
  int32_t top1_id = 0;     // the lowest of those with the largest logit
  float top1_logprob = 0;  // nats
};

// Works on one row at a time; its buffers are reused. Not thread-safe.
class RowCapture {
 public:
  static constexpr int64_t kBlock = 64;

  // Rows of `vocabulary` logits: ids at or above it do not exist here. REQUIRES: vocabulary > 0.
  explicit RowCapture(int64_t vocabulary);

  // Reads a row (float, or uint16_t for bfloat16 bits). False, and nothing else, if one of the
  // logits is not finite. The other methods speak of the last row read.
  bool Read(const float* logits);
  bool Read(const uint16_t* logits);

  RowSummary Summary() const;
  // log p(id), nats. REQUIRES: 0 <= id < vocabulary.
  float LogProbability(int32_t id) const;
  // Those of all ids, until the next call.
  absl::Span<const float> LogProbabilities();
  // Appends unique ids, ascending, and their counts, whose sum is `draws`; returns how many ids.
  // REQUIRES: draws >= 1.
  uint32_t Draw(const Digest& document, uint32_t position, uint32_t draws,
                std::vector<int32_t>* ids, std::vector<uint16_t>* counts);

 private:
  template <typename T>
  bool ReadRow(const T* logits);
  int32_t IdInBlock(int64_t block, double target) const;

  const int64_t vocabulary_;
  const int64_t blocks_;
  // Padded to whole blocks with logits that have no mass.
  std::vector<float> shifted_;      // logit − max
  std::vector<float> mass_;         // e^shifted
  std::vector<double> block_mass_;  // Σ mass, weighted by nothing
  std::vector<double> cumulative_;  // [blocks + 1]
  std::vector<double> uniforms_;
  std::vector<float> logprobs_;  // [vocabulary]
  float max_ = 0;
  int32_t top1_ = 0;
  double weighted_ = 0;  // Σ mass · shifted
};

}  // namespace stillhouse
