// Generation: one token after another, with keys and values of earlier tokens kept.
#pragma once

#include <cstdint>
#include <vector>

#include "ATen/core/Tensor.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/random.h"
#include "model/decoder.h"
#include "model/ops.h"

namespace stillhouse {

struct SamplingOptions {
  double temperature = 0;  // 0: always the most likely id, the lowest of equals
  int64_t top_k = 0;       // only the k most likely ids; 0: all
  double top_p = 1;        // then only the fewest whose probabilities sum to at least this
};
absl::Status ValidateSampling(const SamplingOptions& options);

// One id of `logits`. A pure function of its arguments and the stream's state.
// REQUIRES: logits not empty, options valid. InvalidArgument if a logit is NaN or +infinity.
absl::StatusOr<int32_t> PickToken(absl::Span<const float> logits, const SamplingOptions& options,
                                  RandomStream& random);

// A text in the making. Owner: one thread. Memory: 2 · layers · tokens_max · kv_heads · head_dim
// values of the weights' dtype, taken at once.
class Decoding {
 public:
  // `weights` must outlive the result. InvalidArgument unless 1 <= tokens_max <= max_positions.
  static absl::StatusOr<Decoding> Create(const DecoderWeights& weights, int64_t tokens_max);

  int64_t tokens() const { return tokens_; }
  // Appends `ids` and returns the logits [V] that follow the last of them. OutOfRange when there is
  // no room for them, InvalidArgument for an id outside the vocabulary.
  absl::StatusOr<std::vector<float>> Extend(absl::Span<const int32_t> ids);

 private:
  explicit Decoding(const DecoderWeights& weights) : weights_(&weights) {}
  at::Tensor Append(absl::Span<const int32_t> ids);  // the last state, [1, H]

  const DecoderWeights* weights_;
  int64_t tokens_max_ = 0;
  int64_t tokens_ = 0;
  ops::RotaryTable table_;
  std::vector<at::Tensor> keys_, values_;  // per layer [tokens_max, K, D], keys rotated
};

}  // namespace stillhouse
