// The losses and the gradient of one row of logits; see head_loss.h for the formulas.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "student/losses/head_loss.h"
#include "student/losses/row_kernels.h"

namespace stillhouse::internal {

// Room for one thread's rows, each `n` long.
struct RowScratch {
  RowScratch(std::vector<float>& room, size_t n);
  float *student, *student_exp, *gradient, *teacher, *teacher_exp;
  float *top_logits, *top_exp;
};

struct RowInput {
  int32_t label = 0;
  absl::Span<const int32_t> ids;      // sampled
  absl::Span<const uint16_t> counts;  // as many
  uint32_t draws = 0;
  float teacher_entropy = 0;
  absl::Span<const int32_t> top_ids;     // ascending
  absl::Span<const float> top_logprobs;  // as many, and last that of all others together
};

// Computes one row whose logits lie in scratch.student (largest `student_max`) and, for exact
// terms, in scratch.teacher: leaves the gradient in scratch.gradient and the term values in
// `values`.
void ComputeRow(absl::Span<const LossTerm> terms, absl::Span<const double> coefficients,
                const RowInput& input, size_t n, float student_max, float teacher_max,
                RowScratch& scratch, absl::Span<double> values);

}  // namespace stillhouse::internal
