// Evaluation: how near a student is to its teacher on held-out documents, over the whole
// vocabulary.
//
// Logits of both sides are fp32, from the student's hidden states and from the cached hidden states
// of the teacher, in chunks of rows; sums are fp64. T = 1. Only rows whose label counts are read.
#pragma once

#include <cstdint>
#include <vector>

#include "ATen/core/Tensor.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dataset/plan.h"
#include "student/packing.h"
#include "student/student_model.h"
#include "worker/run_client.h"

namespace stillhouse {

// Sums over some rows.
struct EvaluationSums {
  uint64_t rows = 0;
  double student_nll = 0, teacher_nll = 0;  // nats
  double kl = 0;                            // KL(teacher || student)
  double jsd = 0;
  double agreement = 0;  // rows whose likeliest ids are the same; of equals, the lowest id
};

// Mean of a ratio Σ value / Σ rows over documents, with its standard error: that of a ratio
// estimator with documents as the units (Cochran, "Sampling techniques", ch. 6), NaN for fewer
// than two documents: no error is known then.
struct Ratio {
  double mean = 0, standard_error = 0;
};
Ratio RatioOverDocuments(absl::Span<const EvaluationSums> documents, double EvaluationSums::*value);

class Evaluator {
 public:
  // `teacher_head` [V of the teacher, H of the teacher] in fp32. The model must outlive the
  // evaluator; its weights must not change during one.
  Evaluator(StudentModel& model, at::Tensor teacher_head, int64_t vocabulary);

  // Evaluates documents with their `hidden` sections, in one forward pass. InvalidArgument when a
  // section is not of the teacher head's width; Internal when a logit is not finite.
  absl::Status Add(const Plan& plan, absl::Span<const DocumentTargets> documents);
  Evaluation Finish(uint64_t step) const;

 private:
  absl::Status AddRows(const at::Tensor& hidden, const MicroBatch& batch,
                       std::vector<EvaluationSums>* rows);

  StudentModel& model_;
  const at::Tensor teacher_head_;  // fp32
  const at::Tensor student_head_;  // fp32
  const int64_t vocabulary_;
  std::vector<EvaluationSums> documents_;
};

}  // namespace stillhouse
