// Evaluation: how near a student is to its teacher on held-out documents, over the whole
// vocabulary.
//
// Logits of both sides are fp32, from the student's hidden states and from the cached hidden states
// of the teacher, in chunks of rows; sums are fp64. T = 1. Only rows whose label counts are read.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "ATen/core/Tensor.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dataset/plan.h"
#include "student/losses/head_loss.h"
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

// What a run is asked to bring down: its distance from the teacher where some loss reads it, else
// its perplexity.
double QualityOf(absl::Span<const LossTerm> terms, const Evaluation& evaluation);

class Evaluator {
 public:
  // `teacher_head` [V of the teacher, H of the teacher] in fp32. The model must outlive the
  // evaluator; its weights must not change during one.
  Evaluator(StudentModel& model, at::Tensor teacher_head, int64_t vocabulary);

  // Evaluates documents with their `hidden` sections, in one forward pass. InvalidArgument when a
  // section is not of the teacher head's width; Internal when a logit is not finite.
  absl::Status Add(const Plan& plan, absl::Span<const DocumentTargets> documents);
  // The same in as many passes of at most `micro_rows` rows (or one document) as it takes.
  absl::Status AddInBatches(const Plan& plan, absl::Span<const DocumentTargets> documents,
                            uint64_t micro_rows);
  // What was added of these documents, kValuesPerDocument each, zero for others; and back. So ranks
  // that have evaluated some each add up to what one would have.
  static constexpr size_t kValuesPerDocument = 6;
  std::vector<double> ValuesOf(absl::Span<const uint32_t> documents) const;
  void SetValues(absl::Span<const uint32_t> documents, absl::Span<const double> values);
  Evaluation Finish(uint64_t step) const;

 private:
  absl::Status AddRows(const at::Tensor& hidden, const MicroBatch& batch,
                       std::vector<EvaluationSums>* rows);

  StudentModel& model_;
  const at::Tensor teacher_head_;  // fp32
  const at::Tensor student_head_;  // fp32
  const int64_t vocabulary_;
  std::map<uint32_t, EvaluationSums> documents_;  // in the plan's order; those with rows that count
};

}  // namespace stillhouse
