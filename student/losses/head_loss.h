// HeadLoss: the language-model head and every loss that reads its logits, fused over chunks of
// rows.
//
// Logits exist for one chunk at a time, in the compute dtype, and are overwritten by their own
// gradient; no fp32 logits of a whole batch ever exist. One pass gives the losses of each row and
// the gradients to the hidden states and to the head. All terms share the logits; a weighted sum of
// them is one gradient.
//
// Terms, for a row with student logits z, teacher logits t, label y, over the real vocabulary only:
//   cross-entropy   logsumexp(z) - z[y]
//   sampled KL      logsumexp(z) - Σ c_k/N · z[k] - H(teacher), with c the counts of N draws at T =
//   1; its
//                   gradient softmax(z) - c/N is an unbiased estimate of the full KL's
//                   (Anshumann et al., "Sparse logit sampling", ACL 2025)
//   top-k KL        KL of p = (teacher's probabilities of its k most likely ids S, the rest as one
//                   bucket p_R) and q = (softmax(z) of S, the rest of its mass q_R), where
//                   log q_R = logsumexp(z outside S) - logsumexp(z). Its gradient is
//                   q[j] - p[j] inside S and q[j] · (1 - p_R/q_R) outside: mass outside S is pulled
//                   towards the teacher's, which renormalising over S would leave free (the "ghost
//                   token" of Anshumann et al.)
//   exact KL        T² · KL(softmax(t/T) || softmax(z/T)) (Hinton et al. 2015)
//
// Owner: keeps its buffers between calls; a call that needs no larger ones allocates nothing.
// Threads: one at a time; inside, ATen's threads, each row by one of them, so the bits do not
// depend on how many there are (ATen's own products may).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "ATen/core/Tensor.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "model/products.h"
#include "storage/sections.h"

namespace stillhouse {

enum class LossKind { kCrossEntropy, kSampledKl, kTopKl, kExactKl };

struct LossTerm {
  LossKind kind = LossKind::kCrossEntropy;
  double temperature = 1.0;  // of kExactKl; the others are at 1
  double weight = 1.0;
};

// What the rows are compared with, in memory of others. Only what some term reads need be there.
struct RowTargets {
  absl::Span<const int32_t> labels;         // [R]
  const SampledRows* sampled = nullptr;     // R rows
  const TopTokenRows* top = nullptr;        // R rows
  absl::Span<const float> teacher_entropy;  // [R], nats
  at::Tensor teacher_hidden;                // [R, H of the teacher], contiguous, compute dtype
};

struct HeadGradients {
  at::Tensor hidden;  // [R, H], compute dtype; overwritten
  // [V, H] fp32, contiguous; the head's gradient is added, or written where `first`. Undefined: it
  // is not wanted.
  at::Tensor head;
  bool first = true;
};

// Enough rows for the products to run at full speed, few enough for the logits to stay small
// (1,024 × 49,152 in bf16 is 96 MiB; 256 rows cost 1 % of a step, 128 cost 4 %).
inline constexpr int64_t kHeadChunkRows = 1024;

class HeadLoss {
 public:
  // `vocabulary` is the tokenizer's size: columns at or above it are left out of every sum and get
  // no gradient. `teacher_head` [V of the teacher, H of the teacher] is for exact terms only.
  // REQUIRES: only exact terms have another temperature than 1.
  HeadLoss(std::vector<LossTerm> terms, int64_t vocabulary, at::Tensor teacher_head,
           int64_t chunk_rows = kHeadChunkRows);

  const std::vector<LossTerm>& terms() const { return terms_; }

  // `hidden` [R, H] and `head` [V, H], both contiguous and of one dtype (fp32 or bf16). Term k
  // enters the gradient as coefficients[k] · Σ rows. values[k][r] becomes the value of term k,
  // without weight, on row r. REQUIRES: R > 0.
  absl::Status Run(const at::Tensor& hidden, const at::Tensor& head, const RowTargets& targets,
                   absl::Span<const double> coefficients, HeadGradients gradients,
                   std::vector<std::vector<float>>* values);

 private:
  struct Chunk;
  // What one thread needs for its rows.
  struct ThreadScratch {
    std::vector<float> rows;
    std::vector<double> values;
    std::vector<float> top_logprobs;
  };
  void Prepare(int64_t rows, const at::Tensor& head, const RowTargets& targets);
  void RunChunk(const Chunk& chunk);
  template <typename T>
  void RunRows(const Chunk& chunk);

  const std::vector<LossTerm> terms_;
  const int64_t vocabulary_;
  const at::Tensor teacher_head_;
  const int64_t chunk_rows_;
  bool exact_ = false;                  // some term reads the teacher's hidden states
  std::optional<Products> products_;    // of the dtype of the last call
  at::Tensor logits_;                   // [chunk_rows, V]
  at::Tensor teacher_logits_;           // [chunk_rows, V of the teacher]
  at::Tensor hidden_gradient_;          // [chunk_rows, H] fp32, of a bf16 student
  std::vector<ThreadScratch> scratch_;  // one per thread
};

}  // namespace stillhouse
