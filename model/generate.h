// Generation: one token after another, with keys and values of earlier tokens kept.
#pragma once

#include <cstdint>
#include <functional>
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

// A text in the making: the logits after each of its tokens are those of one forward pass over the
// text so far. Owner: one thread. Memory: 2 · layers · tokens_max · kv_heads · head_dim values of
// the weights' dtype, taken at once.
class Decoding {
 public:
  // `weights` must outlive the result. InvalidArgument unless 1 <= tokens_max <=
  // config.TokensMax().
  static absl::StatusOr<Decoding> Create(const DecoderWeights& weights, int64_t tokens_max);

  int64_t tokens() const { return static_cast<int64_t>(ids_.size()); }
  // Appends `ids` and returns the logits [V] that follow the last of them. OutOfRange when there is
  // no room for them, InvalidArgument for an id outside the vocabulary. Where the angles depend on
  // the length (dynamic RoPE past max_positions) this computes the whole text again. No use after
  // any other error.
  absl::StatusOr<std::vector<float>> Extend(absl::Span<const int32_t> ids);

 private:
  explicit Decoding(const DecoderWeights& weights) : weights_(&weights) {}
  at::Tensor Append(absl::Span<const int32_t> ids);  // the last state, [1, H]
  at::Tensor Attend(size_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

  const DecoderWeights* weights_;
  int64_t tokens_max_ = 0;
  std::vector<int32_t> ids_;  // of the text so far
  int64_t kept_ = 0;          // tokens with keys and values
  ops::RotaryTable table_;
  std::vector<at::Tensor> keys_, values_;  // per layer [tokens_max, K, D], keys rotated
};

struct GenerateOptions {
  int64_t tokens_max = 64;        // generated, beside the prompt
  int64_t vocabulary = 0;         // ids below it may be drawn: rows above are padding
  std::vector<int32_t> stop_ids;  // any of them ends the text and is no part of the result
  SamplingOptions sampling;
  uint64_t seed = 0;
  // Called with each token of the result as soon as it is drawn, if it is set; an error ends all.
  std::function<absl::Status(int32_t id)> on_token;
};
// The tokens that follow `prompt`: a pure function of its arguments. InvalidArgument for an empty
// prompt or one that leaves no room; what Decoding and PickToken return.
absl::StatusOr<std::vector<int32_t>> GenerateTokens(const DecoderWeights& weights,
                                                    absl::Span<const int32_t> prompt,
                                                    const GenerateOptions& options);

}  // namespace stillhouse
