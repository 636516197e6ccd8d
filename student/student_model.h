// StudentModel: one model and how it makes gradients, behind one interface, so that gradients made
// by autograd and gradients planned by hand are the same to a trainer.
//
// Owner: the model owns its scratch; weights lie in a flat buffer of the caller (laid out by
// StudentLayout), which must outlive it; gradients go where a GradientSink says. Threads: one at a
// time; inside, ATen's threads. The sink is called on the calling thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ATen/core/Tensor.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/tensor_view.h"
#include "formats/model_config.h"
#include "sharding/flat_layout.h"
#include "sharding/gradient_sink.h"
#include "student/losses/head_loss.h"
#include "student/packing.h"
#include "student/planned/step_observer.h"

namespace stillhouse {

// The flat order of a model's parameters: reverse order of use, the embedding (and with it a tied
// head) last, for its gradient is complete only at the end of a backward pass.
FlatLayout StudentLayout(const ModelConfig& config);

class StudentModel {
 public:
  virtual ~StudentModel() = default;
  virtual const ModelConfig& config() const = 0;

  // Forward and backward over one micro-batch. Term k of the loss enters as coefficients[k] times
  // the sum of its rows. The gradient of each parameter, known by its index in StudentLayout, goes
  // into its place in `sink`, which is told as soon as it is complete; weights are awaited there
  // before they are read. values[k][r] becomes term k on loss row r. REQUIRES: the batch has loss
  // rows.
  virtual absl::Status AddGradients(const MicroBatch& batch, absl::Span<const double> coefficients,
                                    GradientSink& sink,
                                    std::vector<std::vector<float>>* values) = 0;

  // The states after the final norm of each token, [T, H] in the compute dtype, without gradients.
  virtual absl::StatusOr<at::Tensor> Hidden(const MicroBatch& batch) = 0;
  virtual at::Tensor Head() const = 0;  // [V, H] in the compute dtype
};

struct StudentLossOptions {
  std::vector<LossTerm> terms;
  int64_t vocabulary = 0;   // the tokenizer's size
  at::Tensor teacher_head;  // compute dtype; for exact terms only
};

// Gradients by a step written by hand (planned/planned_step.h), in memory made before: for
// `tokens_max` tokens at once, and more where a micro-batch is larger. `weights` is the flat buffer
// of what the forward pass reads: fp32 or bf16. `observer` may be null, else must outlive the
// student.
absl::StatusOr<std::unique_ptr<StudentModel>> MakePlannedStudent(const ModelConfig& config,
                                                                 const TensorView& weights,
                                                                 const StudentLossOptions& loss,
                                                                 int64_t tokens_max,
                                                                 StepObserver* observer = nullptr);

// Gradients by autograd through the decoder, with the head and the losses fused
// (losses/head_loss.h): the oracle that planned gradients are compared with.
absl::StatusOr<std::unique_ptr<StudentModel>> MakeAutogradStudent(const ModelConfig& config,
                                                                  const TensorView& weights,
                                                                  const StudentLossOptions& loss);

}  // namespace stillhouse
